"""The official Python SDK against a server: `python_sdk.py SERVER...`, which is a URL or a command line."""

import asyncio
import sys

from mcp import Client, StdioServerParameters


async def visit(target, mode):
    async with Client(target, mode=mode) as client:
        names = [tool.name for tool in (await client.list_tools()).tools]
        assert "network-monitor" in names, names
        status = await client.call_tool("status", {})
        assert not status.is_error and status.structured_content["daemon"]["connected"], status
        told = []

        async def progress(done, total, message):
            told.append((done, total, message))

        window = {"operation": "incoming", "interface": "lo", "duration": 1.2}
        answer = await client.call_tool("network-monitor", window, progress_callback=progress)
        assert answer.structured_content["interface"] == "lo", answer
        assert told and told[0][1] == 1.2, told
        wrong = await client.call_tool("network-monitor", {"operation": "sideways"})
        assert wrong.is_error and "incoming" in wrong.content[0].text, wrong
        # A cancelled call leaves the connection usable.
        try:
            await asyncio.wait_for(client.call_tool("network-monitor", {**window, "duration": 60}), 0.3)
            raise AssertionError("a window of 60 s ended")
        except asyncio.TimeoutError:
            pass
        assert not (await client.call_tool("status", {})).is_error


arguments = sys.argv[1:]
target = arguments[0] if arguments[0].startswith("http") else StdioServerParameters(command=arguments[0], args=arguments[1:])
for mode in ["auto", "legacy"]:
    asyncio.run(asyncio.wait_for(visit(target, mode), 30))
print("ok")
