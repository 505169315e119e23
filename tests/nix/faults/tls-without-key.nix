# expect: http.tls.key.* was accessed but has no value defined
{
  services.netmon-mcp.http = {
    enable = true;
    tls.certificate = "/var/lib/acme/netmon/fullchain.pem";
  };
}
