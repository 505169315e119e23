# The module, with this flake's package as its default. It sets no overlay: a test's nodes refuse one. The key makes a
# second import of it the same module.
self:
{ lib, pkgs, ... }:
{
  key = "netmon-mcp#nixosModules.default";
  _file = ./nixos.nix;
  imports = [ ./module.nix ];
  config.services.netmon-mcp.package = lib.mkDefault (
    self.packages.${pkgs.stdenv.hostPlatform.system}.netmon-mcp
  );
}
