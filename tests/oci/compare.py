"""Compares the Nix image, from standard input, with the Containerfile's image.

usage: compare.py CONTAINERFILE COMPOSE FOLDER <IMAGE

FOLDER has the files of the latter, from packaging/oci/layout. Except for libraries, both images must have the same files
with the same bytes and modes. User, command, environment and port must be equal, and the name must be that of COMPOSE."""

import hashlib
import io
import json
import re
import stat
import sys
import tarfile
from pathlib import Path

# The library folders: of Nix, and of the system that built the Containerfile's image.
LIBRARIES = ("nix", "lib", "lib64", "usr/lib")


def main():
    containerfile, compose, folder = map(Path, sys.argv[1:])
    archive = tarfile.open(fileobj=io.BytesIO(sys.stdin.buffer.read()))
    read = lambda name: archive.extractfile(name).read()
    (manifest,) = json.loads(read("manifest.json"))
    config = json.loads(read(manifest["Config"]))["config"]
    (name,) = set(re.findall(r"^\s+image: (\S+)$", compose.read_text(), re.M))
    expect("the name", manifest["RepoTags"], [f"{name}:latest"])
    for key, value in instructions(containerfile.read_text()).items():
        expect(key, config.get(key), value)
    found = {}
    for layer in manifest["Layers"]:
        found |= dict(files_of(tarfile.open(fileobj=io.BytesIO(read(layer)))))
    wanted = dict(files_in(folder))
    expect("the paths", sorted(found), sorted(wanted))
    for path, is_there in wanted.items():
        expect(path, found[path], is_there)
    print(f"the images have the same {len(wanted)} files and folders, name, user, command, environment and port")


def expect(what, found, wanted):
    if found != wanted:
        sys.exit(f"the images differ in {what}: Nix has {found}, the Containerfile {wanted}")


def instructions(text):
    """The configuration from a Containerfile's instructions."""
    of = dict(re.findall(r"^(USER|CMD|ENV|EXPOSE) (.*)$", text, re.M))
    return {
        "User": of["USER"],
        "Cmd": json.loads(of["CMD"]),
        "Env": [of["ENV"]],
        "ExposedPorts": {f"{of['EXPOSE']}/tcp": {}},
    }


def files_of(layer):
    """Path, kind, mode and bytes of every entry except libraries and their folders."""
    for entry in layer.getmembers():
        path = entry.name.removeprefix("./").strip("/")
        if path not in ("", ".") and not is_library(path):
            expect(f"the owner of {path}", (entry.uid, entry.gid), (0, 0))
            data = layer.extractfile(entry).read() if entry.isfile() else entry.linkname.encode()
            yield path, (kind(entry.isdir(), entry.issym()), oct(entry.mode & 0o7777), digest(data))


def files_in(folder):
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if not is_library(name):
            mode = path.lstat().st_mode
            data = path.read_bytes() if path.is_file() else b""
            yield name, (kind(path.is_dir(), path.is_symlink()), oct(stat.S_IMODE(mode)), digest(data))


def kind(is_folder, is_link):
    return "folder" if is_folder else "link" if is_link else "file"


def is_library(path):
    return any(path == folder or path.startswith(f"{folder}/") for folder in LIBRARIES)


def digest(data):
    return hashlib.sha256(data).hexdigest()[:16]


main()
