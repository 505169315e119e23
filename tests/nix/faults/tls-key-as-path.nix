# expect: http.tls.key' is not of type `absolute path not in the Nix store'
{
  services.netmon-mcp.http = {
    enable = true;
    tls = {
      certificate = "/var/lib/acme/netmon/fullchain.pem";
      key = /var/lib/acme/netmon/key.pem;
    };
  };
}
