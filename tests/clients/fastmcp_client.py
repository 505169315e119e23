"""fastmcp's client against a server: `fastmcp_client.py SERVER...`, which is a URL or a command line."""

import asyncio
import sys

from fastmcp import Client
from fastmcp.client.transports import StdioTransport


async def visit(target):
    async with Client(target) as client:
        names = [tool.name for tool in await client.list_tools()]
        assert "network-monitor" in names, names
        status = await client.call_tool("status", {})
        assert status.structured_content["daemon"]["connected"], status
        wrong = await client.call_tool("network-monitor", {"operation": "sideways"}, raise_on_error=False)
        assert wrong.is_error, wrong


arguments = sys.argv[1:]
target = arguments[0] if arguments[0].startswith("http") else StdioTransport(arguments[0], arguments[1:])
asyncio.run(asyncio.wait_for(visit(target), 30))
print("ok")
