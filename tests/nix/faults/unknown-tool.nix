# expect: without.* is not of type .*one of .*"diagnose"
{ services.netmon-mcp.without = [ "trace_dsn" ]; }
