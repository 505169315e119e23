"""Writes the initramfs of a guest: an uncompressed cpio archive, made without root and without mounting anything."""

import os
import re
import subprocess
from pathlib import Path


class Archive:
    """A "newc" cpio archive, the format that the kernel unpacks. Parent folders come first."""

    def __init__(self):
        self.parts = []
        self.names = set()

    def folder(self, name, mode=0o755):
        self._entry(name, 0o040000 | mode)

    def link(self, name, target):
        self._entry(name, 0o120777, str(target).encode())

    def text(self, name, text, mode=0o644):
        self._entry(name, 0o100000 | mode, text.encode())

    def file(self, name, source, mode=None):
        source = Path(source)
        self._entry(name, 0o100000 | (mode or source.stat().st_mode & 0o777), source.read_bytes())

    def program(self, name, source):
        """A program and its shared libraries, at the paths of its loader."""
        self.file(name, source, 0o755)
        ldd = subprocess.run(["ldd", source], capture_output=True, text=True).stdout
        for library in re.findall(r"(/\S+) \(0x", ldd):
            self.file(library, os.path.realpath(library), 0o755)

    def tree(self, name, source):
        """A folder with its contents."""
        self.folder(name)
        for path in sorted(Path(source).rglob("*")):
            inside = f"{name}/{path.relative_to(source)}"
            if path.is_symlink():
                self.link(inside, os.readlink(path))
            elif path.is_dir():
                self.folder(inside)
            else:
                self.file(inside, path)

    def write(self, path):
        with open(path, "wb") as out:
            out.writelines(self.parts)
            out.write(self._header("TRAILER!!!", 0, 0, 0))

    def _entry(self, name, mode, data=b""):
        name = str(name).strip("/")
        if not name or name in self.names:
            return
        self.folder(os.path.dirname(name))
        self.names.add(name)
        self.parts.append(self._header(name, len(self.names), mode, len(data)) + data + bytes(-len(data) % 4))

    @staticmethod
    def _header(name, inode, mode, size):
        name = name.encode() + b"\0"
        # inode, mode, uid, gid, links, mtime, size, device (2), special device (2), length of the name, checksum
        fields = (inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, len(name), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields) + name
        return header + bytes(-len(header) % 4)
