"""One guest under QEMU, controlled through a root shell on its virtio console.

It has the methods of the NixOS test driver that our scripts use, with the same meaning, so one script serves both. It
never uses KVM: a stock kernel hangs under some variants of it, and emulation in one thread is fast enough and has never
failed.
"""

import base64
import shlex
import socket
import subprocess
import threading
import time

# thread=single: with one thread per processor, QEMU 7.2 races with the kernel's patching of its own code, about once in
# a hundred boots. Both processors still exist, so per-CPU maps are tested.
QEMU = (
    "qemu-system-x86_64 -M pc -cpu max -accel tcg,thread=single -smp 2 -m 1G -nodefaults -display none -no-reboot "
    "-serial stdio -device virtio-serial -device virtio-rng-pci"
)
# no_timer_check: on a busy host the kernel takes a late interrupt for a broken timer, and panics.
# The rest only saves time: self-tests of the kernel, and waiting for absent hardware.
COMMAND_LINE = (
    "console=ttyS0 panic=-1 quiet no_timer_check net.ifnames=0 mitigations=off nokaslr cryptomgr.notests audit=0 apparmor=0 "
    "initcall_blacklist=load_system_certificate_list,jent_mod_init,crypto_kdf108_init,i8042_init"
)
BOOT_SECONDS = 240
READY = b"Spawning backdoor root shell..."


class GuestDied(Exception):
    """QEMU ended, or the guest does not respond."""


class Machine:
    """A guest. It ends with `crash`, or with this process in any case."""

    started = []

    def __init__(self, name, kernel, initramfs, folder, deadline, command_line="", devices=()):
        self.name, self.kernel, self.initramfs, self.folder = name, kernel, initramfs, folder
        self.deadline, self.command_line, self.devices = deadline, command_line, devices
        self.console = folder / f"{name}.console"
        self.qemu = self.shell = None

    @classmethod
    def end_all(cls):
        """Ends every guest, including those that another thread is starting."""
        for machine in cls.started:
            machine.deadline = 0
            if qemu := machine.qemu:
                qemu.kill()

    def start(self):
        if self.qemu:
            return
        Machine.started.append(self)
        path = self.folder / f"{self.name}.shell"
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(1)
            listener.settimeout(20)
            command = ["setpriv", "--pdeathsig", "KILL", *QEMU.split()]
            command += ["-kernel", self.kernel.image, "-initrd", self.initramfs]
            command += ["-append", f"{COMMAND_LINE} name={self.name} {self.command_line}"]
            command += ["-chardev", f"socket,id=shell,path={path}", "-device", "virtconsole,chardev=shell"]
            with self.console.open("wb") as console:
                self.qemu = subprocess.Popen(
                    [*map(str, command), *self.devices], stdin=subprocess.DEVNULL, stdout=console, stderr=console
                )
            self.shell = listener.accept()[0].makefile("rwb", buffering=0)
        self.booted = False

    def crash(self):
        """Ends the guest at once."""
        if self.qemu:
            self.qemu.kill()
            self.qemu.wait()
        self.qemu = None

    def connect(self):
        self.start()
        if not self.booted:
            end = min(self.deadline, time.monotonic() + BOOT_SECONDS)
            while READY not in self._line(end):
                pass
            self.booted = True

    def execute(self, command, check_return=True, timeout=60):
        """Runs a command with bash and returns its exit code and its output."""
        self.connect()
        script = shlex.quote(f"set -euo pipefail; {command}")
        line = f"o=$(timeout {timeout} bash -c {script} </dev/null | base64 -w 0; exit ${{PIPESTATUS[0]}}); echo $? $o\n"
        self.shell.write(line.encode())
        # The guest's clock ends the command; our longer timeout ends a hanging guest.
        code, _, output = self._line(min(self.deadline, time.monotonic() + 2 * timeout + 10)).partition(b" ")
        return int(code), base64.b64decode(output).decode(errors="replace")

    def succeed(self, *commands, timeout=60):
        output = ""
        for command in commands:
            code, printed = self.execute(command, timeout=timeout)
            if code:
                raise AssertionError(f"{self.name}: `{command}` failed ({code}): {printed}")
            output += printed
        return output

    def fail(self, *commands, timeout=60):
        output = ""
        for command in commands:
            code, printed = self.execute(command, timeout=timeout)
            if code == 0:
                raise AssertionError(f"{self.name}: `{command}` succeeded: {printed}")
            output += printed
        return output

    def wait_until_succeeds(self, command, timeout=60):
        end = time.monotonic() + timeout
        while True:
            code, printed = self.execute(command, timeout=timeout)
            if code == 0:
                return printed
            if time.monotonic() > end:
                raise AssertionError(f"{self.name}: `{command}` did not succeed within {timeout} s: {printed}")
            time.sleep(0.1)

    def wait_for_unit(self, unit, timeout=300):
        self.wait_until_succeeds(f"systemctl is-active {unit} || systemctl is-failed {unit}", timeout)
        self.succeed(f"systemctl is-active {unit} || {{ systemctl status {unit}; exit 1; }}")

    def wait_for_open_port(self, port, addr="localhost", timeout=180):
        self.wait_until_succeeds(f"exec 3<>/dev/tcp/{addr}/{port}", timeout)

    def systemctl(self, question):
        return self.execute(f"systemctl {question}")

    def shutdown(self):
        self.connect()
        self.shell.write(b"poweroff\n")
        try:
            self.qemu.wait(max(1, self.deadline - time.monotonic()))
        finally:
            self.crash()

    def _line(self, end):
        """The next line from the guest. The watchdog closes QEMU, which ends the read."""
        watchdog = threading.Timer(max(0, end - time.monotonic()), self.qemu.kill)
        watchdog.start()
        try:
            line = self.shell.readline()
        except OSError:
            line = b""
        finally:
            watchdog.cancel()
        if not line:
            raise GuestDied(f"{self.name} ended or hung; its console ends:\n{self.last_words()}")
        return line

    def last_words(self, lines=15):
        text = self.console.read_text(errors="replace").splitlines()
        return "\n".join(text[-lines:])
