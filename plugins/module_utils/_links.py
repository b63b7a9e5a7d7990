# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What bridges and taps have in common: whose an interface is, its settings as changes, and the kernel's refusals.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import errno
import socket
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _netlink
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import InvalidInput, Refused, SystemFailure
from ansible_collections.labspan.vmnet.plugins.module_utils._netlink import Netlink, Refusal, Request, Vlan
from ansible_collections.labspan.vmnet.plugins.module_utils._plan import Change

OWNER_PREFIX = "labspan.vmnet:"

#: BR_MAX_PORTS - 1 (net/bridge/br_private.h): port 0 is not used.
MAXIMUM_PORTS = 1023

#: IFALIASZ - 1 (linux/if.h).
_ALIAS_LENGTH = 255

#: The note of an interface that is being made. What the task does not say, such as that it is up, is not yet as it is
#: on a new one. Should this run be killed, the next one knows by this note that it has to see to that.
_UNFINISHED = "(unfinished)"

_MTU_MINIMUM = 68
_MTU_MAXIMUM = 65535


def owner_of(alias: str) -> t.Optional[str]:
    """The network whose interface this is, or None for one that nobody of ours made."""
    if not alias.startswith(OWNER_PREFIX):
        return None
    return alias[len(OWNER_PREFIX) :].split(" ", 1)[0]


def note_of(alias: str) -> str:
    """What the administrator wants to read in the alias, after the owner."""
    if not alias.startswith(OWNER_PREFIX) or is_unfinished(alias):
        return ""
    return alias.partition(" ")[2]


def is_unfinished(alias: str) -> bool:
    """Whether the run that made the interface was ended before it was done."""
    return alias.startswith(OWNER_PREFIX) and alias.endswith(f" {_UNFINISHED}")


def unfinished(alias: str) -> str:
    """The alias of an interface that is being made, until it gets this one."""
    owner = owner_of(alias)
    return alias if owner is None else alias_of(owner, _UNFINISHED)


def read_alias(interface: str) -> t.Optional[str]:
    """The alias of an interface, without netlink; None when it is not there."""
    try:
        with open(f"/sys/class/net/{interface}/ifalias", encoding="utf-8", errors="replace") as file:
            return file.read().rstrip("\n")
    except OSError:
        return None


def alias_of(network: str, note: str = "") -> str:
    """The alias of an interface of this network."""
    return f"{OWNER_PREFIX}{network} {note}".rstrip()


def check_alias(option: str, network: str, note: str) -> None:
    """Refuse a text that the kernel would cut or that a list of interfaces could not show."""
    if len(alias_of(network, note).encode()) > _ALIAS_LENGTH:
        raise InvalidInput(
            option, note, f"is too long; with the owner's mark the kernel keeps {_ALIAS_LENGTH} bytes. Shorten it."
        )
    if note.endswith(_UNFINISHED):
        raise InvalidInput(option, note, "is how labspan.vmnet marks what it is making. Use another text.")
    if not note.isprintable() or note != note.strip():
        raise InvalidInput(option, note, "has characters that cannot be shown in one line. Use printable text.")


def check_mtu(option: str, value: t.Optional[int]) -> t.Optional[int]:
    """An MTU that IPv4 works with and the kernel takes."""
    if value is not None and not _MTU_MINIMUM <= value <= _MTU_MAXIMUM:
        raise InvalidInput(option, value, f"is not a usable MTU; give {_MTU_MINIMUM} to {_MTU_MAXIMUM}.")
    return value


def check_owner(what: str, alias: str, network: str, *, force: bool) -> None:
    """Refuse an interface of another network."""
    owner = owner_of(alias)
    if owner not in (None, network) and not force:
        raise Refused(
            f"{what} belongs to the network {owner!r}, and the option network of this task is {network!r}, given or by "
            f"default. Give network: {owner}, use another name, or take it over with force: true. Where an inventory "
            f"has another name for that network now, vmnet_exclusive: true removes {owner!r}, and so does listing it "
            "with state: absent."
        )


def is_nobodys(have: t.Any) -> bool:
    """Whether an interface was neither made nor adopted by this collection, so that its removal is not ours to do."""
    return have.adopted is None and owner_of(have.alias) is None


def left_alone(kind: str, wanted: t.Iterable[t.Any], have: t.Mapping[str, t.Any]) -> list[str]:
    """What the user is told of the interfaces that C(state: absent) finds and does not remove."""
    return [
        f"{kind} {want.name} was neither made nor adopted by labspan.vmnet, and was left alone. Remove it by hand "
        f"(ip link delete {want.name}), or with force: true."
        for want in wanted
        if want.name in have and not want.present and not want.force and is_nobodys(have[want.name])
    ]


