# expect: http.tokenFile' is not of type `null or absolute path not in the Nix store'
{
  services.netmon-mcp.http = {
    enable = true;
    tokenFile = /run/secrets/netmon-tokens;
  };
}
