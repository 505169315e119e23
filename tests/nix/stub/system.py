"""Writes a system: NixOS' files for /etc, and the programs that activate them on a running Debian. Attributes come from
.attrs.json.

  $out/etc                             files, and the units under systemd/system
  $out/sw/bin                          the programs of systemPackages
  $out/activate                        activates it on this machine: accounts, /etc, programs, firewall
  $out/bin/switch-to-configuration     the program that `nixos-rebuild test` runs
"""

import json
import os
from pathlib import Path


def main():
    wanted = json.loads(Path(".attrs.json").read_text())
    out = Path(wanted["outputs"]["out"])
    (out / "sw/bin").mkdir(parents=True)
    (out / "bin").mkdir()
    units(out / "etc/systemd/system", wanted["units"], wanted["wanted"])
    for name, file in wanted["etc"].items():
        path = out / "etc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(file["source"])
    for package in wanted["packages"]:
        for program in Path(package).glob("bin/*"):
            (out / "sw/bin" / program.name).symlink_to(program)
    for name, system in wanted["specialisations"].items():
        (out / "specialisation").mkdir(exist_ok=True)
        (out / "specialisation" / name).symlink_to(system)
    script(out / "activate", "\n".join(activation(out, wanted)) + "\n")
    switch = Path(wanted["switch"]).read_text()
    script(out / "bin/switch-to-configuration", switch.replace("@system@", str(out)))


def units(folder, texts, wanted):
    folder.mkdir(parents=True)
    for name, text in texts.items():
        (folder / name).write_text(text)
        for target in wanted[name]:
            (folder / f"{target}.wants").mkdir(exist_ok=True)
            (folder / f"{target}.wants" / name).symlink_to(f"../{name}")


def activation(out, wanted):
    """The lines of an idempotent script."""
    yield "#!/bin/bash\nset -e\nexport PATH=/usr/sbin:/usr/bin"
    groups, users = wanted["accounts"]["groups"], wanted["accounts"]["users"]
    for group in groups:
        yield f"getent group {group} >/dev/null || groupadd --system {group}"
    for user, it in users.items():
        kind = "--create-home --shell /bin/bash" if it["isNormalUser"] else "--system"
        yield f"getent passwd {user} >/dev/null || useradd {kind} {user}"
        for group in it["extraGroups"]:
            yield f"usermod -aG {group} {user}"
    for group, it in groups.items():
        for member in it["members"]:
            yield f"usermod -aG {group} {member}"
    yield "ln -sfn {0} /run/current-system; ln -sfn {0} /etc/current-system".format(out)
    # Units are links into the store: systemd then sees the new ones, and removed units disappear.
    yield "find /etc/systemd/system -lname '/nix/store/*' -delete"
    for folder, _, names in os.walk(out / "etc"):
        for name in names:
            path = Path(folder, name)
            inside = path.relative_to(out)
            mode = wanted["etc"].get(str(inside.relative_to("etc")), {}).get("mode", "symlink")
            yield f"mkdir -p /{inside.parent}"
            if mode == "symlink":
                target = os.readlink(path) if path.is_symlink() and "systemd/system" in str(inside) else path
                yield f"ln -sfn {target} /{inside}"
            else:
                yield f"install -m {mode} {path} /{inside}"
    yield f"for program in {out}/sw/bin/*; do ln -sfn $program /usr/local/bin/; done"
    for address, names in wanted["hosts"].items():
        yield f"grep -q '^{address} ' /etc/hosts || echo {address} {' '.join(names)} >>/etc/hosts"
    if wanted["hasSsh"]:
        yield "systemctl --quiet enable ssh.service"
    if wanted["hasFirewall"]:
        ports = "".join(f"tcp dport {port} accept; " for port in wanted["firewall"])
        rules = "type filter hook input priority 0; policy drop; iif lo accept; ct state established,related accept; "
        rules += f"icmp type echo-request accept; meta l4proto ipv6-icmp accept; {ports}"
        yield "modprobe nf_tables\nnft 'add table inet nixos-fw; delete table inet nixos-fw'"
        yield f"nft 'table inet nixos-fw {{\nchain input {{ {rules}\n}}\n}}'"


def script(path, text):
    path.write_text(text)
    path.chmod(0o755)


main()
