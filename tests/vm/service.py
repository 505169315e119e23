# The installed service: it boots, is enclosed, and answers whoever may ask, over its socket, HTTP and SSH.
# The same script runs in NixOS' tests (service.nix) and on Debian guests (make vm-test).
import json

TOKEN = "correct-horse-battery-staple"

start_all()
server.wait_for_unit("netmond.service")
server.wait_for_unit("netmon-mcp.service")
server.wait_for_open_port(8080)
client.wait_for_unit("multi-user.target")


def call(tool, *arguments, user="alice"):
    """A tool's structured answer, from the command line, as `user`."""
    return json.loads(server.succeed(f"su {user} -c 'netmon-mcp call {tool} {' '.join(arguments)} --json' </dev/null"))


with subtest("the daemon runs as a user of its own and serves without a capability that it does not need"):
    status = call("status")
    assert status["daemon"]["connected"], status
    assert status["daemon"]["uid"] != 0, status
    allowed = {capability for tool in status["tools"] for capability in tool["keeps"]}
    assert set(status["daemon"]["capabilities"]) <= allowed, status
    proc = f"/proc/{status['daemon']['pid']}/status"
    bounding = int(server.succeed(f"awk '/^CapBnd/ {{ print $2 }}' {proc}"), 16)
    assert bounding & ~((1 << 39) | (1 << 38) | (1 << 12)) == 0, hex(bounding)
    assert server.succeed(f"awk '/^NoNewPrivs/ {{ print $2 }}' {proc}").strip() == "1"

with subtest("every tool works, or says why not"):
    for tool in status["tools"]:
        assert tool["available"] or tool["reason"], tool

with subtest("the gateway has no privilege at all"):
    pid = server.succeed("systemctl show -p MainPID --value netmon-mcp.service").strip()
    for line in server.succeed(f"grep ^Cap /proc/{pid}/status").splitlines():
        assert int(line.split()[1], 16) == 0, line
    server.fail(f"grep -E 'libbpf|libelf' /proc/{pid}/maps")

with subtest("who is not a member of the group is refused, with what to do"):
    refused = server.fail("su mallory -c 'netmon-mcp call snapshot_interfaces' 2>&1 </dev/null")
    assert "usermod -aG netmon" in refused, refused

with subtest("HTTP answers whoever shows the token, and nobody else"):
    url = "http://server:8080/mcp"
    ping = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "ping"})
    curl = f"curl -s -o /dev/null -w '%{{http_code}}' -H 'Content-Type: application/json' -H 'Accept: application/json, text/event-stream' -d '{ping}' {url}"
    assert client.succeed(curl).strip() == "401"
    assert client.succeed(f"{curl} -H 'Authorization: Bearer wrong'").strip() == "401"
    assert client.succeed(f"{curl} -H 'Authorization: Bearer {TOKEN}'").strip() not in ("401", "403")

with subtest("systemd finds little that the services could be denied"):
    for unit, most in [("netmond.service", 20), ("netmon-mcp.service", 13)]:
        server.succeed(f"systemd-analyze security --no-pager --threshold={most} {unit}")

with subtest("a restart is not noticed by who asks next"):
    server.succeed("systemctl restart netmond.service")
    assert call("status")["daemon"]["pid"] != status["daemon"]["pid"]
    server.succeed("systemctl kill -s KILL netmond.service")
    server.wait_until_succeeds("systemctl is-active netmond.service")
    assert call("status")["daemon"]["connected"]
