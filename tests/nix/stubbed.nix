# The flake's outputs over the stand-in, without the command line's flake machinery: what the tests
# beside this file evaluate. `extra` is a module for one more host than the VM tests have.
{
  extra ? { },
}:
let
  nixpkgs =
    let
      self = (import ./stub/flake.nix).outputs { inherit self; };
    in
    self;
  self = (import ../../flake.nix).outputs { inherit self nixpkgs; } // {
    outPath = ../..;
  };
  system = "x86_64-linux";
in
self
// {
  inherit nixpkgs;
  host =
    (nixpkgs.lib.nixosSystem {
      inherit system;
      modules = [
        self.nixosModules.default
        { services.netmon-mcp.enable = true; }
        extra
      ];
    }).config;
}
