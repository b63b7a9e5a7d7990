# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The language in which an inventory says what a host holds, made of the documentation of the modules.

Note that this doc fragment is **PRIVATE** to the collection. It can have breaking changes at any time.
Must be kept in sync with plugins/module_utils/_lab/_language.py, which C(ansible-test sanity) looks after.
"""

from __future__ import annotations

import ast
import json
import pathlib
import re
import typing as t

import yaml

_MODULES = pathlib.Path(__file__).resolve().parent.parent / "modules"
_OF_THE_MODULE = re.compile(r"\b(O|RV)\(([^)#]+)\)")

Options = dict[str, t.Any]


def _documentation(module: str) -> Options:
    tree = ast.parse((_MODULES / f"{module}.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "DOCUMENTATION":
            return t.cast(Options, yaml.safe_load(ast.literal_eval(node.value)))
    raise LookupError(module)


def _options(module: str, bulk: str, *without: str, required: t.Collection[str] = ()) -> Options:
    """The options that an entry of the module's list has. What they say of each other is said of the module's."""
    found = _documentation(module)["options"]
    entry = found[bulk]["suboptions"] if bulk else found
    text = _OF_THE_MODULE.sub(rf"\1(labspan.vmnet.{module}#module:\2)", json.dumps(entry))
    options: Options = {name: option for name, option in json.loads(text).items() if name not in without}
    for name, option in options.items():
        option.pop("default", None)
        option.pop("required", None)
        if name in required:
            option["required"] = True
    return options


def _word(description: str, kind: str = "str", **more: t.Any) -> Options:
    return {"description": [description], "type": kind, **more}


def _list_of(description: str, options: Options) -> Options:
    return _word(description, "list", elements="dict", suboptions=options)


_GUEST = _options("qemu_guest", "guests", "network", required=("name",))
_GUEST["nics"]["suboptions"].update(
    network=_word("A network of this host, in place of a bridge or a tap."),
    address=_word("The IPv4 address that the DHCP server of the NIC's network always gives it."),
)

_UPLINK = _options("bridge_uplink", "")

_NETWORK: Options = {
    "name": _word("The network's name. It owns everything that is made for it.", required=True),
    "scenario": _word(
        "What the network is. V(private): guests reach each other and nothing else. V(routed): they have addresses of "
        "their own beyond the host. V(nat): they reach the outside behind the host's address. V(l2): they are on the "
        "host's LAN.",
        required=True,
        choices=["private", "routed", "nat", "l2"],
    ),
    "state": _word("Whether the network is to be there. Its guests go with it.", choices=["present", "absent"]),
    "bridge": _word("The bridge. By default the network's name and C(0), for V(l2) C(br0)."),
    "persistent": _word(
        "Whether the network is there again after a reboot. By default as O(persistent).",
        choices=["auto", "true", "false"],
    ),
    "taps": _list_of(
        "Taps with names of your choice. NICs of guests have taps that are made for them.",
        _options("tap_device", "taps", "network", "bridge", "persistent", required=("name",)),
    ),
    "guests": _list_of("Guests that have one NIC on this network where they do not say otherwise.", _GUEST),
    "account": _word("The account that guests on it run as. By default as O(account)."),
    "bridge_options": _word(
        "More options of the bridge. Not for V(l2).",
        "dict",
        suboptions=_options(
            "linux_bridge", "bridges", "name", "state", "network", "addresses", "host_access", "persistent"
        ),
    ),
    "subnet": _word(
        "The guests' IPv4 subnet. For V(nat) C(10.97.0.0/24) and for V(routed) C(10.98.0.0/24) if left out."
    ),
    "gateway": _word(
        "The host's address in O(networks[].subnet), by default the first one. For V(l2) the gateways of "
        "O(labspan.vmnet.bridge_uplink#module:address_mode=static).",
        "list",
        elements="str",
    ),
    "subnet6": _word("The guests' IPv6 subnet, for V(routed) and V(nat). By default there is none."),
    "gateway6": _word("The host's address in O(networks[].subnet6), by default the first one."),
    "uplink": _word(
        "The interface that leads outside, for V(routed) and V(nat). V(auto) is that of the default route."
    ),
    "backend": _word(
        "Who holds the rules, for V(routed) and V(nat).", choices=["auto", "nftables", "iptables", "iptables_legacy"]
    ),
    "forward": _word(
        "Whether the guests' traffic is let pass wherever a firewall of the host drops it, for V(routed) and V(nat). "
        "By default it is. V(false) where it is opened in ufw or firewalld, which is not touched.",
        "bool",
    ),
    "dhcp_enabled": _word("Whether there is a DHCP server, for V(routed) and V(nat). By default there is.", "bool"),
    "dhcp": _word(
        "Options of the DHCP server.",
        "dict",
        suboptions=_options("dhcp_server", "servers", "name", "state", "bridge", "persistent"),
    ),
    **{
        name: option
        for name, option in _options("nat_masquerade", "networks").items()
        if name in ("port_forwards", "exclude_destinations")
    },
    **{
        name: option
        for name, option in _UPLINK.items()
        if name
        in (
            "interface",
            "address_mode",
            "addresses",
            "dns",
            "mac",
            "stp",
            "forward_delay",
            "confirm_timeout",
            "probe",
            "accept_risk",
            "force",
        )
    },
    "port_security": _word("Whether guests on V(l2) are held to their own addresses. By default they are.", "bool"),
    "port_security_options": _word(
        "More options of that filter.",
        "dict",
        suboptions=_options("port_security", "networks", "name", "state", "bridge", "persistent"),
    ),
}


class ModuleDocFragment:
    """The options C(networks) and C(guests)."""

    # Annotated, since ansible-test's yamllint takes what a plain assignment holds for text.
    DOCUMENTATION: t.ClassVar[str] = yaml.safe_dump(
        {"options": {"networks": {"suboptions": _NETWORK}, "guests": {"suboptions": _GUEST}}},
        sort_keys=False,
        default_flow_style=False,
        width=1000,
    )
