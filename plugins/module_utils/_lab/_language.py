# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The language in which an inventory says what a host holds: its words, and which scenario has which of them.

A network's keys are the variables of its scenario's role without prefix, with the same defaults. They are made of the
specifications of the modules, so that an option of a module is a word here as soon as it is there.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _bridge_options, _dhcp_options, _tap_options
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall import _options as _rule_options
from ansible_collections.labspan.vmnet.plugins.module_utils._firewall import _port_security_options
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _options as _guest_options
from ansible_collections.labspan.vmnet.plugins.module_utils._items import Options

PRIVATE = "private"
ROUTED = "routed"
NAT = "nat"
L2 = "l2"
SCENARIOS = (PRIVATE, ROUTED, NAT, L2)

#: What the host has no part in, what it has an address in, and what others may use: DHCP where there is an address.
WITH_SUBNET = (ROUTED, NAT)

STATES = ("present", "absent")
PARTS = ("networks", "guests")
PERSISTENT = ("auto", "true", "false")


def entry(options: Options, *without: str, required: t.Collection[str] = ()) -> Options:
    """The words of a module for an entry, which has no defaults: what it leaves out is decided by what it is in."""
    words = {
        name: {key: value for key, value in specification.items() if key != "default"}
        for name, specification in options.items()
        if name not in without
    }
    for name in required:
        words[name] = {**words[name], "required": True}
    return words


def _list_of(options: Options) -> Options:
    return {"type": "list", "elements": "dict", "options": options}


NIC: Options = {**_guest_options.NIC, "address": {"type": "str"}}

GUEST: Options = {
    **entry(_guest_options.OPTIONS, "network", required=("name",)),
    "nics": _list_of(NIC),
}

TAP = entry(_tap_options.OPTIONS, "network", "bridge", "persistent", required=("name",))
BRIDGE = entry(_bridge_options.OPTIONS, "name", "state", "network", "addresses", "host_access", "persistent")
DHCP = entry(_dhcp_options.OPTIONS, "name", "state", "bridge", "persistent")
PORT_SECURITY = entry(_port_security_options.OPTIONS, "name", "state", "bridge", "persistent")

_EVERY: Options = {
    "name": {"type": "str", "required": True},
    "scenario": {"type": "str", "choices": list(SCENARIOS), "required": True},
    "state": {"type": "str", "choices": list(STATES)},
    "bridge": {"type": "str"},
    "persistent": {"type": "str", "choices": list(PERSISTENT)},
    "taps": _list_of(TAP),
    "guests": _list_of(GUEST),
    "account": {"type": "str"},
}

_OWN_BRIDGE: Options = {"bridge_options": {"type": "dict", "options": BRIDGE}}

_SUBNET: Options = {
    "subnet": {"type": "str"},
    "gateway": {"type": "list", "elements": "str"},
    "subnet6": {"type": "str"},
    "gateway6": {"type": "str"},
    "uplink": {"type": "str"},
    "backend": {"type": "str", "choices": _rule_options.OPTIONS["backend"]["choices"]},
    "forward": {"type": "bool"},
    "dhcp_enabled": {"type": "bool"},
    "dhcp": {"type": "dict", "options": DHCP},
}

_NAT: Options = {
    "port_forwards": dict(_rule_options.OPTIONS["port_forwards"]),
    "exclude_destinations": {"type": "list", "elements": "str"},
}

_L2: Options = {
    "interface": {"type": "str"},
    "address_mode": {"type": "str", "choices": ["move", "dhcp", "static", "none"]},
    "addresses": {"type": "list", "elements": "str"},
    "gateway": {"type": "list", "elements": "str"},
    "dns": {"type": "list", "elements": "str"},
    "mac": {"type": "str"},
    "stp": {"type": "bool"},
    "forward_delay": {"type": "float"},
    "confirm_timeout": {"type": "float"},
    "probe": {"type": "list", "elements": "str"},
    "accept_risk": {"type": "bool"},
    "force": {"type": "bool"},
    "port_security": {"type": "bool"},
    "port_security_options": {"type": "dict", "options": PORT_SECURITY},
}

#: The words of each scenario.
WORDS: t.Mapping[str, Options] = {
    PRIVATE: {**_EVERY, **_OWN_BRIDGE},
    ROUTED: {**_EVERY, **_OWN_BRIDGE, **_SUBNET},
    NAT: {**_EVERY, **_OWN_BRIDGE, **_SUBNET, **_NAT},
    L2: {**_EVERY, **_L2},
}

#: A network of any scenario.
NETWORK: Options = {**_EVERY, **_OWN_BRIDGE, **_SUBNET, **_NAT, **_L2}

#: The options of lab_host.
OPTIONS: Options = {
    "networks": {**_list_of(NETWORK), "default": []},
    "guests": {**_list_of(GUEST), "default": []},
    "parts": {"type": "list", "elements": "str", "choices": list(PARTS), "default": list(PARTS)},
    "exclusive": {"type": "bool", "default": False},
    "state": {"type": "str", "choices": list(STATES), "default": "present"},
    "account": {"type": "str", "default": ""},
    "persistent": {"type": "str", "choices": list(PERSISTENT), "default": "auto"},
}

_DEFAULTS_WITH_SUBNET: Options = {
    "bridge_options": {},
    "gateway": [],
    "subnet6": "",
    "gateway6": "",
    "uplink": "auto",
    "backend": "auto",
    "forward": True,
    "dhcp_enabled": True,
    "dhcp": {},
}

#: What a network has whose entry does not say: the defaults of the roles. The bridge's name follows from the network's;
#: C(state), C(account) and C(persistent) from those of the host.
DEFAULTS: t.Mapping[str, Options] = {
    PRIVATE: {"bridge_options": {}},
    ROUTED: {**_DEFAULTS_WITH_SUBNET, "subnet": "10.98.0.0/24"},
    NAT: {**_DEFAULTS_WITH_SUBNET, "subnet": "10.97.0.0/24", "port_forwards": [], "exclude_destinations": []},
    L2: {
        "bridge": "br0",
        "address_mode": "move",
        "addresses": [],
        "gateway": [],
        "dns": [],
        "mac": "interface",
        "stp": False,
        "forward_delay": 15.0,
        "confirm_timeout": 90.0,
        "probe": ["gateway"],
        "accept_risk": False,
        "force": False,
        "port_security": True,
        "port_security_options": {},
    },
}


def given(options: t.Mapping[str, t.Any]) -> Options:
    """What an entry says; what it leaves out is None after Ansible has looked at it."""
    return {name: value for name, value in options.items() if value is not None}


def as_written(value: t.Any) -> t.Any:
    """A value without all that Ansible has added to it."""
    if isinstance(value, dict):
        return {name: as_written(each) for name, each in value.items() if each is not None}
    return [as_written(each) for each in value] if isinstance(value, list) else value


def complete(options: Options, *layers: t.Mapping[str, t.Any]) -> Options:
    """The options of a module as its own task would have them after Ansible has looked at them; later layers win."""
    values: Options = {}
    for layer in layers:
        values.update(given(layer))
    made: Options = {}
    for name, specification in options.items():
        value = values.get(name, specification.get("default"))
        words = specification.get("options")
        if words and isinstance(value, dict):
            value = complete(words, value)
        elif words and isinstance(value, list):
            value = [complete(words, each) for each in value]
        made[name] = value
    return made
