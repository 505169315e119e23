# expect: settings.http.max_calls.* is not of type .*positive integer
{ services.netmon-mcp.settings.http.max_calls = "many"; }
