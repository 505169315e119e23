# expect: http listens on 0.0.0.0, .*tokenFile must be set
{
  services.netmon-mcp.http = {
    enable = true;
    address = "0.0.0.0";
  };
}
