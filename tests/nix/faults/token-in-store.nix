# expect: http.tokenFile.* is not of type .*absolute path not in the Nix store
{
  services.netmon-mcp.http = {
    enable = true;
    tokenFile = builtins.toFile "token" "everyone can read this";
  };
}
