# A NixOS test that is evaluated, node by node, and never run.
{
  lib,
  pkgs,
  derive,
}:
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
  nodes = builtins.mapAttrs (
    name: module:
    (lib.evalModules {
      specialArgs = { inherit pkgs nodes; };
      modules = [
        (import ./nixos.nix { inherit pkgs; })
        { networking.hostName = lib.mkDefault name; }
        (test.defaults or { })
        module
      ];
    }).config
  ) test.nodes;
  systems = map (node: node.system.build.toplevel) (builtins.attrValues nodes);
in
if unknown != [ ] then
  throw "runNixOSTest: the option `${toString unknown}' does not exist"
else
  derive {
    name = "vm-test-run-${test.name}";
    inherit systems;
    inherit (test) testScript;
  }
  // {
    inherit nodes;
    inherit (test) testScript;
  }
