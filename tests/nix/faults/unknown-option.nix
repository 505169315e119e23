# expect: services.netmon-mcp.htpp.* does not exist
{ services.netmon-mcp.htpp.enable = true; }
