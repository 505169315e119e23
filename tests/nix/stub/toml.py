"""Converts JSON on standard input to TOML, like pkgs.formats.toml: tables, strings, numbers, booleans, lists."""

import json
import sys


def table(values, path=()):
    if path:
        print(f"[{'.'.join(map(json.dumps, path))}]")
    for key, value in values.items():
        if not isinstance(value, dict):
            print(f"{json.dumps(key)} = {json.dumps(value, ensure_ascii=False)}")
    for key, value in values.items():
        if isinstance(value, dict):
            table(value, (*path, key))


table(json.load(sys.stdin))
