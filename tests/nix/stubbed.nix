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
  host = nixpkgs.lib.nixosSystem {
    system = "x86_64-linux";
    modules = [
      self.nixosModules.default
      { services.netmon-mcp.enable = true; }
      extra
    ];
  };
in
self
// {
  inherit nixpkgs;
  host = host.config;
  options = import ../../nix/options.nix {
    inherit (nixpkgs) lib;
    inherit (host) options;
  };
}
