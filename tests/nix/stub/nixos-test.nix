# A NixOS test. Every node is evaluated, and becomes a Debian guest with the files, units and accounts of NixOS, on the
# Debian kernel of the same series. tests/vm/driver runs the test's script.
{ lib, pkgs }:
test:
let
  known = [
    "name"
    "nodes"
    "testScript"
    "globalTimeout"
    "defaults"
    "meta"
  ];
  unknown = builtins.filter (name: !(builtins.elem name known)) (builtins.attrNames test);
  names = builtins.attrNames test.nodes;
  # In the order of their names, like NixOS.
  address = lib.listToAttrs (
    lib.imap0 (i: name: lib.nameValuePair name "192.168.1.${toString (i + 1)}") names
  );
  nodes = builtins.mapAttrs (
    name: module:
    (lib.evalModules {
      specialArgs = {
        inherit pkgs nodes;
      }
      // import ./utils.nix { inherit lib; };
      modules = [
        (import ./nixos.nix { inherit pkgs; })
        {
          networking.hostName = lib.mkDefault name;
          networking.hosts = lib.mapAttrs' (name: address: lib.nameValuePair address [ name ]) address;
        }
        (test.defaults or { })
        module
      ];
    }).config
  ) test.nodes;
  systems = builtins.mapAttrs (_: node: node.system.build.toplevel) nodes;
in
if unknown != [ ] then
  throw "runNixOSTest: the option `${toString unknown}' does not exist"
else
  pkgs.runCommand "vm-test-run-${test.name}"
    {
      inherit systems;
      inherit (test) testScript;
      seconds = test.globalTimeout or 3600;
      addresses = address;
      kernel = (builtins.head (builtins.attrValues nodes)).boot.kernelPackages.kernel.debian;
      exportReferencesGraph = lib.mapAttrs' (
        name: system: lib.nameValuePair "closure-${name}" [ system ]
      ) systems;
    }
    ''
      mkdir -p tests/vm
      cp -r ${./vm/driver} tests/vm/driver
      cp -r ${./vm/guest} tests/vm/guest
      PATH=/usr/bin:/usr/sbin python3 tests/vm/driver/nixos.py
    ''
  // {
    inherit nodes;
    inherit (test) testScript;
  }
