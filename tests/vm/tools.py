# Every tool, called on a host with continuous known events: each answer must show them. The same script runs in NixOS'
# tests (tools.nix) and on Debian's kernels (make vm-test), and needs only bash there.
import json
import re

# A refused connect, a UDP datagram to a closed port, an unanswered DNS query: on loopback, four times per second.
TRAFFIC = r"""
query='\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04test\x07invalid\x00\x00\x01\x00\x01'
while :; do
	: >/dev/tcp/127.0.0.1/9
	printf '%01000d' 0 >/dev/udp/127.0.0.1/9
	printf "$query" >/dev/udp/127.0.0.1/53
	sleep 0.25
done
"""


def begin(question):
    """Asks in the background; the file names contain the tool and its operation."""
    name = "/tmp/" + "-".join(question.split()[:2]).replace("=", "-")
    run = f"netmon-mcp call {question} --json >{name} 2>{name}.said && code=0 || code=$?; echo $code >{name}.code"
    machine.succeed(f"rm -f {name}.code; ({run}) </dev/null >/dev/null 2>&1 &")
    return name


def end(name):
    """The structured answer, or the tool's error text."""
    code = machine.wait_until_succeeds(f"cat {name}.code 2>/dev/null").strip()
    if code == "0":
        return json.loads(machine.succeed(f"cat {name}")), None
    return None, machine.succeed(f"cat {name}.said").strip()


def some(rows, **wanted):
    """Whether a row has these values; `a__b` is the field b of a."""
    def value(row, path):
        for field in path.split("__"):
            row = (row or {}).get(field)
        return row
    return any(all(value(row, path) == it for path, it in wanted.items()) for row in rows)


# Requests, all sent at once, and the required content of each answer.
EXPECTED = [
    (
        "network-monitor operation=incoming interface=lo duration=4",
        lambda a: a["by_protocol"]["udp"] > 0 and a["by_protocol"]["tcp"] > 0,
    ),
    ("network-monitor operation=outgoing duration=5", lambda a: some(a["connections"], remote__port=9)),
    ("snapshot_interfaces", lambda a: some(a["interfaces"], name="lo")),
    (
        "top_traffic duration_ms=4000",
        lambda a: a["total"]["tx_bytes"] >= 1000 or some(a["measured"]["limits"], code="udp_not_counted"),
    ),
    (
        "trace_connections duration_ms=4000 outcome=failed",
        lambda a: some(a["connections"], outcome="refused", remote__port=9, owner__process="bash"),
    ),
    ("snapshot_sockets", lambda a: "listeners" in a),
    ("profile_tcp duration_ms=4000", lambda a: "remotes" in a),
    ("trace_latency duration_ms=4000", lambda a: "stages" in a),
    (
        "trace_drops duration_ms=4000 include_benign=true",
        lambda a: some(a["drops"], protocol="udp", destination__address="127.0.0.1"),
    ),
    ("trace_dns duration_ms=4000", lambda a: some(a["queries"], name="test.invalid", answered=False)),
    (
        "diagnose duration_ms=4000",
        lambda a: some(a["findings"], code="connection_refused") or "connection_refused" in " ".join(a["blind_spots"]),
    ),
    ("status", lambda a: a["daemon"]["connected"]),
]
KNOWN = {question.split()[0] for question, _ in EXPECTED}

start_all()
# With a slow verifier, the daemon may load longer than a request waits.
is_loaded = "answer=$(netmon-mcp call status --json) && [[ $answer = *'\"connected\": true'* ]]"
status = json.loads(machine.wait_until_succeeds(f"{is_loaded} && echo \"$answer\"", timeout=300))
# diagnose asks the other tools, so that all of them are loaded when it has answered. Where it is unavailable, it says so.
for _ in range(5):
    if machine.execute("netmon-mcp call diagnose duration_ms=100 >/dev/null 2>&1")[0] == 0:
        break
machine.execute("netmon-mcp call trace_latency duration_ms=100 >/dev/null 2>&1")  # diagnose does not ask it
tools = {tool["name"]: tool for tool in status["tools"]}
version = re.match(r"(\d+)\.(\d+)", status["kernel"])
assert version, status["kernel"]
release = tuple(map(int, version.groups()))
limits: dict[str, list[str]] = {name: [] for name in tools}  # the gaps of this kernel, in the tool's words

machine.succeed(f"cat >/tmp/traffic <<'END'\n{TRAFFIC}END")
machine.succeed("bash /tmp/traffic >/dev/null 2>&1 & echo $! >/tmp/traffic.pid")
questions = [(question, shows) for question, shows in EXPECTED if question.split()[0] in tools]
questions += [(name, lambda a: True) for name in tools if name not in KNOWN]  # every other tool answers
# diagnose asks all the others itself: it is asked when they have answered.
asked = [(question, shows, begin(question)) for question, shows in questions if not question.startswith("diagnose")]
asked += [(question, shows, "") for question, shows in questions if question.startswith("diagnose")]
for question, shows, file in asked:
    name = question.split()[0]
    with subtest(question):
        answer, refused = end(file or begin(question))
        if answer is None:
            needs = re.search(r"needs Linux ([0-9]+)\.([0-9]+)", refused)
            assert needs and tuple(map(int, needs.groups())) > release, refused
            limits[name].append(refused.splitlines()[-1].removeprefix("netmon-mcp: "))
        else:
            assert shows(answer), f"{question} does not show what happens: {answer}"
            said = answer.get("measured", {}).get("limits", [])
            limits[name] += [limit["text"] for limit in said if "kernel" in limit["text"] or "Linux" in limit["text"]]
        if name == "diagnose" and not all(tool["available"] for tool in tools.values()):
            limits[name].append("It judges nothing that only an unavailable tool sees, and says so in blind_spots.")
machine.succeed("kill $(cat /tmp/traffic.pid)")
