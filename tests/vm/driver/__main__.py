#!/usr/bin/env python3
"""Boots stock Debian kernels under QEMU and tests the project on them: its kernel tests, and the acceptance script.

  tests/vm/driver [KERNEL…]              a table of kernels, tools and results; default: 6.1 and 6.12
  tests/vm/driver --service [KERNEL…]    two hosts with systemd and the installed service; default: 6.12

kernels.py lists the kernels; `all` selects every one. Downloads and builds stay in target/vm.
"""

import argparse
import contextlib
import functools
import json
import os
import signal
import sys
import tempfile
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.dont_write_bytecode = True
import guest
import kernels
import report
import root
import services
from machine import GuestDied, Machine
from script import run_script

CACHE = guest.ROOT / "target/vm"
SCRIPTS = Path(__file__).parent.parent
# Limits for a busy machine; an idle one needs a fifth of them.
TEST_SECONDS = 90
KERNEL_SECONDS = 900
# Guests per kernel, which share its tests: most of a test's time is its window, which costs nothing.
GUESTS = 2
# A window is a length of time, and an emulated processor that waits for a real one can miss it. A fault of the kernel
# or of our code fails twice.
ATTEMPTS = 2


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernels", nargs="*", metavar="KERNEL")
    parser.add_argument("--service", action="store_true", help="test the installed service instead")
    parser.add_argument("--table", action="store_true", help="only put the last results of each kernel in docs/kernels.md")
    parser.add_argument("--fetch", action="store_true", help="only fetch the kernels, and make the image with systemd")
    parser.add_argument("--run", metavar="COMMAND", help="only boot, run this, and print what it prints")
    arguments = parser.parse_args()
    default = ["6.12"] if arguments.service else ["6.1", "6.12"]
    names = list(kernels.SOURCES) if "all" in arguments.kernels else arguments.kernels or default
    if unknown := set(names) - set(kernels.SOURCES):
        parser.error(f"there is no kernel {', '.join(sorted(unknown))}; known are {', '.join(kernels.SOURCES)}, and all")
    if arguments.table:
        saved = {path.stem: json.loads(path.read_text()) for path in (CACHE / "results").glob("*.json")}
        return report.update(guest.ROOT / "docs/kernels.md", [saved[name] for name in kernels.SOURCES if name in saved])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to stop"))  # so that `finally` ends the guests
    (CACHE / "results").mkdir(parents=True, exist_ok=True)
    if arguments.fetch:
        root.image(CACHE)
        for name in names:
            kernels.fetch(name, CACHE / "kernels")
        return
    programs = guest.build(CACHE)
    if arguments.run:
        sys.exit(max(run_on(name, programs, arguments.run) for name in names))
    if arguments.service:
        sys.exit(any([services.test(name, programs, CACHE) for name in names]))
    results = test_kernels(names, programs)
    print("\n" + report.table(results))
    sys.exit(any(result["failures"] for result in results))


@contextlib.contextmanager
def prepared(name, programs):
    """This kernel and a folder with the initramfs of its small guests."""
    kernel = kernels.fetch(name, CACHE / "kernels")
    with tempfile.TemporaryDirectory(prefix="netmon-vm.") as folder:
        guest.small(kernel, programs, Path(folder) / "initramfs")
        yield kernel, Path(folder)


@contextlib.contextmanager
def booted(kernel, folder):
    """A small guest, which is always removed afterwards."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=folder) as own:
        machine = Machine("machine", kernel, folder / "initramfs", Path(own), started + KERNEL_SECONDS)
        try:
            boot(machine)
            print(f"{kernel.release}: booted in {time.monotonic() - started:.0f} s", flush=True)
            yield machine
        except BaseException:
            print(f"the console of {kernel.release} ends:\n{machine.last_words()}")
            raise
        finally:
            machine.crash()


def run_on(name, programs, command):
    with prepared(name, programs) as (kernel, folder), booted(kernel, folder) as machine:
        code, output = machine.execute(f"{{ {command}\n}} 2>&1", timeout=TEST_SECONDS)
        print(output)
        return code


def test_kernels(names, programs):
    """In parallel: QEMU emulates in one thread, so each guest uses at most one processor."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            return list(pool.map(functools.partial(test_kernel, programs=programs), names))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            Machine.end_all()  # the tests of these guests fail at once then
            raise


