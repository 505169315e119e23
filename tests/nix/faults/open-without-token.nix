# expect: http listens on 0.0.0.0, .*set services.netmon-mcp.http.tokenFile or http.oauth
{
  services.netmon-mcp.http = {
    enable = true;
    address = "0.0.0.0";
  };
}
