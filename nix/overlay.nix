# For hosts that build all packages from one nixpkgs: `pkgs.netmon-mcp`.
final: _prev: {
  netmon-mcp = final.callPackage ./package.nix { };
}
