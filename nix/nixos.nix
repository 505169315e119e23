# The module, with this flake's package as its default. It sets no overlay: a test's nodes refuse one.
self:
{ lib, pkgs, ... }:
{
  imports = [ ./module.nix ];
  services.netmon-mcp.package =
    lib.mkDefault
      self.packages.${pkgs.stdenv.hostPlatform.system}.netmon-mcp;
}