@dataclasses.dataclass(frozen=True)
class Attachment:
    """How an interface hangs on a bridge. The defaults are those of a fresh port."""

    bridge: str
    hairpin: bool = False
    bpdu_guard: bool = False
    learning: bool = True
    flooding: bool = True
    isolated: bool = False
    vlans: t.Optional[frozenset[Vlan]] = None
    """None: whatever the kernel gives."""


PORT_SETTINGS = tuple(_netlink.PORT_ATTRIBUTES)


def attachment(link: _netlink.Link, vlans: t.Optional[t.Mapping[str, frozenset[Vlan]]]) -> t.Optional[Attachment]:
    """How this interface hangs on its bridge now; None when it is no bridge's port."""
    if link.master is None or link.port is None:
        return None
    settings = {setting: getattr(link.port, setting) for setting in PORT_SETTINGS}
    return Attachment(link.master, **settings, vlans=None if vlans is None else vlans.get(link.name, frozenset()))


@dataclasses.dataclass(frozen=True)
class Setting(Change):
    """One setting of one interface: C(mtu), C(mac_address), C(alias), C(enabled), or a bridge's own."""

    name: str
    setting: str


@dataclasses.dataclass(frozen=True)
class Attach(Change):
    """An interface joins a bridge, leaves it, moves, or hangs on it differently; states are C(Attachment) or None."""

    name: str


def attach(what: str, name: str, before: t.Optional[Attachment], after: t.Optional[Attachment]) -> Attach:
    """The change of an attachment, with its sentence."""
    if after is None:
        sentence = f"Take {what} off bridge {before.bridge if before else ''}"
    elif before is None:
        sentence = f"Attach {what} to bridge {after.bridge}"
    elif before.bridge != after.bridge:
        sentence = f"Move {what} from bridge {before.bridge} to bridge {after.bridge}"
    else:
        settings = [f"{key} {_onoff(getattr(after, key))}" for key in _differences(before, after)]
        if before.vlans != after.vlans:
            settings.append(f"VLANs {render_vlans(after.vlans)}")
        sentence = f"Set {what} on bridge {after.bridge}: {', '.join(settings)}"
    return Attach(what, sentence, before, after, name)


def render_vlans(vlans: t.Optional[t.Iterable[Vlan]]) -> list[dict[str, t.Any]]:
    """VLANs as plain data."""
    return [{"id": vlan.id, "pvid": vlan.pvid, "untagged": vlan.untagged} for vlan in sorted(vlans or ())]


def setting(what: str, name: str, key: str, before: t.Any, after: t.Any) -> Setting:
    """The change of one setting, with its sentence."""
    return Setting(what, _setting_sentence(what, key, before, after), before, after, name, key)


def _setting_sentence(what: str, key: str, before: t.Any, after: t.Any) -> str:
    if key == "enabled":
        return f"Bring {what} {'up' if after else 'down'}"
    if key == "alias" and is_unfinished(before):
        return f"Mark {what} as finished, after a run that was ended before it was"
    if key == "alias":
        owner = owner_of(after)
        return f"Mark {what} as the network {owner}'s" if owner else f"Take the mark of labspan.vmnet off {what}"
    if key == "ipv6":
        return f"{'Enable' if after else 'Disable'} IPv6 on {what}"
    if isinstance(after, bool):
        return f"Turn {key.replace('_', ' ')} {_onoff(after)} on {what}"
    words = {"mtu": "MTU", "mac_address": "MAC address"}.get(key, key.replace("_", " "))
    return f"Set the {words} of {what} from {before or 'unknown'} to {after}"


def _onoff(value: bool) -> str:
    return "on" if value else "off"


def _differences(before: Attachment, after: Attachment) -> list[str]:
    return [key for key in PORT_SETTINGS if getattr(before, key) != getattr(after, key)]


def setting_request(change: Setting) -> Request:
    """The request for a setting that every interface has, or that is a bridge's."""
    if change.setting in _netlink.BRIDGE_ATTRIBUTES:
        return _netlink.set_bridge(change.name, {change.setting: int(change.after)})
    option = {"enabled": "up", "mac_address": "mac"}.get(change.setting, change.setting)
    return _netlink.set_link(change.name, **{option: change.after})


def attach_requests(change: Attach) -> list[Request]:
    """The requests for a change of attachment."""
    if change.after is None:
        return [_netlink.set_link(change.name, master=0)]
    same = change.before is not None and change.before.bridge == change.after.bridge
    fresh = Attachment(change.after.bridge)
    before = change.before if same else fresh
    requests = [] if same else [_netlink.set_link(change.name, master=index_of(change.after.bridge))]
    differing = _differences(before, change.after)
    if differing:
        requests.append(_netlink.set_port(change.name, {key: getattr(change.after, key) for key in differing}))
    return requests + vlan_requests(change.name, before.vlans, change.after.vlans)


