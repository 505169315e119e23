"""The system of the guests with systemd: a minimal Debian 12 in a file system image."""

import os
import subprocess
import tempfile
from pathlib import Path

from kernels import DEBIAN, SECURITY, source

SUITE = "bookworm"
# The needs of the units and of their test scripts.
PACKAGES = (
    "curl systemd systemd-sysv dbus iproute2 jq kmod libelf1 login mawk netbase nftables openssh-client openssh-server "
    "openssl passwd procps python3-minimal libpython3-stdlib util-linux zlib1g"
)
SMALLER = ["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*"]
MEGABYTES = 700  # sparse: a third of it is used
SECONDS = 1200


def image(cache):
    """The image, built once for these packages. Every boot adds the tested files to a temporary copy."""
    path, made_of = cache / f"{SUITE}.ext4", cache / f"{SUITE}.packages"
    if path.exists() and made_of.exists() and made_of.read_text() == PACKAGES:
        return path
    if os.geteuid() != 0:
        raise PermissionError("the system image has files of several users, so root makes it: sudo make vm-service")
    print(f"making {path}", flush=True)
    with tempfile.TemporaryDirectory(prefix="netmon-root.", dir=cache) as folder:
        # Into a tar file: mmdebstrap mounts in a folder of its own while it works, and cleans up itself.
        archive, root, made = (Path(folder, name) for name in ("root.tar", "root", "image"))
        command = ["mmdebstrap", "--quiet", "--mode=root", "--variant=apt", f"--include={PACKAGES.replace(' ', ',')}"]
        command += ["--aptopt=Apt::Install-Recommends false", *(f"--dpkgopt=path-exclude={path}" for path in SMALLER)]
        command += [SUITE, archive]
        command += [source(DEBIAN, SUITE), source(SECURITY, f"{SUITE}-security")]
        run(command)
        root.mkdir()
        run(["tar", "-C", root, "-xf", archive, "--exclude=./dev/*"])
        run(["mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-d", root, made, f"{MEGABYTES}M"])
        made.rename(path)
    made_of.write_text(PACKAGES)
    return path


def run(command):
    """Sends SIGTERM at the timeout, so that the program unmounts its file systems."""
    subprocess.run(["timeout", str(SECONDS), *command], check=True)
