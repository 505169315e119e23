"""Runs the image's two containers with the settings of compose.yaml, and asks one through the other.

With hybrid cgroups, or without the right to raise limits, Podman gives the containers no cgroup. They then cannot use the
host's processes. The omitted settings are printed.
"""

import json
import os
import pathlib
import subprocess
import sys
import time

import yaml

SIZE_MAX = 25_000_000
ROOT = pathlib.Path(__file__).resolve().parents[2]
NAME = f"netmon-check-{os.getpid()}"
# In a mount namespace with only cgroup2, the only version that the runtime supports.
UNIFIED = "umount -R -l /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec \"$@\""


def limits_of_this_host():
    """Flags that a container needs to start here, and the keys of a service that they exclude."""
    if not pathlib.Path("/sys/fs/cgroup/unified").exists() and pathlib.Path("/sys/fs/cgroup/cgroup.controllers").exists():
        return [], set()
    # Podman's default is higher than this; a lower limit is always allowed.
    return ["--cgroups=disabled", "--ulimit=nofile=4096:4096", "--ulimit=nproc=4096:4096"], {"pid"}


def podman(*arguments, check=True):
    command = ["podman", "--cgroup-manager=cgroupfs", *arguments]
    if limits_of_this_host()[0]:
        command = ["unshare", "-m", "sh", "-c", UNIFIED, "sh", *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if check and done.returncode != 0:
        sys.exit(f"podman {arguments[0]}: {done.stderr}")
    return done.stdout


def flags(service, absent):
    """A service of compose.yaml as flags of `podman run`."""
    words = {
        "user": "--user", "network_mode": "--network", "pid": "--pid", "cgroup": "--cgroupns",
        "cap_drop": "--cap-drop", "cap_add": "--cap-add", "security_opt": "--security-opt", "volumes": "--volume",
    }
    given = []
    for key, value in service.items():
        if key in ("image", "command", "depends_on", "restart") or key in absent:
            continue
        if key == "read_only":
            given.append("--read-only")
            continue
        values = value if isinstance(value, list) else [value]
        given += [f"{words[key]}={text}" for text in values]
    return [flag.replace("--volume=socket:", f"--volume={NAME}:") for flag in given]


def main():
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    image = services["netmond"]["image"]
    size = int(json.loads(podman("image", "inspect", image))[0]["Size"])
    print(f"{image}: {size / 1e6:.1f} MB")
    assert size < SIZE_MAX, f"the image has more than {SIZE_MAX} bytes"
    extra, absent = limits_of_this_host()
    print("left out on this host:", ", ".join(sorted(absent)) or "nothing")

    def run(name, *command, detach=False):
        how = ["--detach", f"--name={NAME}"] if detach else ["--rm"]
        return podman("run", *how, *extra, *flags(services[name], absent), image, *command)

    try:
        run("netmond", *services["netmond"]["command"], detach=True)
        end = time.monotonic() + 30
        while "serving" not in subprocess.run(
            ["podman", "logs", NAME], capture_output=True, text=True
        ).stderr:
            assert time.monotonic() < end, "netmond does not serve"
            time.sleep(0.2)
        status = json.loads(run("netmon-mcp", "netmon-mcp", "call", "status", "--json"))
        assert status["daemon"]["uid"] == 65532, status["daemon"]
        missing = [f"{tool['name']}: {tool['reason']}" for tool in status["tools"] if not tool["available"]]
        assert not missing, missing
        print(f"netmond serves {len(status['tools'])} tools as uid 65532, capabilities: {status['daemon']['capabilities']}")
        measured = json.loads(run("netmon-mcp", "netmon-mcp", "call", "network-monitor", "operation=incoming", "duration=1", "--json"))
        assert measured["measured"]["window_ms"] > 900, measured
        print(f"network-monitor measured {measured['interface']} for {measured['measured']['window_ms']} ms")
    finally:
        podman("rm", "--force", NAME, check=False)
        podman("volume", "rm", "--force", NAME, check=False)


main()
