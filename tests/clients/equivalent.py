"""The equivalent of netmon-mcp on the official Python SDK, for the benchmarks: `equivalent.py ANSWER [PORT]`. It has one
tool, whose structured answer is the file ANSWER. It serves over HTTP with a port, and over stdio without."""

import json
import sys
from typing import Any

from mcp.server import MCPServer

with open(sys.argv[1], encoding="utf-8") as file:
    answer = json.load(file)
server = MCPServer("equivalent", log_level="ERROR")


@server.tool()
def snapshot_interfaces(duration_ms: int) -> dict[str, Any]:
    """Answers at once, whatever `duration_ms` says."""
    return answer


if len(sys.argv) > 2:
    server.run("streamable-http", port=int(sys.argv[2]))
else:
    server.run("stdio")
