# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""netplan over systemd-networkd: the card's definition becomes the bridge's, in the one file in which it is.

What runs is networkd, so the move itself is as in _networkd.py. A file of our own beside the host's would not do for
the boot: netplan adds up what its files say, and no file can take back an address of another. The file that is written
anew has no comments; the one from before is kept, and comes back with C(state: absent).

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import copy
import dataclasses
import fnmatch
import glob
import os
import re
import tempfile
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _commands, _deps
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import MissingDependency, Refused
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink import _networkd
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._manager import Manager, Move
from ansible_collections.labspan.vmnet.plugins.module_utils._uplink._steps import RunProgram, Step, WriteFile, keep

DIRECTORY = "/etc/netplan"
# A file hides those of the same name in later ones.
_DIRECTORIES = ("/run/netplan", DIRECTORY, "/lib/netplan")
_CLOUD = "/etc/cloud/cloud.cfg.d"
_CLOUD_OFF = f"{_CLOUD}/99-labspan-network.cfg"
_CLOUD_OFF_TEXT = (
    "# Written by labspan.vmnet: the network of this host is not cloud-init's any more.\nnetwork: {config: disabled}\n"
)
_HEADER = "# Changed by labspan.vmnet, which keeps the file as it was.\n"

_OF_CARD = {
    "activation-mode",
    "delay-virtual-functions-rebind",
    "embedded-switch-mode",
    "emit-lldp",
    "generic-receive-offload",
    "generic-segmentation-offload",
    "infiniband-mode",
    "large-receive-offload",
    "link",
    "macaddress",
    "match",
    "mtu",
    "optional",
    "receive-checksum-offload",
    "regulatory-domain",
    "renderer",
    "set-name",
    "tcp-segmentation-offload",
    "tcp6-segmentation-offload",
    "transmit-checksum-offload",
    "virtual-function-count",
    "wakeonlan",
}
_OF_BOTH = {"mtu", "optional", "renderer"}
_DEFAULTS = {"default", "0.0.0.0/0", "::/0", "0/0"}

Data = t.Dict[str, t.Any]


@dataclasses.dataclass(frozen=True)
class Definition:
    """What netplan's files say of the card."""

    path: str
    identifier: str
    """The name under C(ethernets)."""
    text: str
    data: Data
    """The whole file."""

    @property
    def card(self) -> Data:
        return section(self.data, "ethernets")[self.identifier] or {}

    @property
    def renderer(self) -> str:
        """Of the card, as far as this file says."""
        network = self.data.get("network") or {}
        ethernets = network.get("ethernets") or {}
        return str(self.card.get("renderer") or ethernets.get("renderer") or network.get("renderer") or "networkd")


def section(data: Data, name: str) -> Data:
    """The interfaces of a kind."""
    found = (data.get("network") or {}).get(name) or {}
    return {key: value for key, value in found.items() if key != "renderer"}


def is_for(identifier: str, card: Data, interface: str) -> bool:
    """Whether a definition is for this interface, as far as names tell."""
    match = card.get("match")
    if not match:
        return identifier == interface
    if card.get("set-name"):
        return bool(card["set-name"] == interface)
    return "name" in match and any(fnmatch.fnmatchcase(interface, name) for name in _list(match["name"]))


def _list(value: t.Any) -> list[t.Any]:
    return value if isinstance(value, list) else [value]


def transform(data: Data, identifier: str, move: Move, *, ours: bool = True) -> Data:
    """The file's content with the bridge in the place of the card. The same content when it is so already.

    C(ours): whether a bridge that is there was written here; one that somebody else wrote keeps its settings, and gets
    the addresses alone. Raises Refused for what cannot be followed.
    """
    bridges = section(data, "bridges")
    if move.bridge in bridges:
        had = bridges[move.bridge] or {}
        if identifier not in (had.get("interfaces") or []):
            raise Refused(f"the file has a bridge {move.bridge} already, without {identifier}. Take it out.")
        bridge = _again(data, identifier, had, move, ours=ours)
        if bridge == had:
            return data
        made = copy.deepcopy(data)
        made["network"]["bridges"][move.bridge] = bridge
        return made
    card = section(data, "ethernets")[identifier] or {}
    _refuse_others(data, identifier, card)
    made = copy.deepcopy(data)
    network = made["network"]
    network["ethernets"][identifier] = {key: value for key, value in card.items() if key in _OF_CARD}
    moved = {key: value for key, value in card.items() if key not in _OF_CARD or key in _OF_BOTH}
    bridge = {
        "interfaces": [identifier],
        "macaddress": move.mac,
        **_renderer(data, card),
        **_of_mode(copy.deepcopy(moved), move),
        "parameters": {"stp": move.stp, "forward-delay": int(move.forward_delay)},
    }
    network["bridges"] = {**(network.get("bridges") or {}), move.bridge: bridge}
    return made


