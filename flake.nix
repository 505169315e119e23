{
  description = "netmon-mcp: an MCP server that measures a Linux host's network in the kernel, with eBPF";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      systems = [
        "x86_64-linux"
        "aarch64-linux"
      ];
      # An output for every system, from its packages and this flake's.
      eachSystem =
        f:
        lib.genAttrs systems (
          system:
          f {
            pkgs = nixpkgs.legacyPackages.${system};
            own = self.packages.${system};
          }
        );
    in
    {
      overlays.default = import ./nix/overlay.nix;

      packages = eachSystem (
        { pkgs, own }:
        {
          default = own.netmon-mcp;
          netmon-mcp = pkgs.callPackage ./nix/package.nix {
            packageTests = lib.filterAttrs (
              name: _: lib.hasPrefix "vm-" name
            ) self.checks.${pkgs.stdenv.hostPlatform.system};
            sourceRevision = self.rev or self.dirtyRev or null;
          };
          # The BPF objects inside netmond, and the tests that depend on the kernel.
          bpf-objects = own.netmon-mcp.bpf;
          kernel-tests = pkgs.callPackage ./nix/kernel-tests.nix { inherit (own) netmon-mcp; };
          oci-image = pkgs.callPackage ./nix/image.nix { inherit (own) netmon-mcp; };
        }
      );

      apps = eachSystem (
        { own, ... }:
        {
          default = {
            type = "app";
            program = lib.getExe own.netmon-mcp;
            inherit (own.netmon-mcp) meta;
          };
        }
      );

      nixosModules.default = import ./nix/nixos.nix self;

      devShells = eachSystem (
        { pkgs, own }:
        {
          default = pkgs.callPackage ./nix/shell.nix { inherit (own) netmon-mcp; };
        }
      );

      checks = eachSystem (
        args:
        import ./nix/checks.nix (
          args
          // {
            inherit self;
            inherit (lib) nixosSystem;
          }
        )
      );

      formatter = eachSystem ({ pkgs, ... }: pkgs.nixfmt-tree);
    };
}
