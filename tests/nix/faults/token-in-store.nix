# expect: tokenFile is in the Nix store
{
  services.netmon-mcp.http = {
    enable = true;
    tokenFile = builtins.toFile "token" "everyone can read this";
  };
}