def _again(data: Data, identifier: str, had: Data, move: Move, *, ours: bool) -> Data:
    """The bridge's definition with what is wanted now."""
    bridge = copy.deepcopy(had)
    closed = bridge.get("link-local") == [] and bridge.get("accept-ra") is False
    if move.mode in ("static", "dhcp") and closed and not any(map(bridge.get, ("addresses", "dhcp4", "dhcp6"))):
        bridge = {key: value for key, value in bridge.items() if key not in ("link-local", "accept-ra")}
    bridge = _of_mode(bridge, move)
    if not ours:
        return bridge
    settings = {"stp": move.stp, "forward-delay": int(move.forward_delay)}
    card = section(data, "ethernets")[identifier] or {}
    parameters = {**(had.get("parameters") or {}), **settings}
    return {**_renderer(data, card), **bridge, "macaddress": move.mac, "parameters": parameters}


def _renderer(data: Data, card: Data) -> Data:
    """Who runs the bridge, where it would not be who runs the card without its being said."""
    network = data.get("network") or {}
    of_ethernets, of_bridges = ((network.get(kind) or {}).get("renderer") for kind in ("ethernets", "bridges"))
    if not of_ethernets and not of_bridges and not card.get("renderer"):
        return {}
    said = card.get("renderer") or of_ethernets or network.get("renderer") or "networkd"
    return {"renderer": said} if said != of_bridges else {}


def _refuse_others(data: Data, identifier: str, card: Data) -> None:
    for key in ("auth", "openvswitch"):
        if key in card:
            raise Refused(f"{identifier} has {key}, which a port of a bridge cannot have.")
    match = card.get("match") or {}
    if match and not card.get("set-name") and any(re.search(r"[*?\[]", str(n)) for n in _list(match.get("name", "*"))):
        raise Refused(
            f"{identifier} may be more than one card, all of which would become ports. Give the card an entry of its "
            "own, by its name or with set-name."
        )
    for kind in ("bonds", "bridges", "vlans", "vrfs"):
        for name, other in section(data, kind).items():
            if identifier in [(other or {}).get("link"), *((other or {}).get("interfaces") or [])]:
                raise Refused(f"{name} is built on {identifier}. Move it to the bridge first.")


def _of_mode(moved: Data, move: Move) -> Data:
    if move.mode == "move":
        return moved
    drop = {"addresses", "dhcp4"} if move.mode != "dhcp" else {"addresses"}
    if move.mode != "static" or move.gateways:
        drop |= {"gateway4", "gateway6"}
        routes = [route for route in moved.get("routes") or [] if str(route.get("to")) not in _DEFAULTS]
        moved = {**moved, "routes": routes} if routes else {key: moved[key] for key in moved if key != "routes"}
    if move.mode in ("static", "none"):
        drop |= {"dhcp6", "dhcp4-overrides", "dhcp6-overrides"}
    kept = {key: value for key, value in moved.items() if key not in drop}
    if move.mode == "static":
        kept["addresses"] = list(move.addresses)
        if move.gateways:
            defaults = [{"to": "::/0" if ":" in via else "0.0.0.0/0", "via": via} for via in move.gateways]
            kept["routes"] = [*(kept.get("routes") or []), *defaults]
    elif move.mode == "dhcp":
        kept["dhcp4"] = True
    else:
        kept = {**kept, "link-local": [], "accept-ra": False}
    if move.dns:
        kept["nameservers"] = {**(kept.get("nameservers") or {}), "addresses": list(move.dns)}
    return kept


class Netplan(_networkd.Networkd):
    """A card that netplan has networkd run."""

    name = "netplan"

    def refusal(self, move: Move, *, persistent: bool) -> t.Optional[str]:
        running = super().refusal(move, persistent=persistent)
        if running is not None or move.back or not persistent:
            return running
        try:
            definition, text = self._changed(move)
        except Refused as error:
            return f"netplan: {error}"
        except MissingDependency as error:
            return str(error)
        return _complaint(definition, text)

    def after(self, move: Move) -> t.Sequence[Step]:
        steps = super().after(move)
        # What netplan wrote at boot: networkd would make the bridge again when it is restarted.
        device = f"{_networkd.RUN}/10-netplan-{move.bridge}.netdev"
        if not move.back or not os.path.exists(device):
            return steps
        return [Step(f"Remove {device}, which netplan made", WriteFile(device, None), (keep(device),)), *steps]

    def settle(self, move: Move) -> t.Sequence[Step]:
        if not move.back:
            return ()
        # Else the files in /run that say otherwise would be found by the next move.
        generate = RunProgram(("netplan", "generate"), may_fail=True)
        return [Step("Have netplan generate networkd's files again", generate)]

    def files(self, move: Move) -> t.Sequence[WriteFile]:
        try:
            definition, text = self._changed(move)
        except (Refused, MissingDependency):
            return ()
        files = []
        iaid = self.iaid(move)
        if iaid is not None and move.mode in ("move", "dhcp") and _has_dhcp(definition.data, definition, move):
            sections = [_networkd.Section(name, (("IAID", str(iaid)),)) for name in ("DHCPv4", "DHCPv6")]
            files.append(WriteFile(_networkd.netplan_drop_in(move.bridge), _networkd.headed(definition.path, sections)))
        if _networkd.is_greedy(move):
            taps = f"{_networkd.ETC}/06-labspan-taps.network"
            files.append(WriteFile(taps, _networkd.headed(definition.path, _networkd.taps_sections())))
        if _is_of_cloud_init(definition):
            files.append(WriteFile(_CLOUD_OFF, _CLOUD_OFF_TEXT))
        return [*files, WriteFile(definition.path, text, 0o600)]

    def _changed(self, move: Move) -> tuple[Definition, str]:
        """The card's definition, and its file with the bridge in its place."""
        definition = find_definition(move.interface)
        ours = _HEADER in definition.text
        changed = transform(definition.data, definition.identifier, move, ours=ours)
        if changed is definition.data:
            return definition, definition.text
        dumped = _deps.yaml().safe_dump(changed, sort_keys=False, default_flow_style=False, allow_unicode=True)
        return definition, _HEADER + dumped


