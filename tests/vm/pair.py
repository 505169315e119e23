# Two hosts: both attribute traffic of known size alike, and dropped packets of one host are found, with the reason. The
# same script runs in NixOS' tests (pair.nix) and on Debian guests.
import json

BYTES = 4_000_000

start_all()
for node in [client, server]:
    node.wait_for_unit("netmond.service")


def begin(node, tool, *arguments):
    """Starts a measurement and waits until its programs are attached, or until it ends."""
    command = f"netmon-mcp call {tool} {' '.join(arguments)} --json"
    run = f"{command} >/tmp/answer 2>&1 || true; touch /tmp/ended"
    node.succeed(f"rm -f /tmp/ended; ({run}) </dev/null >/dev/null 2>&1 &")
    is_open = f"netmon-mcp call status --json | jq -e '.tools[] | select(.name == \"{tool}\") | .windows > 0'"
    node.wait_until_succeeds(f"test -e /tmp/ended || {is_open}")


def end(node):
    node.wait_until_succeeds("test -e /tmp/ended", timeout=90)
    answer = node.succeed("cat /tmp/answer; rm /tmp/answer /tmp/ended")
    assert answer.startswith("{"), answer
    return json.loads(answer)


def findings(answer):
    return {finding["code"]: finding for finding in answer["findings"] if finding["severity"] != "info"}


# cat reads all data on port 9000, in a unit of its own.
server.succeed("systemd-run -E PATH --unit=sink systemd-socket-activate --accept --inetd -l 9000 sh -c 'cat >/dev/null'")
server.wait_for_open_port(9000)

with subtest("traffic of known size belongs to whoever sent it, and to whoever received it"):
    for node in [client, server]:
        begin(node, "top_traffic", "duration_ms=20000", "group_by=unit")
    # The unit outlives the window: the name of an ended unit is lost.
    send = f"head -c {BYTES} /dev/zero >/dev/tcp/server/9000; touch /tmp/sent; sleep infinity"
    client.succeed(f"systemd-run -E PATH --unit=source bash -c '{send}' </dev/null")
    client.wait_until_succeeds("test -e /tmp/sent")
    for node, unit, counter in [(client, "source.service", "tx_bytes"), (server, "sink.service", "rx_bytes")]:
        answer = end(node)
        rows = [row for row in answer["rows"] if (row["owner"] or {}).get("unit") == unit]
        assert len(rows) == 1, answer
        assert BYTES <= rows[0][counter] < BYTES * 1.01, rows

with subtest("no fault is found on a quiet host"):
    begin(server, "diagnose", "duration_ms=3000")
    assert not findings(end(server))

with subtest("packets that a firewall drops are found, with the port"):
    server.succeed("nft add table inet fault")
    server.succeed("nft add chain inet fault input '{ type filter hook input priority 0; }'")
    server.succeed("nft add rule inet fault input tcp dport 9000 drop")
    begin(server, "diagnose", "duration_ms=20000")
    client.execute("timeout 5 bash -c ': >/dev/tcp/server/9000'")
    found = findings(end(server))
    assert "firewall_drop" in found, found
    assert "9000" in json.dumps(found["firewall_drop"]), found
    server.succeed("nft delete table inet fault")
