{
  description = "A stand-in for nixpkgs: enough of it to build this flake, and to boot its tests, where nixpkgs cannot be had";

  outputs =
    { self }:
    let
      lib = import ./lib.nix;
    in
    {
      lib = lib // {
        nixosSystem =
          { system, modules }:
          lib.evalModules {
            specialArgs = {
              pkgs = self.legacyPackages.${system};
            }
            // import ./utils.nix { inherit lib; };
            modules = [ (import ./nixos.nix { pkgs = self.legacyPackages.${system}; }) ] ++ modules;
          };
      };
      legacyPackages = lib.genAttrs [ "x86_64-linux" "aarch64-linux" ] (
        system: import ./pkgs.nix { inherit lib system; }
      );
    };
}
