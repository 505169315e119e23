#!/usr/bin/python3
"""Switches this machine to another system, in NixOS' order: services with a changed unit stop, with their sockets, before
the replacement, and start after it. Services with X-StopIfChanged=false only restart."""

import subprocess
import sys
from pathlib import Path

NEW = Path("@system@")
OLD = Path("/run/current-system").resolve()
UNITS = "etc/systemd/system"


def systemctl(verb, units):
    if units:
        print("systemctl", verb, *units, flush=True)
        subprocess.run(["systemctl", verb, *units], check=True)


def is_active(unit):
    return subprocess.run(["systemctl", "--quiet", "is-active", unit]).returncode == 0


def main():
    if sys.argv[1:] != ["test"]:
        sys.exit("usage: switch-to-configuration test")
    stop, start, restart = [], [], []
    for before in sorted((OLD / UNITS).glob("*.*")):
        after = NEW / UNITS / before.name
        if before.is_dir() or not is_active(before.name):
            continue
        if not after.exists():
            stop.append(before.name)
        elif before.read_text() == after.read_text() or before.suffix != ".service":
            continue  # NixOS ignores a changed socket
        elif "X-StopIfChanged=false" in after.read_text().splitlines():
            restart.append(before.name)
        else:
            socket = f"{before.stem}.socket"
            has_socket = is_active(socket)
            stop += [socket, before.name] if has_socket else [before.name]
            start.append(socket if has_socket else before.name)
    wanted = {path.name for path in (NEW / UNITS).glob("multi-user.target.wants/*")}
    start += sorted(unit for unit in wanted if not is_active(unit) and unit not in start)
    systemctl("stop", stop)
    subprocess.run([NEW / "activate"], check=True)
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    systemctl("restart", restart)
    systemctl("start", start)


main()
