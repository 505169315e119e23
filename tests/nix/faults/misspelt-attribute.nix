# expect: attribute .*openFirewal.* missing|undefined variable .openFirewal
{ config, ... }:
{
  networking.firewall.enable = config.services.netmon-mcp.openFirewal;
}
