# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lab hosts of an inventory, and the variables by which Ansible gets into each.

Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import re
import shlex
import typing as t

from ansible import constants, context
from ansible.errors import AnsibleError
from ansible.inventory.manager import InventoryManager
from ansible.parsing.vault import EncryptedString, VaultHelper
from ansible.plugins.loader import become_loader, connection_loader
from ansible.template import Templar
from ansible.vars.manager import VariableManager
from ansible_collections.labspan.vmnet.plugins.plugin_utils import _ways
from ansible_collections.labspan.vmnet.plugins.plugin_utils._guest_map import LabHost
from ansible_collections.labspan.vmnet.plugins.plugin_utils._ways import Door

#: Ansible makes the names in it as it is loaded.
_settings: t.Any = constants

Variables = t.Dict[str, t.Any]

#: What concerns a host's connection whichever it is, beside the variables that its plugins name.
_COMMON = re.compile(
    r"ansible_(connection|host|port|user|password|timeout|pipelining|private_key_file|remote_tmp|"
    r"(\w+_)?interpreter|become|become_\w+|sudo_\w+|su_\w+|shell_\w+)\Z"
)

#: Options of the command line that say how hosts are reached, and the variables that go before them.
_COMMAND_LINE = {
    "remote_user": "ansible_user",
    "private_key_file": "ansible_private_key_file",
    "connection": "ansible_connection",
    "ssh_common_args": "ansible_ssh_common_args",
    "ssh_extra_args": "ansible_ssh_extra_args",
    "become": "ansible_become",
    "become_method": "ansible_become_method",
    "become_user": "ansible_become_user",
}


def find(
    loader: t.Any, sources: t.Sequence[str], pattern: str, *, become: bool = False
) -> tuple[list[LabHost], dict[str, str]]:
    """The hosts that match, and for others the sentence why they cannot be asked.

    C(become) is for those that do not say.
    """
    manager = InventoryManager(loader=loader, sources=list(sources), parse=bool(sources))
    variables = VariableManager(loader=loader, inventory=manager)
    found, problems = [], {}
    for host in manager.get_hosts(pattern):
        try:
            values = variables.get_vars(host=host)
            if become:
                values.setdefault("ansible_become", True)
            found.append(_lab_host(str(host.name), values, Templar(loader=loader, variables=values)))
        except AnsibleError as error:
            problems[str(host.name)] = str(error)
    return found, problems


def _lab_host(name: str, values: Variables, templar: Templar) -> LabHost:
    given = values.get("ansible_connection") or _given("connection") or _settings.DEFAULT_TRANSPORT
    connection = str(templar.template(given))
    wanted = set(_plugin_variables(connection_loader, "connection", connection))
    method = values.get("ansible_become_method")
    if method:
        wanted |= set(_plugin_variables(become_loader, "become", str(templar.template(method))))
    wanted -= {"inventory_hostname"}
    chosen = {key: value for key, value in values.items() if key in wanted or _COMMON.match(key)}
    resolved = {key: templar.template(value) for key, value in chosen.items()}
    for option, variable in _COMMAND_LINE.items():
        value = _given(option)
        if value:
            resolved.setdefault(variable, value)
    resolved["ansible_connection"] = connection
    resolved.setdefault("ansible_host", name)
    return LabHost(name, _door(connection, resolved), resolved)


def _given(option: str) -> t.Any:
    """An option of the command line; the inventory's own command has none of these."""
    return context.CLIARGS.get(option)


def _plugin_variables(loader: t.Any, kind: str, name: str) -> t.Iterable[str]:
    """The variables that are options of a plugin; Ansible knows them as soon as the plugin is loaded."""
    plugin = loader.get(name, class_only=True)
    if plugin is None:
        raise AnsibleError(f"there is no {kind} plugin {name}.")
    return t.cast("t.Iterable[str]", _settings.config.get_plugin_vars(kind, getattr(plugin, "_load_name", name)))


def _door(connection: str, resolved: Variables) -> Door:
    short = connection.removeprefix("ansible.builtin.").removeprefix("ansible.legacy.")
    if short == _ways.NETNS:
        name = resolved.get("ansible_netns_name") or resolved["ansible_host"]
        return Door(short, netns=str(name), pid_file=resolved.get("ansible_netns_pid_file"))
    if short not in _ways.SSH:
        return Door(short)
    options = ssh_options(resolved)
    port = options.get("port")
    words: list[str] = []
    for name in ("ssh_args", "ssh_common_args", "ssh_extra_args"):
        value = options.get(name)
        if value and not (name == "ssh_args" and value == _usual("ssh_args")):
            words += shlex.split(str(value))
    return Door(
        short,
        host=str(options.get("host") or resolved["ansible_host"]),
        port=int(port) if port else None,
        user=options.get("remote_user"),
        key=options.get("private_key_file"),
        args=tuple(words),
        check_host_key=bool(options.get("host_key_checking", True)),
        password=bool(options.get("password")),
        executable=str(options.get("ssh_executable") or "ssh"),
    )


def ssh_options(variables: Variables) -> Variables:
    """The options of the connection C(ssh) for a host with these variables, by the environment and ansible.cfg, too."""
    connection_loader.get("ssh", class_only=True)
    return t.cast(Variables, _settings.config.get_plugin_options("connection", "ssh", variables=variables))


def _usual(option: str) -> t.Any:
    return _settings.config.get_configuration_definition(option, "connection", "ssh").get("default")


def shown(connection: t.Mapping[str, t.Any]) -> Variables:
    """The variables of a connection as they may stand in an inventory: what came out of a vault is put back into it."""
    return {key: _sealed(value) for key, value in connection.items()}


def _sealed(value: t.Any) -> t.Any:
    ciphertext = VaultHelper.get_ciphertext(value, with_tags=False)
    return value if ciphertext is None else EncryptedString(ciphertext=ciphertext)
