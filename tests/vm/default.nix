# NixOS VM tests: every other *.nix of this folder is a set of tests, by name. The script with the same name has the
# assertions, and also runs on Debian guests (tests/vm/driver).
{
  self,
  pkgs,
  own,
}:
let
  inherit (pkgs) lib;
  files = lib.filter (file: lib.hasSuffix ".nix" file && file != "default.nix") (
    builtins.attrNames (builtins.readDir ./.)
  );
  # Every long-term kernel of NixOS (its default is 6.18), and the newest one.
  kernels = {
    "5_10" = pkgs.linuxPackages_5_10;
    "5_15" = pkgs.linuxPackages_5_15;
    "6_1" = pkgs.linuxPackages_6_1;
    "6_6" = pkgs.linuxPackages_6_6;
    "6_12" = pkgs.linuxPackages_6_12;
    "6_18" = pkgs.linuxPackages_6_18;
    latest = pkgs.linuxPackages_latest;
  };
  # A test for each of them, starting with `since`.
  onEveryKernel =
    {
      name,
      since ? "5.10",
    }:
    test:
    lib.mapAttrs' (
      version: kernelPackages:
      lib.nameValuePair "${name}-${version}" (
        pkgs.testers.runNixOSTest (
          {
            name = "netmon-mcp-${name}-${version}";
            # Without KVM a boot takes a minute.
            globalTimeout = 1800;
            defaults = {
              boot = { inherit kernelPackages; };
              virtualisation.cores = 2;
            };
          }
          // test
        )
      )
    ) (lib.filterAttrs (_: it: lib.versionAtLeast it.kernel.version since) kernels);
  # A host with the service.
  host = {
    imports = [ self.nixosModules.default ];
    services.netmon-mcp.enable = true;
  };
  # The MCP client of the scripts.
  client = [
    (pkgs.writeScriptBin "mcp-client" (builtins.readFile ./mcp-client))
    pkgs.python3
  ];
  load =
    file:
    import (./. + "/${file}") {
      inherit
        client
        host
        onEveryKernel
        own
        pkgs
        ;
    };
in
lib.mapAttrs' (name: lib.nameValuePair "vm-${name}") (
  lib.foldl' (all: file: all // load file) { } files
)