class NetplanWithNetworkManager(Manager):
    """A card that netplan has NetworkManager run: nobody follows it yet."""

    name = "netplan"

    def refusal(self, move: Move, *, persistent: bool) -> t.Optional[str]:
        return (
            f"netplan has NetworkManager run {move.interface}, which labspan.vmnet cannot follow. Give it the renderer "
            "networkd, or take it out of netplan's files and give it a profile of NetworkManager's own."
        )

    def leases(self, interface: str) -> bool:
        return False


def read_definitions(interface: str) -> list[Definition]:
    """Every file's definition of the interface."""
    paths: dict[str, str] = {}
    for directory in _DIRECTORIES:
        for path in glob.glob(f"{directory}/*.yaml"):
            paths.setdefault(os.path.basename(path), path)
    generated = re.fullmatch(r"10-netplan-(.+)\.network", os.path.basename(_networkd.own_file(interface) or ""))
    found = []
    yaml = _deps.yaml()
    for name in sorted(paths):
        text = _networkd.read(paths[name]) or ""
        try:
            data = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise Refused(f"{paths[name]} cannot be read ({' '.join(str(error).split())}). Mend it.") from error
        if not isinstance(data, dict):
            continue
        for identifier, card in section(data, "ethernets").items():
            if identifier == generated[1] if generated else is_for(identifier, card or {}, interface):
                found.append(Definition(paths[name], identifier, text, data))
    return found


def find_definition(interface: str) -> Definition:
    """The one definition of the interface; raises Refused when there is another number of them."""
    found = read_definitions(interface)
    if len(found) != 1:
        where = ", ".join(definition.path for definition in found) or "none of its files"
        raise Refused(f"{interface} is defined in {where}. Define it in one file of {DIRECTORY}.")
    if os.path.dirname(found[0].path) != DIRECTORY:
        raise Refused(f"{interface} is defined in {found[0].path}. Define it in {DIRECTORY}.")
    return found[0]


def _has_dhcp(data: Data, definition: Definition, move: Move) -> bool:
    bridge = section(data, "bridges").get(move.bridge) or {}
    return bool(definition.card.get("dhcp4") or bridge.get("dhcp4") or move.mode == "dhcp") and "mac" not in (
        definition.card.get("dhcp-identifier"),
        bridge.get("dhcp-identifier"),
    )


def _is_of_cloud_init(definition: Definition) -> bool:
    if not os.path.isdir(_CLOUD) or "cloud-init" not in os.path.basename(definition.path) + definition.text[:400]:
        return False
    others = (path for path in glob.glob(f"{_CLOUD}/*.cfg") if path != _CLOUD_OFF)
    return not any(re.search(r"config:\s*[\"']?disabled", _networkd.read(path) or "") for path in others)


def _complaint(definition: Definition, text: str) -> t.Optional[str]:
    """What netplan itself says against the file, tried out in a directory of its own."""
    netplan = _deps.program("netplan", purpose="to see that it accepts its new file")
    with tempfile.TemporaryDirectory(prefix="labspan-netplan-") as root:
        for directory in reversed(_DIRECTORIES):
            for path in glob.glob(f"{directory}/*.yaml"):
                WriteFile(root + path, _networkd.read(path), 0o600).perform()
        WriteFile(root + definition.path, text, 0o600).perform()
        done = _commands.run([netplan, "generate", "--root-dir", root])
    if done.returncode == 0:
        return None
    return f"netplan does not accept {definition.path} as it would be: {' '.join((done.stderr or done.stdout).split())}"


def find(interface: str) -> t.Optional[Manager]:
    """netplan, when one of its files is about the interface."""
    if _deps.find_program("netplan") is None or not any(glob.glob(f"{path}/*.yaml") for path in _DIRECTORIES):
        return None
    own = _networkd.own_file(interface) if _networkd.is_running() else None
    if own is not None:
        return Netplan() if os.path.basename(own).startswith("10-netplan-") else None
    try:
        definitions = read_definitions(interface)
    except (Refused, MissingDependency):
        return None
    if any(definition.renderer == "NetworkManager" for definition in definitions):
        return NetplanWithNetworkManager()
    return None
