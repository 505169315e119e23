# The module, with this flake's package as its default. It sets no overlay: nodes of a VM test reject one. The key makes
# repeated imports equal.
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
