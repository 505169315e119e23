# The installed service: confined, restarted, upgraded, and asked over its socket, HTTP and SSH.
{
  client,
  host,
  onEveryKernel,
  pkgs,
  ...
}:
onEveryKernel
  {
    name = "service";
    since = "6.1";
  }
  {
    nodes.client.environment.systemPackages = client;

    nodes.server = {
      imports = [ host ];
      services.netmon-mcp = {
        users = [ "alice" ];
        openFirewall = true;
        http = {
          enable = true;
          address = "0.0.0.0";
          tokenFile = "/etc/netmon-tokens";
        };
        settings.http.allowed_hosts = [ "server" ];
      };
      environment.etc."netmon-tokens" = {
        text = "test correct-horse-battery-staple-0123456789\n";
        mode = "0400";
      };
      users.users.alice.isNormalUser = true;
      users.users.mallory.isNormalUser = true;
      services.openssh.enable = true;

      # An upgrade: the system switches to another one with other units.
      system.switch.enable = true;
      specialisation.upgraded.configuration.services.netmon-mcp.without = [ "snapshot_interfaces" ];
      environment.systemPackages = client ++ [
        (pkgs.writeShellScriptBin "upgrade" "/run/booted-system/specialisation/upgraded/bin/switch-to-configuration test")
      ];
    };

    testScript = builtins.readFile ./service.py;
  }
