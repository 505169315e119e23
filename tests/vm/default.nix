# NixOS VM tests: every other *.nix of this folder is a set of them, by name. What each asserts is in the
# script of the same name, which runs on Debian guests as well (tests/vm/driver).
{ self, pkgs }:
let
  inherit (pkgs) lib;
  files = lib.filter (file: lib.hasSuffix ".nix" file && file != "default.nix") (
    builtins.attrNames (builtins.readDir ./.)
  );
  # Every kernel with long-term support that NixOS has, and the newest.
  kernels = {
    "6_1" = pkgs.linuxPackages_6_1;
    "6_6" = pkgs.linuxPackages_6_6;
    "6_12" = pkgs.linuxPackages_6_12;
    latest = pkgs.linuxPackages_latest;
  };
  # A test for each of them.
  onEveryKernel =
    name: test:
    lib.mapAttrs' (
      version: kernelPackages:
      lib.nameValuePair "${name}-${version}" (
        pkgs.testers.runNixOSTest (
          {
            name = "netmon-mcp-${name}-${version}";
            # Without KVM a boot takes a minute.
            globalTimeout = 1200;
            defaults = {
              boot = { inherit kernelPackages; };
              virtualisation.cores = 2;
            };
          }
          // test
        )
      )
    ) kernels;
  # A host with the service.
  host = {
    imports = [ self.nixosModules.default ];
    services.netmon-mcp.enable = true;
  };
  load = file: import (./. + "/${file}") { inherit pkgs host onEveryKernel; };
in
lib.mapAttrs' (name: lib.nameValuePair "vm-${name}") (
  lib.foldl' (all: file: all // load file) { } files
)