def vlan_requests(
    name: str,
    before: t.Optional[frozenset[Vlan]],
    after: t.Optional[frozenset[Vlan]],
    *,
    on_bridge_itself: bool = False,
) -> list[Request]:
    """What takes the VLANs of a port, or of a bridge itself, from one set to the other."""
    if after is None or before == after:
        return []
    index = index_of(name)
    # A port that is fresh has the bridge's default VLAN, whichever that is; taking away what is not there is no error.
    present = before if before is not None else frozenset(Vlan(number, False, False) for number in range(1, 4095))
    gone = {vlan for vlan in present if vlan.id not in {kept.id for kept in after}}
    return [
        *_netlink.change_vlans(index, gone, present=False, on_bridge_itself=on_bridge_itself),
        *_netlink.change_vlans(index, after - (before or frozenset()), present=True, on_bridge_itself=on_bridge_itself),
    ]


def index_of(name: str) -> int:
    """The index of an interface, for requests that cannot name it."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        raise SystemFailure(f"the interface {name} does not exist.") from None


def send(netlink: Netlink, changes: t.Sequence[tuple[Change, t.Sequence[Request]]], done: list[Change]) -> None:
    """Carry out changes with their requests, all in one go; raises for the first that the kernel refuses.

    A change of which only a part came into force counts as done, so that it is undone.
    """
    answers = iter(netlink.send([request for _change, requests in changes for request in requests]))
    failed: t.Optional[SystemFailure] = None
    for change, requests in changes:
        refusals = [next(answers) for _request in requests]
        if not all(refusals) or not requests:
            done.append(change)
        first = next((refusal for refusal in refusals if refusal is not None), None)
        if first is not None and failed is None:
            failed = failure(change, first)
    if failed is not None:
        raise failed


def failure(change: Change, refusal: Refusal) -> SystemFailure:
    """The kernel's refusal as a sentence that says what to do."""
    # Python knows two names for this number, and gives the one that the kernel does not use.
    name = "EOPNOTSUPP" if refusal.code == errno.EOPNOTSUPP else errno.errorcode.get(refusal.code, str(refusal.code))
    sentence = f"{change.sentence}: the kernel refuses with {name}, {refusal}."
    return SystemFailure(f"{sentence}{_remedy(change, refusal.code)}", errno=name)


def _remedy(change: Change, code: int) -> str:
    about_vlans = "vlan" in change.sentence.lower()
    if code == errno.EPERM:
        return " Changing interfaces needs the capability CAP_NET_ADMIN: run the task as root (become: true)."
    if code == errno.EXFULL:
        return f" A bridge has at most {MAXIMUM_PORTS} ports: use another bridge for the rest."
    if code == errno.EOPNOTSUPP and about_vlans:
        return " This kernel was built without bridge VLAN filtering (CONFIG_BRIDGE_VLAN_FILTERING)."
    if code == errno.ELOOP:
        return " A bridge cannot be the port of a bridge."
    return ""


def kind_of(link: _netlink.Link) -> str:
    """What an interface is, in words."""
    if link.tun is not None:
        return f"a {link.tun.mode} device"
    return f"a {link.kind} device" if link.kind else "a physical interface"


def wanted_vlans(option: str, entries: t.Optional[t.Sequence[t.Mapping[str, t.Any]]]) -> t.Optional[frozenset[Vlan]]:
    """The VLANs that a list of C(id), C(pvid), C(untagged) stands for; an id may be a range such as C(10-20)."""
    if entries is None:
        return None
    found: dict[int, Vlan] = {}
    for entry in entries:
        first, _dash, last = str(entry["id"]).partition("-")
        if not (first.isdigit() and (last or first).isdigit() and 1 <= int(first) <= int(last or first) <= 4094):
            raise InvalidInput(
                f"{option}[].id", entry["id"], "is not a VLAN: give 1 to 4094, or a range such as 10-20."
            )
        if entry.get("pvid") and last:
            raise InvalidInput(
                f"{option}[].pvid", True, f"cannot be set for the range {entry['id']}: a port has one PVID."
            )
        for number in range(int(first), int(last or first) + 1):
            if number in found:
                raise InvalidInput(f"{option}[].id", entry["id"], f"lists the VLAN {number} twice.")
            found[number] = Vlan(number, bool(entry.get("pvid")), bool(entry.get("untagged")))
    if sum(vlan.pvid for vlan in found.values()) > 1:
        raise InvalidInput(f"{option}[].pvid", True, "is set for more than one VLAN: a port has one PVID.")
    return frozenset(found.values())
