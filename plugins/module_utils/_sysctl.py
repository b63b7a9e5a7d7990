# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Forwarding, switched on for the interfaces of a network and for no others, now and after a reboot.

Networks share an uplink, so one record for the whole host says which network needs which setting and what each setting
was before the first of them came. The last network that needs a setting puts it back, unless somebody has made the
whole host a router meanwhile (Docker, libvirt, an administrator): that wrote the same value, and relies on it.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _foresight, _whole_files
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import Refused, SystemFailure

SETTINGS = "/proc/sys"
RECORD = "/var/lib/labspan/forwarding.json"
_BOOT_FILE = "/etc/sysctl.d/60-labspan-{network}.conf"
_BOOT_HEADER = "# Made by labspan.vmnet for the network {network}; it is written anew by the next run.\n"

FORWARD6_ALL = "net/ipv6/conf/all/forwarding"
FORCE6_ALL = "net/ipv6/conf/all/force_forwarding"
_ALL4 = "net/ipv4/conf/all/forwarding"  # net/ipv4/ip_forward is the same setting
# Who writes the setting for all interfaces writes this one too. FORWARD6_ALL may be ours; then this one is put back.
_DEFAULT6 = "net/ipv6/conf/default/forwarding"
WHOLE_HOST = (_ALL4, _DEFAULT6, FORCE6_ALL)
"""Settings that are never ours, and that are on when somebody else has made the whole host a router."""

_ACCEPT_RA = "accept_ra"
_FORCE = "force_forwarding"

Values = t.Mapping[str, t.Optional[str]]
"""Settings by their path under /proc/sys; None for one that this kernel or host does not have."""


@dataclasses.dataclass(frozen=True)
class Record:
    """Who needs what, and what was there before."""

    needs: t.Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    found: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    exceptions: tuple[str, ...] = ()
    """Those that were as C(found) says although the whole host was a router already."""

    def text(self) -> t.Optional[str]:
        """The record as its file holds it; None when there is nothing to remember."""
        if not self.needs and not self.found:
            return None
        state: dict[str, t.Any] = {
            "networks": {name: list(keys) for name, keys in self.needs.items()},
            "found": dict(self.found),
        }
        if self.exceptions:
            state["exceptions"] = list(self.exceptions)
        return json.dumps(state, indent=1, sort_keys=True) + "\n"

    @classmethod
    def parse(cls, text: t.Optional[str]) -> Record:
        """The record from its file's text."""
        if text is None:
            return cls()
        try:
            state = json.loads(text)
            needs = {name: tuple(keys) for name, keys in state["networks"].items()}
            return cls(needs, dict(state["found"]), tuple(state.get("exceptions", ())))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise Refused(
                f"{RECORD} cannot be read ({error}). It remembers which settings of the host were changed; mend it, or "
                "remove it to have the settings left as they are now."
            ) from error


@dataclasses.dataclass(frozen=True)
class Need:
    """The interfaces that a network forwards between."""

    bridge: str
    uplink4: t.Optional[str] = None
    uplink6: t.Optional[str] = None
    version4: bool = True
    version6: bool = True
    advertised: tuple[str, ...] = ()
    """Interfaces whose IPv6 default route comes from router advertisements; forwarding would throw it away."""


def keys_to_read(need: Need) -> list[str]:
    """Every setting that C(wanted) may ask about."""
    interfaces4, interfaces6 = _interfaces(need)
    per_interface = ("forwarding", _FORCE, _ACCEPT_RA)
    return [
        *(_key(4, interface, "forwarding") for interface in interfaces4),
        *(_key(6, interface, name) for interface in (*interfaces6, *need.advertised) for name in per_interface),
        FORWARD6_ALL,
        FORCE6_ALL,
    ]


def wanted(need: Need, values: Values, record: Record) -> dict[str, str]:
    """The settings that a network needs, in the order in which they are written, a missing bridge's too. Pure."""
    interfaces4, interfaces6 = _interfaces(need)
    if values.get(FORWARD6_ALL) is None:  # a kernel without IPv6
        interfaces6 = ()
    keys: dict[str, str] = {}
    for interface in dict.fromkeys((*interfaces6[1:], *need.advertised)) if interfaces6 else ():
        key = _key(6, interface, _ACCEPT_RA)
        # 0 is the choice of whoever manages the interface; 2 means "although the host forwards".
        if values.get(key) == "1" or key in record.found:
            keys[key] = "2"
    keys.update({_key(4, interface, "forwarding"): "1" for interface in interfaces4})
    if interfaces6:
        keys.update(_forward6(need.bridge, interfaces6, values, record))
    return keys


def _forward6(bridge: str, interfaces: t.Sequence[str], values: Values, record: Record) -> t.Iterator[tuple[str, str]]:
    if values.get(FORWARD6_ALL) == "1" and FORWARD6_ALL not in record.found:
        pass  # somebody made the whole host a router
    elif values.get(FORCE6_ALL) is not None:
        yield from ((_key(6, interface, _FORCE), "1") for interface in interfaces)
    else:
        # Before Linux 6.17 only the setting for all interfaces lets IPv6 packets pass.
        yield FORWARD6_ALL, "1"
    # Guests drop a default router that does not call itself one (RFC 4861, 7.2.5); this makes the host do so.
    yield _key(6, bridge, "forwarding"), "1"


def _interfaces(need: Need) -> tuple[tuple[str, ...], tuple[str, ...]]:
    version4 = (need.bridge, *([need.uplink4] if need.uplink4 else [])) if need.version4 else ()
    version6 = (need.bridge, *([need.uplink6] if need.uplink6 else [])) if need.version6 else ()
    return tuple(dict.fromkeys(version4)), tuple(dict.fromkeys(version6))


