"""Downloads Debian's kernels, by package name, into target/vm/kernels. Existing ones are kept: remove the folder for
newer ones."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
# Debian's two archives, by the label in their Release files; `mirror` is this machine's source.
DEBIAN = "Debian"
SECURITY = "Debian-Security"

# Name → archive, suite and package: the newest matching version. Old suites and versions leave the archive in time, so
# only 6.1 and 6.12 of Debian 12 are always tested.
SOURCES = {
    "5.10": (SECURITY, "bullseye-security", r"linux-image-5\.10\.[\d.]+-\d+-cloud-amd64"),
    "6.1": (SECURITY, "bookworm-security", r"linux-image-6\.1\.[\d.]+-\d+-cloud-amd64"),
    "6.12": (SECURITY, "bookworm-security", r"linux-image-6\.12\.\d+\+deb12-cloud-amd64"),
    "6.18": (DEBIAN, "trixie-backports", r"linux-image-6\.18\.\d+\+deb13-cloud-amd64"),
    # Since 6.19 the kernel and its modules are separate packages.
    "7": (DEBIAN, "trixie-backports", r"linux-(?:binary|modules)-7\.[\d.]+\+deb13-cloud-amd64"),
}

# The kernel modules for the guest: the network, and QEMU's devices.
MODULES = (
    "kernel/net",
    "kernel/lib",
    "kernel/crypto",
    "kernel/fs/overlayfs",
    "kernel/drivers/block/virtio_blk.ko",
    "kernel/drivers/char/virtio_console.ko",
    "kernel/drivers/char/hw_random",
    "kernel/drivers/net/dummy.ko",
    "kernel/drivers/net/geneve.ko",
    "kernel/drivers/net/ifb.ko",
    "kernel/drivers/net/net_failover.ko",
    "kernel/net/core/failover.ko",
    "kernel/drivers/net/tun.ko",
    "kernel/drivers/net/veth.ko",
    "kernel/drivers/net/virtio_net.ko",
    "kernel/drivers/net/vxlan.ko",  # until Linux 5.17
    "kernel/drivers/net/vxlan",
    "kernel/drivers/virtio",
)


@dataclass
class Kernel:
    """A bootable kernel."""

    name: str
    release: str
    image: Path
    modules: Path  # a folder with modules.dep, for /lib/modules/RELEASE

    def version(self):
        return version(self.release)


def version(text):
    """Linux 6.12.117+deb12-cloud-amd64, as (6, 12)."""
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])


def fetch(name, cache):
    """The kernel with this name of SOURCES."""
    folder = cache / name
    if not (folder / "release").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        download(name, folder)
    release = (folder / "release").read_text()
    return Kernel(name, release, folder / "vmlinuz", folder / "modules")


def download(name, folder):
    apt = private_apt(folder / "apt", *SOURCES[name][:2])
    packages = newest(SOURCES[name][2], run(*apt("apt-cache"), "pkgnames"))
    if not packages:
        raise LookupError(f"{SOURCES[name][1]} has no kernel {name} any more")
    unpacked = folder / "unpacked"
    for package in packages:
        run(*apt("apt-get"), "download", "-qq", package, cwd=folder)
    for archive in folder.glob("*.deb"):
        run("dpkg-deb", "-x", archive, unpacked)
        archive.unlink()
    (found,) = [*unpacked.glob("lib/modules/*"), *unpacked.glob("usr/lib/modules/*")]
    release = found.name
    image = next(path for path in (unpacked / f"boot/vmlinuz-{release}", found / "vmlinuz") if path.exists())
    image.rename(folder / "vmlinuz")
    keep_modules(found, folder / "modules", folder / "base", release)
    shutil.rmtree(unpacked)
    shutil.rmtree(folder / "apt")
    (folder / "release").write_text(release)


def keep_modules(source, target, base, release):
    """Copies and indexes the guest's modules: Debian's packages index them during the installation."""
    kept = base / "lib/modules" / release
    kept.mkdir(parents=True)
    for index in source.glob("modules.*"):
        shutil.copy(index, kept)
    for wanted in MODULES:
        for path in [*source.glob(wanted), *source.glob(wanted + ".xz")]:
            copy = shutil.copytree if path.is_dir() else shutil.copy
            (kept / wanted).parent.mkdir(parents=True, exist_ok=True)
            copy(path, kept / path.relative_to(source), **({"dirs_exist_ok": True} if path.is_dir() else {}))
    run("/sbin/depmod", "-b", base, release)
    kept.rename(target)
    shutil.rmtree(base)


def source(archive, suite):
    """A line of sources.list: a suite of one of Debian's archives, from the mirror that this machine's apt uses."""
    return f"deb [signed-by={KEYRING}] {mirror(archive)} {suite} main\n"


def mirror(archive):
    """This machine's apt mirror for other suites of the archive."""
    wanted = ["Origin: Debian", f"Label: {archive}", "Identifier: Packages"]
    found = run("apt-get", "indextargets", "--format", "$(REPO_URI)", *wanted).split()
    if not found:
        raise LookupError(f"apt has no source with the label {archive} (or was never updated): apt-get update says which")
    return found[0]


def private_apt(folder, archive, suite):
    """apt with one source and a separate state, so that the host's state stays unchanged."""
    (folder / "lists/partial").mkdir(parents=True)
    (folder / "sources.list").write_text(source(archive, suite))
    options = [
        f"Dir::Etc::SourceList={folder}/sources.list",
        "Dir::Etc::SourceParts=/dev/null",
        f"Dir::State::Lists={folder}/lists",
        f"Dir::Cache={folder}",
        "Acquire::Languages=none",
        "Acquire::Check-Valid-Until=false",  # an expired suite is still the same
        "APT::Sandbox::User=root",
    ]
    apt = lambda tool: [tool, *(word for option in options for word in ("-o", option))]
    run(*apt("apt-get"), "update", "-qq")
    return apt


def newest(pattern, names):
    """The matching packages of the highest version: its image, or its binary and modules."""
    numbers = lambda name: [int(number) for number in re.findall(r"\d+", name)]
    found = [name for name in names.split() if re.fullmatch(pattern, name)]
    highest = max(map(numbers, found), default=None)
    return [name for name in found if numbers(name) == highest]


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, **options)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr or done.stdout}")
    return done.stdout
