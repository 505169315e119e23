# expect: services.netmon-mcp.http.port.* is not of type
{
  services.netmon-mcp.http = {
    enable = true;
    port = 65536;
  };
}
