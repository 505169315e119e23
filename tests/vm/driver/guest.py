"""The bootable guests: a small one, an initramfs with the project's programs and kernel tests; and Debian with systemd
and the files of `make install`."""

import json
import shutil
import subprocess
from pathlib import Path

from initramfs import Archive

FILES = Path(__file__).parent.parent / "guest"
ROOT = Path(__file__).parents[3]

# Real programs that busybox lacks or simplifies.
PROGRAMS = "bash ip nft nsenter setpriv ss stty tc timeout unshare".split()
FOLDERS = "proc sys dev run tmp root system var/empty usr/local/bin".split()
SMALL = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": "root:x:0:\nnetmon:x:990:\nnogroup:x:65534:\n",
    "etc/shadow": "root:*:::::::\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "etc/nsswitch.conf": "hosts: files\n",
}
# For the guests with systemd. The service listens on the network, so it requires a token.
NODES = {"client": "192.168.1.1", "server": "192.168.1.2"}
INSTALLED = {
    "etc/hosts": "127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in NODES.items()),
    "etc/netmon/netmon.toml": '[http]\nlisten = ["0.0.0.0:8080"]\nallowed_hosts = ["server"]\n',
    "etc/systemd/system/netmon-mcp.service.d/tokens.conf": "[Service]\nLoadCredential=tokens:/etc/netmon-tokens\n",
}
TOKENS = "test correct-horse-battery-staple-0123456789\n"


def build(cache):
    """Builds the programs and the kernel tests; name → build path, and a copy without debug information."""
    cargo = ["cargo", "test", "--locked", "--quiet", "--no-run", "--test", "suite", "--test", "stock"]
    cargo += ["--message-format", "json"]
    output = subprocess.run(cargo, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    messages = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    (cache / "bin").mkdir(parents=True, exist_ok=True)
    programs = {}
    for message in messages:
        if path := message.get("executable"):
            name = message["target"]["name"]
            programs[name] = (Path(path), cache / "bin" / name)
            subprocess.run(["strip", "-o", programs[name][1], path], check=True)
    return programs


def initramfs(kernel):
    """The common part of every guest."""
    archive = Archive()
    for folder in FOLDERS:
        archive.folder(folder)
    archive.file("lib/guest/start", FILES / "start")
    archive.file("lib/guest/shell", FILES / "shell")
    archive.program("usr/bin/busybox", shutil.which("busybox"))
    archive.program("usr/bin/kmod", shutil.which("kmod"))
    archive.link("sbin/modprobe", "/usr/bin/kmod")
    for name in PROGRAMS:
        archive.program(f"usr/bin/{name}", shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin"))
    for applet in subprocess.run(["busybox", "--list"], stdout=subprocess.PIPE, text=True, check=True).stdout.split():
        archive.link(f"bin/{applet}", "/usr/bin/busybox")
    archive.link("bin/bash", "/usr/bin/bash")
    archive.tree(f"lib/modules/{kernel.release}", kernel.modules)
    return archive


def small(kernel, programs, path):
    """Writes the initramfs of the small guest."""
    archive = initramfs(kernel)
    archive.file("init", FILES / "init")
    for name, text in SMALL.items():
        archive.text(name, text)
    for name, (built, stripped) in programs.items():
        archive.program(f"usr/bin/{name}", stripped)
        archive.link(built, f"/usr/bin/{name}")  # the tests look where the programs were built
    archive.write(path)


def with_systemd(archive, kernel):
    """Prepares the initramfs of a guest with systemd: it adds the files under payload/ to the system on the disk."""
    archive.file("init", FILES / "init-systemd")
    archive.file("payload/etc/systemd/system/shell.service", FILES / "shell.service")
    archive.file("payload/usr/lib/guest/shell", FILES / "shell")
    archive.tree(f"payload/usr/lib/modules/{kernel.release}", kernel.modules)


def installed(kernel, programs, path):
    """Writes the initramfs of the guests with systemd, with the files of `make install`."""
    archive = initramfs(kernel)
    with_systemd(archive, kernel)
    staged = path.parent / "installed"
    variables = [f"DESTDIR={staged}", "PREFIX=/usr", f"BUILT={programs['netmond'][1].parent}"]
    subprocess.run(["make", "-s", "install", *variables], cwd=ROOT, check=True)
    for name, text in INSTALLED.items():
        archive.text(f"payload/{name}", text)
    archive.text("payload/etc/netmon-tokens", TOKENS, 0o400)
    archive.file("payload/usr/lib/guest/prepare", FILES / "prepare")
    archive.file("payload/usr/bin/upgrade", FILES / "upgrade")
    archive.file("payload/usr/bin/mcp-client", FILES.parent / "mcp-client", 0o755)
    archive.tree("payload", staged)
    archive.write(path)
