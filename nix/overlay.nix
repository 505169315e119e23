# For hosts that build every package from one nixpkgs: `pkgs.netmon-mcp`.
final: _prev: {
  netmon-mcp = final.callPackage ./package.nix { };
}
