# expect: settings.http has oauth_issuer: set services.netmon-mcp.http.oauth instead
{ services.netmon-mcp.settings.http.oauth_issuer = "https://as.example.org"; }
