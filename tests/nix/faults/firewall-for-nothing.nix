# expect: openFirewall opens a port that nothing serves
{ services.netmon-mcp.openFirewall = true; }
