# expect: settings.http says where to listen or which tokens are good
{ services.netmon-mcp.settings.http.tokens = "/etc/tokens"; }
