#!/usr/bin/python3
"""Writes an image to standard output, in the format of `docker load`."""

import hashlib
import io
import json
import sys
import tarfile

with open("@image@") as file:
    wanted = json.load(file)
image = wanted["image"]


def tar(add):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        add(archive)
    return buffer.getvalue()


def digest(data):
    return hashlib.sha256(data).hexdigest()


def store(archive):
    for path in wanted["closure"]:
        if path["path"] != image["layer"]:
            archive.add(path["path"])


with open(image["layer"], "rb") as own:
    layers = [tar(store), own.read()]
config = {
    "architecture": "amd64",
    "os": "linux",
    "config": image["config"],
    "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest(layer)}" for layer in layers]},
}
files = {f"{digest(layer)}.tar": layer for layer in layers}
text = json.dumps(config).encode()
manifest = [{"Config": f"{digest(text)}.json", "RepoTags": [f"{image['name']}:{image['tag']}"], "Layers": list(files)}]
files |= {f"{digest(text)}.json": text, "manifest.json": json.dumps(manifest).encode()}


def everything(archive):
    for name, data in files.items():
        entry = tarfile.TarInfo(name)
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))


sys.stdout.buffer.write(tar(everything))
