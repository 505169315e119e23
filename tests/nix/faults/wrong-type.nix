# expect: services.netmon-mcp.http.port.* is not of type .*16 bit unsigned integer
{
  services.netmon-mcp.http = {
    enable = true;
    tokenFile = "/run/secrets/netmon-tokens";
    port = "8080";
  };
}
