# The installed service: it boots, is confined, and answers authorized clients over its socket, HTTP and SSH. A restart
# and an upgrade lose no request. The same script runs in NixOS' tests (service.nix) and on Debian guests, where
# `upgrade` and `mcp-client` are provided as well.
import json

TOKEN = "correct-horse-battery-staple-0123456789"
URL = "http://server:8080/mcp"

start_all()
server.wait_for_unit("netmond.service")
server.wait_for_unit("netmon-mcp.service")
server.wait_for_open_port(8080)
client.wait_for_unit("multi-user.target")


def ask(tool, *arguments):
    """A tool's structured answer, for a member of the group."""
    command = f"netmon-mcp call {tool} {' '.join(arguments)} --json"
    return json.loads(server.succeed(f"su alice -c '{command}' </dev/null"))


def processes():
    """The daemon's process, which changes at a restart."""
    return server.succeed("systemctl show -p MainPID --value netmond.service").strip()


status = ask("status")

with subtest("the daemon serves as a user of its own, without a capability that no tool needs"):
    assert status["daemon"]["connected"], status
    # A user that systemd creates for the lifetime of the service.
    assert status["daemon"]["uid"] >= 61184, status
    server.fail("grep ^netmond: /etc/passwd")
    needed = {capability for tool in status["tools"] for capability in tool["keeps"]}
    assert set(status["daemon"]["capabilities"]) <= needed, status
    proc = f"/proc/{processes()}/status"
    bounding = int(server.succeed(f"awk '/^CapBnd/ {{ print $2 }}' {proc}"), 16)
    assert bounding & ~((1 << 39) | (1 << 38) | (1 << 12)) == 0, hex(bounding)
    assert server.succeed(f"awk '/^NoNewPrivs/ {{ print $2 }}' {proc}").strip() == "1"

with subtest("every tool works, or says why not"):
    for tool in status["tools"]:
        assert tool["available"] or "needs Linux" in tool["reason"], tool

with subtest("the gateway has no privilege, and nothing of eBPF in it"):
    gateway = server.succeed("systemctl show -p MainPID --value netmon-mcp.service").strip()
    for line in server.succeed(f"grep ^Cap /proc/{gateway}/status").splitlines():
        assert int(line.split()[1], 16) == 0, line
    server.fail(f"grep -E 'libbpf|libelf' /proc/{gateway}/maps")

with subtest("who is not a member of the group is refused, and told what to do"):
    refused = server.fail("su mallory -c 'netmon-mcp call snapshot_interfaces' 2>&1 </dev/null")
    assert "usermod -aG netmon" in refused, refused

with subtest("systemd finds little that the services could be denied"):
    for unit, most in [("netmond.service", 20), ("netmon-mcp.service", 13)]:
        server.succeed(f"systemd-analyze security --no-pager --threshold={most} {unit}")

with subtest("an MCP client gets its answer over stdio"):
    answer = json.loads(server.succeed("su alice -c 'mcp-client status stdio netmon-mcp' </dev/null"))
    assert answer["daemon"]["pid"] == status["daemon"]["pid"], answer

with subtest("and over HTTP, if it has the token"):
    answer = json.loads(client.succeed(f"mcp-client status http {URL} {TOKEN}"))
    assert answer["daemon"]["pid"] == status["daemon"]["pid"], answer
    refused = client.fail(f"mcp-client status http {URL} not-{TOKEN} 2>&1")
    assert "401" in refused, refused

with subtest("what was asked is in the journal, in fields"):
    server.wait_until_succeeds("journalctl -u netmond.service NETMON_TOOL=status -o json -n 1 | grep -q NETMON_UID")
    entry = json.loads(server.succeed("journalctl -u netmond.service NETMON_TOOL=status -o json -n 1"))
    assert entry["_SYSTEMD_UNIT"] == "netmond.service" and int(entry["NETMON_MS"]) >= 0, entry

with subtest("and over SSH, with no port of ours open"):
    client.succeed("ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519 </dev/null")
    key = client.succeed("cat /root/.ssh/id_ed25519.pub").strip()
    server.succeed("install -d -m 700 -o alice ~alice/.ssh")
    server.succeed(f"echo 'command=\"netmon-mcp\",restrict {key}' >~alice/.ssh/authorized_keys")
    server.succeed("chown alice ~alice/.ssh/authorized_keys")
    server.wait_for_open_port(22)
    ssh = "ssh -o StrictHostKeyChecking=no -o BatchMode=yes alice@server"
    answer = json.loads(client.succeed(f"mcp-client status stdio {ssh}"))
    assert answer["daemon"]["pid"] == status["daemon"]["pid"], answer

with subtest("a restart loses no question, and says so to whoever is measuring"):
    before = processes()
    window = "netmon-mcp call network-monitor operation=outgoing duration=50"
    server.succeed(f"({window} >/tmp/window 2>&1 || true; touch /tmp/window.ended) </dev/null >/dev/null 2>&1 &")
    server.wait_until_succeeds("netmon-mcp call status --json | grep -q '\"windows\": 1'")
    server.succeed("systemctl restart --no-block netmond.service")
    for _ in range(5):
        assert ask("status")["daemon"]["connected"]
    server.wait_until_succeeds("test -e /tmp/window.ended")
    assert "shutting down" in server.succeed("cat /tmp/window"), "the window did not say why it ended"
    server.wait_until_succeeds(f"test $(systemctl show -p MainPID --value netmond.service) != {before}")

with subtest("an upgrade loses no question either"):
    before = processes()
    server.succeed("(upgrade >/tmp/upgrade 2>&1 || true; touch /tmp/upgrade.ended) </dev/null >/dev/null 2>&1 &")
    while server.execute("test -e /tmp/upgrade.ended")[0] != 0:
        assert ask("status")["daemon"]["connected"]
    server.wait_for_unit("netmond.service")
    assert processes() != before, "the daemon was not restarted"

with subtest("a daemon that is killed, or that hangs, is started again"):
    for signal in ["KILL", "STOP"]:
        before = processes()
        server.succeed(f"systemctl kill --kill-whom=main -s {signal} netmond.service")
        server.wait_until_succeeds(
            f"test $(systemctl show -p MainPID --value netmond.service) -gt 1 -a"
            f" $(systemctl show -p MainPID --value netmond.service) != {before}",
            timeout=180,
        )
        server.wait_for_unit("netmond.service")
        assert ask("status")["daemon"]["connected"]
