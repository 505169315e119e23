# expect: settings.http has tokens: set services.netmon-mcp.http.tokenFile instead
{ services.netmon-mcp.settings.http.tokens = "/etc/tokens"; }
