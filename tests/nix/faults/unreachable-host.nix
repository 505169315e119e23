# expect: hosts.web.target.* is not of type .*string matching the pattern
{
  services.netmon-mcp = {
    http.enable = true;
    hosts.web.target = "web.example.org";
  };
}
