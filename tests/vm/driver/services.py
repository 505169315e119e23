"""Two hosts with systemd on a virtual network, one of them with the service of `make install`."""

import tempfile
import time
from pathlib import Path

import guest
import kernels
import root
from hub import Hub
from machine import GuestDied, Machine
from script import run_script

SCRIPTS = Path(__file__).parent.parent
SECONDS = 1200  # for one script on a busy machine; an idle one needs a fifth of it


def test(name, programs, cache):
    """Runs the scripts on this kernel, each on new guests, and returns the failures."""
    kernel = kernels.fetch(name, cache / "kernels")
    image = root.image(cache)
    failures = []
    for script in "service.py", "pair.py":
        print(f"{kernel.release}: {script}", flush=True)
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="netmon-vm.") as folder:
            machines = hosts(kernel, programs, image, Path(folder), started + SECONDS)
            try:
                run_script(SCRIPTS / script, machines, failures)
            except (GuestDied, AssertionError) as e:
                failures.append(f"{script}: {e}")
                print(f"  FAILED {e}", flush=True)
            finally:
                for machine in machines:
                    machine.crash()
        print(f"{kernel.release}: {script}: {time.monotonic() - started:.0f} s", flush=True)
    return failures


def hosts(kernel, programs, image, folder, deadline):
    """The hosts, not started."""
    hub = Hub(folder, len(guest.NODES))
    guest.installed(kernel, programs, folder / "initramfs")
    machines = []
    for number, (name, address) in enumerate(guest.NODES.items()):
        devices = ["-drive", f"file={image},if=virtio,format=raw,snapshot=on"]
        devices += hub.device(number, f"52:54:00:12:01:0{number + 1}")
        line = f"address={address}/24"
        machines.append(Machine(name, kernel, folder / "initramfs", folder, deadline, line, devices))
    return machines