def _key(version: int, interface: str, name: str) -> str:
    return f"net/ipv{version}/conf/{interface}/{name}"


def plan(
    values: Values, record: Record, networks: t.Mapping[str, t.Optional[t.Mapping[str, str]]]
) -> tuple[dict[str, str], Record]:
    """The settings to write, in order, and the record afterwards; a network without needs is None. Pure."""
    needs = {**record.needs, **{name: tuple(sorted(keys)) for name, keys in networks.items() if keys}}
    for name, keys in networks.items():
        if not keys:
            needs.pop(name, None)
    found = dict(record.found)
    exceptions = set(record.exceptions)
    writes: dict[str, str] = {}
    for keys in networks.values():
        for key, value in (keys or {}).items():
            before = values.get(key)
            if before is not None and before != value:
                if key not in found and values.get(_whole_host(key)) == "1":
                    exceptions.add(key)
                found.setdefault(key, before)
                writes[key] = value
    needed = {key for keys in needs.values() for key in keys}
    for key in sorted((key for key in found if key not in needed), key=_put_back_order):
        was = found.pop(key)
        if key not in exceptions and values.get(_whole_host(key)) == "1":
            continue  # the value is not ours alone any more
        # Another value than ours is somebody's later choice.
        if values.get(key) == ("2" if key.endswith(_ACCEPT_RA) else "1"):
            writes[key] = was
    return writes, Record(needs, found, tuple(sorted(exceptions.intersection(found))))


def _whole_host(key: str) -> str:
    """The one of C(WHOLE_HOST) whose writer has this setting written, too, or relies on it."""
    if key.startswith("net/ipv4/"):
        return _ALL4
    return FORCE6_ALL if key.endswith(f"/{_FORCE}") else _DEFAULT6


def _put_back_order(key: str) -> tuple[bool, str]:
    # While the host still forwards, accept_ra 1 would lose the default route.
    return key.endswith(_ACCEPT_RA), key


def boot_file(network: str) -> str:
    """The file that brings a network's settings back after a reboot."""
    return _BOOT_FILE.format(network=network)


def boot_text(network: str, keys: t.Mapping[str, str]) -> t.Optional[str]:
    """What that file holds. A setting of an interface that comes later is applied by udev; now it may be missing."""
    if not keys:
        return None
    return _BOOT_HEADER.format(network=network) + "".join(f"-{key} = {value}\n" for key, value in keys.items())


def at_boot(keys: t.Mapping[str, str], values: Values) -> dict[str, str]:
    """A network's settings as a plain program writes them at boot, which puts no other setting back."""
    default = values.get(_DEFAULT6)
    return {**keys, **({_DEFAULT6: default} if FORWARD6_ALL in keys and default is not None else {})}


def early(keys: t.Mapping[str, str]) -> dict[str, str]:
    """Those of a network's settings that may be written at boot before its interfaces are there.

    The one for all interfaces is not among them: it would become the default of those that come later.
    """
    return {key: value for key, value in keys.items() if key != FORWARD6_ALL}


def read(keys: t.Iterable[str]) -> dict[str, t.Optional[str]]:
    """The settings as they are."""
    return {key: _read(key) for key in dict.fromkeys(keys)}


def _read(key: str) -> t.Optional[str]:
    world = _foresight.world()
    path = os.path.join(SETTINGS, key)
    if world is None or path in world.texts:
        return read_text(path, strip=True)
    _net, version, _conf, interface, name = key.split("/")
    if world.is_gone(interface):
        return None
    if interface in world.made:
        if name == _ACCEPT_RA:  # a bridge of ours never configures itself from advertisements
            return "0"
        path = f"{SETTINGS}/net/{version}/conf/default/{name}"
    return read_text(path, strip=True)


def read_text(path: str, *, strip: bool = False) -> t.Optional[str]:
    """A small file's text; None when it is not there."""
    found = _foresight.text(path, lambda: _read_text(path))
    return found.strip() if strip and found is not None else found


def _read_text(path: str) -> t.Optional[str]:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SystemFailure(f"{path} cannot be read: {error.strerror}.") from error


def write(key: str, value: str) -> None:
    """Write one setting. The one for all interfaces would write every interface's own: those are put back."""
    if key != FORWARD6_ALL:
        _write(key, value)
        return
    directory = os.path.join(SETTINGS, "net/ipv6/conf")
    others = [_key(6, interface, "forwarding") for interface in os.listdir(directory) if interface != "all"]
    before = read(others)
    _write(key, value)
    for other, was in before.items():
        if was is not None and read([other])[other] != was:
            _write(other, was)


def _write(key: str, value: str) -> None:
    try:
        with open(os.path.join(SETTINGS, key), "w", encoding="ascii") as file:
            file.write(value)
    except OSError as error:
        raise SystemFailure(f"the kernel does not set {key} to {value}: {error.strerror}.") from error


def write_text(path: str, text: t.Optional[str]) -> None:
    """Put a file in place as a whole, or remove it; a directory of ours that is then empty goes too."""
    directory = os.path.dirname(path)
    try:
        if text is None:
            _whole_files.remove(path)
            if directory == os.path.dirname(RECORD):
                with contextlib.suppress(OSError):
                    os.rmdir(directory)
            return
        _whole_files.make_directories(directory)
        _whole_files.replace(path, text)
    except OSError as error:
        raise SystemFailure(f"{path} cannot be written: {error.strerror}.") from error


def check_owner(network: str, text: t.Optional[str]) -> None:
    """Refuse a boot file that somebody else wrote under our name."""
    if text is not None and not text.startswith(_BOOT_HEADER.format(network=network)):
        raise Refused(f"{boot_file(network)} exists and was not written by labspan.vmnet. Move it away, and run again.")
