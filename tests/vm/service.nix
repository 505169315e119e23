# The installed service, asked over its socket, over HTTP and over SSH, on every kernel that NixOS keeps.
{ self, pkgs }:
let
  inherit (pkgs) lib;
  kernels = {
    "6_1" = pkgs.linuxPackages_6_1;
    "6_6" = pkgs.linuxPackages_6_6;
    "6_12" = pkgs.linuxPackages_6_12;
    latest = pkgs.linuxPackages_latest;
  };
  test =
    version: kernelPackages:
    pkgs.testers.runNixOSTest {
      name = "netmon-mcp-service-${version}";
      globalTimeout = 900;

      nodes.client = {
        environment.systemPackages = [
          pkgs.curl
          pkgs.jq
        ];
      };

      nodes.server = {
        imports = [ self.nixosModules.default ];
        boot = { inherit kernelPackages; };
        virtualisation.cores = 2;

        services.netmon-mcp = {
          enable = true;
          users = [ "alice" ];
          openFirewall = true;
          http = {
            enable = true;
            address = "0.0.0.0";
            tokenFile = "/etc/netmon-tokens";
          };
        };
        environment.etc."netmon-tokens" = {
          text = "test correct-horse-battery-staple\n";
          mode = "0400";
        };

        users.users.alice.isNormalUser = true;
        users.users.mallory.isNormalUser = true;
        services.openssh.enable = true;
        networking.nftables.enable = true;
        environment.systemPackages = [
          pkgs.jq
          pkgs.python3
        ];
      };

      testScript = builtins.readFile ./service.py;
    };
in
lib.mapAttrs' (
  version: kernelPackages: lib.nameValuePair "service-${version}" (test version kernelPackages)
) kernels
