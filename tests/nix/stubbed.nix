# The flake's outputs over the stand-in, without the flake command line, for the tests beside this file. `extra` is a
# module for one more host besides the VM tests.
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
