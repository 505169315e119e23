"""Runs a NixOS test on Debian guests, as the builder of its derivation (tests/nix/stub/nixos-test.nix). Each guest is
Debian with systemd, plus the node's system and its closure in the Nix store.

The sandbox has the kernels and the system image in /guests."""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.dont_write_bytecode = True
import guest
from hub import Hub
from kernels import Kernel
from machine import Machine
from script import run_script

GUESTS = Path("/guests")
FILES = guest.FILES


def main():
    test = json.loads(Path(".attrs.json").read_text())
    if not test["kernel"]:
        sys.exit("Debian has no kernel of this series: this test needs nixpkgs")
    folder = GUESTS / "kernels" / test["kernel"]
    if not (folder / "release").exists():
        sys.exit(f"{folder} is missing: `make vm-prerequisites` and `tests/vm/driver --fetch {test['kernel']}` fetch it")
    kernel = Kernel(test["kernel"], (folder / "release").read_text(), folder / "vmlinuz", folder / "modules")
    script = Path("testScript.py")
    script.write_text(test["testScript"])
    failures = []
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        machines = nodes(test, kernel, Path(work), started + test["seconds"])
        try:
            run_script(script, machines, failures)
        except BaseException:
            for machine in machines:
                print(f"the console of {machine.name} ends:\n{machine.last_words(60)}", flush=True)
            raise
        finally:
            for machine in machines:
                machine.crash()
    print(f"{kernel.release}: {time.monotonic() - started:.0f} s, {len(failures)} failed", flush=True)
    if not failures:
        Path(os.environ["out"]).write_text(kernel.release)
    sys.exit(bool(failures))


def nodes(test, kernel, folder, deadline):
    """The guests, not started."""
    hub = Hub(folder, len(test["systems"]))
    machines = []
    for port, (name, system) in enumerate(sorted(test["systems"].items())):
        path = folder / f"{name}.initramfs"
        initramfs(kernel, system, [it["path"] for it in test[f"closure-{name}"]]).write(path)
        devices = ["-drive", f"file={GUESTS / 'bookworm.ext4'},if=virtio,format=raw,snapshot=on"]
        devices += hub.device(port, f"52:54:00:12:01:{port + 1:02x}")
        line = f"address={test['addresses'][name]}/24"
        machines.append(Machine(name, kernel, path, folder, deadline, line, devices))
    return machines


def initramfs(kernel, system, closure):
    """The files that turn Debian into the node's system."""
    archive = guest.initramfs(kernel)
    guest.with_systemd(archive, kernel)
    prepare = f"#!/bin/bash\nset -e\n{system}/activate\nsystemctl --quiet enable shell.service\nsystemctl --quiet mask getty.target\n"
    archive.text("payload/usr/lib/guest/prepare", prepare, 0o755)
    links = "".join(f"L+ /run/{name}-system - - - - {system}\n" for name in ("booted", "current"))
    archive.text("payload/etc/tmpfiles.d/nixos.conf", links)
    for path in map(Path, closure):
        if path.is_dir():
            archive.tree(f"payload{path}", path)
        else:
            archive.file(f"payload{path}", path)
    return archive


main()
