# expect: hosts.db.tokenFile' is not of type `null or absolute path not in the Nix store'
{
  services.netmon-mcp = {
    http.enable = true;
    hosts.db = {
      target = "https://db/mcp";
      tokenFile = /run/secrets/db;
    };
  };
}
