"""Runs a test script like NixOS' test driver: machines by name, `subtest`, `start_all`."""

import contextlib
import time


def run_script(path, machines, failures):
    """Runs the script and returns its variables. A failed subtest is noted, and the next one runs."""

    kernel = machines[0].kernel.name

    @contextlib.contextmanager
    def subtest(name):
        started = time.monotonic()
        try:
            yield
            print(f"{kernel:5} ok     {name} ({time.monotonic() - started:.1f} s)", flush=True)
        except AssertionError as e:
            failures.append(f"{path.name}: {name}: {e}")
            print(f"{kernel:5} FAILED {name}: {e}", flush=True)

    scope = {machine.name: machine for machine in machines}
    scope |= {"machines": machines, "subtest": subtest, "start_all": lambda: [machine.start() for machine in machines]}
    exec(compile(path.read_text(), path, "exec"), scope)
    return scope
