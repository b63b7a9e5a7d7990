# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The command line of the lab."""

from __future__ import annotations

import argparse
import json
import os
import sys
import typing as t

from lab import hosts


def main(arguments: t.Optional[t.Sequence[str]] = None) -> int:
    """Run one command; errors are one sentence."""
    parser = argparse.ArgumentParser(
        prog="labctl", description="Hosts to try the collection on, as namespaces of this machine."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("up", help="make a lab, unless it runs already")
    command.add_argument("lab")
    command.add_argument("hosts", nargs="+", metavar="host")
    command.add_argument("--tiny-guest", action="store_true", help="build the tiny guest first if it is not current")
    command.add_argument("--system", action="store_true", help="hosts with a systemd, networkd and sshd of their own")
    command.add_argument("--vm", action="store_true", help="hosts under QEMU, with Debian's kernel; reached by SSH")
    command.set_defaults(call=_up)

    command = commands.add_parser("down", help="end a lab and everything in it")
    command.add_argument("lab")
    command.set_defaults(call=_down)

    command = commands.add_parser("list", help="show the labs and their hosts")
    command.set_defaults(call=_list)

    command = commands.add_parser("inventory", help="print the inventory of a lab")
    command.add_argument("lab")
    command.add_argument("--ssh", action="store_true", help="reach system hosts by SSH, from the LAN")
    command.set_defaults(call=_inventory)

    command = commands.add_parser("shell", help="run a command, or a shell, on a host or on the LAN ('lan')")
    command.add_argument("lab")
    command.add_argument("host")
    command.add_argument("command", nargs=argparse.REMAINDER)
    command.set_defaults(call=_shell)

    options = parser.parse_args(arguments)
    try:
        return int(options.call(options))
    except (hosts.LabError, OSError, TimeoutError) as error:
        print(f"labctl: {error}", file=sys.stderr)
        return 1


def _up(options: argparse.Namespace) -> int:
    kind = hosts.VM if options.vm else hosts.SYSTEM if options.system else hosts.NAMESPACE
    _show(hosts.up(options.lab, options.hosts, tiny_guest=options.tiny_guest, kind=kind))
    return 0


def _down(options: argparse.Namespace) -> int:
    print(f"lab {options.lab}: {'ended' if hosts.down(options.lab) else 'was not there'}")
    return 0


def _list(_options: argparse.Namespace) -> int:
    for name in hosts.labs():
        _show(_lab(name))
    return 0


def _inventory(options: argparse.Namespace) -> int:
    lab = _lab(options.lab)
    lines = ["all:", "  hosts:"]
    for host in lab.hosts:
        lines.append(f"    {host.name}:")
        # Each JSON value is a YAML value.
        lines += [f"      {key}: {json.dumps(value)}" for key, value in _variables(lab, host, options.ssh).items()]
    print("\n".join(lines))
    return 0


def _variables(lab: hosts.Lab, host: hosts.Host, through_ssh: bool) -> dict[str, t.Any]:
    common = {"ansible_become": False, "ansible_python_interpreter": "/usr/bin/python3"}
    if not through_ssh and host.kind != hosts.VM:
        return {
            "ansible_connection": "labspan.vmnet.netns",
            "ansible_netns_pid_file": str(host.pid_file),
            **common,
        }
    if host.kind not in hosts.WHOLE:
        raise hosts.LabError(f"{host.name} of lab {lab.name} has no sshd; make the lab with --system.")
    return {**host.door.variables, **common}


def _shell(options: argparse.Namespace) -> int:
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    argv = _lab(options.lab).member(options.host).argv(*(command or ["sh", "-i"]))
    os.execvp(argv[0], argv)


def _lab(name: str) -> hosts.Lab:
    lab = hosts.load(name)
    if lab is None:
        raise hosts.LabError(f"there is no lab {name}; make it with: labctl up {name} HOST...")
    return lab


def _show(lab: hosts.Lab) -> None:
    for member in lab.members:
        state = f"pid {member.init.pid}" if member.alive and member.init else "ended"
        print(f"{lab.name}  {member.name:<12}  {state:<10}  {member.netns:<24}  {' '.join(member.addresses)}")


if __name__ == "__main__":
    sys.exit(main())
