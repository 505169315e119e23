# expect: services.netmon-mcp.http.port.* is not of type
{
  services.netmon-mcp.http = {
    enable = true;
    tokenFile = "/run/secrets/netmon-tokens";
    port = 65536;
  };
}
