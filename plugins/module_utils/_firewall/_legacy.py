# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rules in the kernel's legacy tables through python-iptables, in a child process for each IP version.

The library takes no lock, swallows errors while it commits by itself, mixes up MASQUERADE of the two IP versions in one
process, and registers a table by looking at it. So: explicit commits under xtables' own lock, tried again when another
program was faster, one process for each version, and only for tables that are to be written.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _deps, _locks, _process
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import SystemFailure
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall import _child, _xtables
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall._xtables import Options, Own, World

_LOCK = "/run/xtables.lock"
_LOCK_TIMEOUT = 30.0  # as long as iptables-restore is told to wait
_ATTEMPTS = 50

_RULE_OPTIONS = {"-s": "src", "-d": "dst", "-i": "in_interface", "-o": "out_interface", "-p": "protocol"}
_MATCH_OPTIONS = {
    "--comment": "comment",
    "--ctstate": "conntrack",
    "--dst-type": "addrtype",
    "--icmp-type": "icmp",
    "--icmpv6-type": "icmp6",
}
# The library knows another name than iptables.
_PROTOCOLS = {"ipv6-icmp": "icmpv6"}
_TARGET_OPTIONS = ("--to-destination", "--to-ports", "--random")


def check() -> None:
    """Raise when the library is not usable; loads no table."""

    def load() -> None:
        _deps.iptc()

    _child.call(load, purpose="load python-iptables")


def apply(world: World, table: str, have: Own, want: Own, comment: str) -> None:
    """Make C(want) of C(have) in one table, with one commit."""

    def write() -> None:
        iptc = _deps.iptc()
        with _xtables_lock():
            _commit(iptc, world.family, table, have, want, comment)

    _child.call(write, purpose=f"write the {table} table of {world}")


def _commit(iptc: t.Any, family: int, name: str, have: Own, want: Own, comment: str) -> None:
    for _attempt in range(_ATTEMPTS):
        kind = iptc.Table6 if family == 6 else iptc.Table
        kind.ALL = [name]  # to learn whether a target is a chain, the library opens, and so registers, all of these
        table = kind(name)
        table.autocommit = False
        table.refresh()
        _rewrite(iptc, table, family, have, want, comment)
        try:
            table.commit()
            return
        except Exception as error:  # iptc.IPTCError holds the errno only as text
            if os.strerror(errno.EAGAIN) not in str(error):
                raise SystemFailure(f"the kernel refused the legacy {name} table: {error}") from error
            time.sleep(0.02)
    raise SystemFailure(f"other programs change the legacy {name} table all the time. Run the task again.")


def _rewrite(iptc: t.Any, table: t.Any, family: int, have: Own, want: Own, comment: str) -> None:
    kept = dict(want.chains)
    for jump in have.jumps:
        if jump not in want.jumps:
            parent = iptc.Chain(table, jump.parent)
            for rule in [rule for rule in parent.rules if rule.target and rule.target.name == jump.chain]:
                parent.delete_rule(rule)
    for chain, rules in want.chains:
        if dict(have.chains).get(chain) == rules:
            continue
        ours = iptc.Chain(table, chain)
        if table.is_chain(chain):
            ours.flush()
        else:
            table.create_chain(chain)
        for options in rules:
            ours.append_rule(_rule(iptc, family, options))
    for jump in want.jumps:
        if jump not in have.jumps:
            iptc.Chain(table, jump.parent).insert_rule(_rule(iptc, family, _xtables.jump_rule(jump.chain, comment)))
    for chain, _rules in have.chains:
        if chain not in kept:
            iptc.Chain(table, chain).flush()
            table.delete_chain(chain)


def _rule(iptc: t.Any, family: int, options: Options) -> t.Any:
    rule = iptc.Rule6() if family == 6 else iptc.Rule()
    given = dict(options)
    try:
        for option, attribute in _RULE_OPTIONS.items():
            if option in given:
                setattr(rule, attribute, _PROTOCOLS.get(given[option], given[option]))
        if "--dport" in given:
            rule.create_match(given["-p"]).dport = given["--dport"]
        for option, match in _MATCH_OPTIONS.items():
            if option in given:
                setattr(rule.create_match(match), option[2:].replace("-", "_"), given[option])
        target = iptc.Target(rule, given["-j"])
        for option in _TARGET_OPTIONS:
            if option in given:
                setattr(target, option[2:].replace("-", "_"), given[option])
        rule.target = target
    except Exception as error:  # the library's errors have several roots, AttributeError among them
        raise SystemFailure(
            f"python-iptables cannot write the rule {' '.join(_xtables.arguments(options))!r} ({error}). It does not "
            "know some options of iptables 1.8.10 and later: give port_forwards a host_address, leave "
            "out random, or use backend: nftables or iptables."
        ) from error
    return rule


@contextlib.contextmanager
def _xtables_lock() -> t.Iterator[None]:
    descriptor = os.open(_LOCK, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _locks.take(
            descriptor,
            _LOCK_TIMEOUT,
            lambda: SystemFailure(
                f"{_lock_holder(descriptor)} has held {_LOCK}, the lock on the tables of iptables, for "
                f"{_LOCK_TIMEOUT:.0f} seconds. Wait for it to end, or end it, and run again."
            ),
        )
        yield
    finally:
        os.close(descriptor)


def _lock_holder(descriptor: int) -> str:
    """Who has locked the file, in words; who waits for it has it open, too, so only /proc/locks tells."""
    file = os.fstat(descriptor)
    place = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}:{file.st_ino}"
    with contextlib.suppress(OSError), open("/proc/locks", encoding="ascii") as locks:
        for line in locks:
            words = line.split()
            # One that waits has an arrow before the kind; one of another PID namespace has no number here.
            if words[1] == "FLOCK" and words[5] == place and int(words[4]) > 0:
                return f"{' '.join(_process.argv_of(int(words[4]))) or 'a process'} (pid {words[4]})"
    return "another process"