def test_kernel(name, programs):
    """Tests everything on a kernel, and returns its column of the table."""
    started = time.monotonic()
    result = {"name": name, "release": name, "tools": {}, "held": []}
    try:
        with prepared(name, programs) as (kernel, folder):
            result["release"] = kernel.release
            result |= examine(kernel, folder)
    except Exception as e:
        result["failures"] = [f"{type(e).__name__}: {e}"]
    result["seconds"] = round(time.monotonic() - started)
    (CACHE / "results" / f"{name}.json").write_text(json.dumps(result, indent=1))
    for failure in result["failures"]:
        print(f"{result['release']}: FAILED: {failure}")
    print(f"{result['release']}: {result['seconds']} s", flush=True)
    return result


def boot(machine):
    """A second try, only before our programs ran: emulation on a busy machine can miss the kernel's own timeouts."""
    try:
        machine.connect()
    except GuestDied as e:
        print(f"{machine.kernel.release}: {e}\nbooting once more", flush=True)
        machine.crash()
        machine.connect()


def examine(kernel, folder):
    """The acceptance script in one guest, and the kernel tests in all: each guest takes the next test."""
    tests, passed, accepted, failures = deque(wanted(kernel)), {}, {}, []

    def guest_of(number):
        with booted(kernel, folder) as machine:
            machine.succeed("RUST_LOG=warn netmond >/dev/ttyS0 2>&1 &")
            machine.wait_until_succeeds("netmon-mcp call snapshot_interfaces >/dev/null 2>&1")
            if number == 0:
                accepted.update(run_script(SCRIPTS / "tools.py", [machine], failures))
            kernel_tests(machine, tests, passed)

    with ThreadPoolExecutor(GUESTS) as pool:
        list(pool.map(guest_of, range(GUESTS)))
    failures += [f"{test} failed" for test, it_passed in passed.items() if not it_passed]
    tools, status = {}, accepted["status"]
    for tool in status["tools"]:
        mine = [it_passed for test, it_passed in passed.items() if is_about(test, tool["name"])]
        tools[tool["name"]] = {
            "available": tool["available"],
            "reason": tool.get("reason"),
            "limits": accepted["limits"].get(tool["name"], []),
            "keeps": tool["keeps"],
            "tests": len(mine),
            "failed": mine.count(False),
        }
    return {"tools": tools, "held": status["daemon"]["capabilities"], "failures": failures}


def is_about(test, tool):
    return test.split("::")[0] in tool.replace("-", "_")


def wanted(kernel):
    """The tests of the project's suite for this kernel."""
    for line in (SCRIPTS / "kernel-tests").read_text().splitlines():
        name, *since = line.split()
        if name != "#" and not (since and kernel.version() < kernels.version(since[0])):
            yield name


def kernel_tests(machine, tests, passed):
    """Takes tests until none is left and notes the results, except for tools that this kernel lacks."""
    status = json.loads(machine.succeed("netmon-mcp call status --json"))
    unavailable = {tool["name"] for tool in status["tools"] if not tool["available"]}
    with contextlib.suppress(IndexError):
        while name := tests.popleft():
            if not any(is_about(name, tool) for tool in unavailable):
                passed[name] = any(passes(machine, name) for _ in range(ATTEMPTS))


def passes(machine, test):
    settings = "NETMON_TEST_PATIENCE=5 NETMON_TEST_SOCKET=/run/netmon/netmond.sock"
    started = time.monotonic()
    program = "suite" if "::" in test else "stock"
    code, output = machine.execute(f"{settings} {program} --exact {test} 2>&1", timeout=TEST_SECONDS)
    passed = code == 0 and "test result: ok. 1 passed" in output
    outcome = "ok    " if passed else "FAILED"
    print(f"{machine.kernel.name:5} {outcome} {test} ({time.monotonic() - started:.1f} s)", flush=True)
    if not passed:
        print(output, flush=True)
    return passed


if __name__ == "__main__":
    main()
