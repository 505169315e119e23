# The kernel tests, one by one: those that this kernel can pass according to the list, of its available tools.
import json
import re

start_all()
machine.wait_for_unit("netmond.service")
status = json.loads(machine.succeed("netmon-mcp call status --json"))
release = re.match(r"(\d+)\.(\d+)", status["kernel"])
assert release, status["kernel"]
kernel = tuple(map(int, release.groups()))
unavailable = [tool["name"].replace("-", "_") for tool in status["tools"] if not tool["available"]]

for line in machine.succeed("cat /etc/netmon-kernel-tests").splitlines():
    name, *since = line.split()
    if name == "#" or (since and tuple(map(int, since[0].split("."))) > kernel):
        continue
    if any(name.split("::")[0] in tool for tool in unavailable):
        continue
    with subtest(name):
        settings = "NETMON_TEST_PATIENCE=5 NETMON_TEST_SOCKET=/run/netmon/netmond.sock"
        output = machine.succeed(f"{settings} kernel-tests {name} 2>&1", timeout=180)
        assert "test result: ok. 1 passed" in output, output
