# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""The guests of lab hosts in the inventory, as Ansible's own commands show them."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
import textwrap
import typing as t

import pytest
from ansible.parsing.vault import VaultLib, VaultSecret
from support.hosts import Host, await_condition, cable
from support.ssh import Ssh
from support.users import User, by_namespace

pytestmark = pytest.mark.one_interpreter

ADDRESS = "192.168.6.11"

#: QEMU that finds nothing to boot: a guest as far as the host can tell.
IDLE = {"user": "nobody", "memory": "32", "accelerator": "tcg", "shutdown_timeout": 0, "service_manager": "none"}

NAMESAKES = """\
@vmnet_guests:
  |--@vmnet_host_lab1:
  |  |--@vmnet_host_lab1_network_dark:
  |  |  |--vm2
  |  |--@vmnet_host_lab1_network_web:
  |  |  |--vm1.lab1
  |--@vmnet_host_lab2:
  |  |--@vmnet_host_lab2_network_web:
  |  |  |--vm1.lab2
"""


def define(host: Host, *guests: dict[str, t.Any]) -> None:
    host.converge("qemu_guest", {**IDLE, "guests": list(guests)})


def guest(name: str, bridge: str, state: str = "stopped", **options: t.Any) -> dict[str, t.Any]:
    network = bridge.partition("-")[2]
    return {"name": name, "state": state, "network": network, "nics": [{"bridge": bridge}], **options}


@pytest.fixture(scope="module")
def labs(python_path: pathlib.Path) -> t.Iterator[list[Host]]:
    """Two lab hosts with the same network, which a guest of the same name is in; one has a closed network, too."""
    with Host(python_path) as first, Host(python_path) as second:
        web = {"name": "br-web", "network": "web", "addresses": ["192.168.6.1/24"]}
        dark = {"name": "br-dark", "network": "dark", "host_access": False}
        first.converge("linux_bridge", {"bridges": [web, dark]})
        second.converge("linux_bridge", {"bridges": [web]})
        labels = {"role": "web", "old": ""}
        define(first, guest("vm1", "br-web", "running", labels=labels), guest("vm2", "br-dark"))
        define(second, guest("vm1", "br-web", "running"))
        yield [first, second]


@pytest.fixture
def user(tmp_path: pathlib.Path, labs: list[Host]) -> User:
    """Who has a third lab host in the inventory, which is not there."""
    known = {f"lab{number}": by_namespace(host, tmp_path) for number, host in enumerate(labs, 1)}
    known["lab3"] = {**known["lab2"], "ansible_netns_pid_file": str(tmp_path / "lab3.pid")}
    made = User(tmp_path)
    made.write("hosts.yml", {"lab_hosts": {"hosts": known}})
    made.write("guests.yml", {"plugin": "labspan.vmnet.guests", "sources": ["hosts.yml"]})
    return made


def mac(host: Host, name: str) -> str:
    """The address of the guest's NIC, by its definition's own file."""
    definition = json.loads(host.out("cat", f"/var/lib/labspan/guests/{name}/guest.json"))
    return str(definition["spec"]["nics"][0]["mac"])


def test_the_graph_is_a_map_and_who_is_not_reached_is_a_warning(user: User) -> None:
    done = user.run("ansible-inventory", "-i", "guests.yml", "--graph", "vmnet_guests")
    assert done.stdout == NAMESAKES
    warnings = [line for line in done.stderr.splitlines() if line.strip()]
    assert "The guests of lab3 are not in the inventory: it is unreachable" in " ".join(warnings)
    assert not [line for line in warnings if "lab1" in line or "lab2" in line]


def test_a_mistake_in_the_file_is_a_sentence(user: User) -> None:
    wrong: list[tuple[dict[str, t.Any], str]] = [
        ({}, "no host in the inventory that comes before this file matches 'lab_hosts'"),
        ({"sources": ["nowhere.yml"]}, "nowhere.yml is not there"),
        ({"sources": ["hosts.yml"], "lab_hosts": "others"}, "matches 'others'"),
        ({"sources": ["hosts.yml"], "hostname": "'vm'"}, "which is the name of another guest"),
        ({"sources": ["hosts.yml"], "hostname": "nonsense"}, "'nonsense' fails for guest vm1"),
        ({"sources": ["5-guests.yml"]}, "lead back to this file"),
    ]
    arguments = []
    for number, (content, _sentence) in enumerate(wrong):
        user.write(f"{number}-guests.yml", {"plugin": "labspan.vmnet.guests", **content})
        arguments += ["-i", f"{number}-guests.yml"]
    done = user.run("ansible-inventory", *arguments, "--graph")
    said = " ".join(done.stderr.split())
    assert [sentence for _content, sentence in wrong if sentence not in said] == []
    assert "vm1" not in done.stdout


def test_a_guest_has_its_facts_its_groups_and_the_way_to_it(user: User, labs: list[Host]) -> None:
    address = mac(labs[0], "vm1")
    labs[0].run("ip", "neigh", "replace", ADDRESS, "lladdr", address, "dev", "br-web", "nud", "permanent")
    user.write(
        "own-guests.yml",
        {
            "plugin": "labspan.vmnet.guests",
            "sources": ["hosts.yml"],
            "hostname": "vmnet_host ~ '-' ~ vmnet_guest",
            "strict": True,
            "compose": {"ansible_user": "'root' if 'role' in vmnet_labels else 'ada'"},
            "groups": {"closed": "'private' in vmnet_scenarios"},
            "keyed_groups": [{"key": "vmnet_labels", "prefix": "by"}],
        },
    )
    listed = user.listed("-i", "own-guests.yml")
    labs[0].run("ip", "neigh", "del", ADDRESS, "dev", "br-web")

    groups = {name: set(group.get("hosts", ())) for name, group in listed.items()}
    assert groups["vmnet_network_web"] == groups["vmnet_state_running"] == {"lab1-vm1", "lab2-vm1"}
    assert groups["vmnet_state_stopped"] == groups["vmnet_scenario_private"] == groups["closed"] == {"lab1-vm2"}
    assert groups["vmnet_label_role_web"] == groups["vmnet_label_old"] == groups["by_role_web"] == {"lab1-vm1"}

    found = listed["_meta"]["hostvars"]
    near, dark = found["lab1-vm1"], found["lab1-vm2"]
    assert (near["ansible_connection"], near["ansible_host"]) == ("ssh", ADDRESS)
    assert "nsenter" in near["ansible_ssh_common_args"]
    assert (near["vmnet_guest"], near["vmnet_host"], near["vmnet_memory"]) == ("vm1", "lab1", 32)
    assert near["vmnet_macs"] == [address]
    assert near["vmnet_nics"][0]["addresses"] == [{"address": ADDRESS, "source": "neighbour"}]
    assert near["vmnet_host_connection"]["ansible_connection"] == "labspan.vmnet.netns"
    assert dark["ansible_connection"] == found["lab2-vm1"]["ansible_connection"] == "labspan.vmnet.guest"
    assert "ansible_host" not in dark
    assert near["vmnet_taps"][0] in labs[0].out("ip", "-br", "link")
    assert [values["ansible_user"] for _name, values in sorted(found.items())] == ["root", "ada", "ada"]


@pytest.mark.slow
def test_what_was_told_is_kept_and_who_was_silent_is_asked_again(user: User, labs: list[Host]) -> None:
    own = {"plugin": "labspan.vmnet.guests", "sources": ["hosts.yml"]}
    keeps = {
        "cache": True,
        "cache_plugin": "ansible.builtin.jsonfile",
        "cache_connection": str(user.directory / "kept"),
    }
    user.write("asking-guests.yml", {**own, "hostname": "'asked-' ~ vmnet_guest ~ vmnet_host"})
    user.write("keeping-guests.yml", {**own, **keeps, "hostname": "'kept-' ~ vmnet_guest ~ vmnet_host"})

    def labels(*arguments: str) -> dict[str, dict[str, str]]:
        found = user.listed("-i", "keeping-guests.yml", *arguments)["_meta"]["hostvars"]
        return {name: values["vmnet_labels"] for name, values in found.items()}

    assert labels() == {"kept-vm1lab1": {"role": "web", "old": ""}, "kept-vm2lab1": {}, "kept-vm1lab2": {}}
    define(labs[0], guest("vm2", "br-dark", labels={"new": "yes"}))
    (user.directory / "lab3.pid").write_text(str(labs[1].pid))
    try:
        then = labels("-i", "asking-guests.yml")
        flushed = labels("--flush-cache")
    finally:
        define(labs[0], guest("vm2", "br-dark", labels={}))
    assert (then["kept-vm2lab1"], then["asked-vm2lab1"]) == ({}, {"new": "yes"})
    assert "kept-vm1lab3" in then
    assert flushed["kept-vm2lab1"] == {"new": "yes"}
    kept = "".join(path.read_text() for path in (user.directory / "kept").iterdir())
    assert "vm2" in kept
    assert ".pid" not in kept


def test_lab_hosts_come_before_in_a_directory_and_what_a_vault_holds_of_them_works_and_is_not_shown(
    user: User, labs: list[Host]
) -> None:
    secret = by_namespace(labs[0], user.directory)["ansible_netns_pid_file"]
    sealed = VaultLib([("default", VaultSecret(b"the vault's"))]).encrypt(secret).decode()
    user.write("password", "the vault's")
    user.write("vaulted/group_vars/lab_hosts.yml", "secret: !vault |\n" + textwrap.indent(sealed, "  "))
    host = {
        "ansible_connection": "labspan.vmnet.netns",
        "ansible_netns_pid_file": "{{ secret }}",
        "ansible_python_interpreter": "/usr/bin/python3",
        "ansible_become": True,
        "ansible_become_method": "su",
    }
    user.write("vaulted/hosts.yml", {"lab_hosts": {"hosts": {"lab1": host}}})
    user.write("vaulted/zz-guests.yml", {"plugin": "labspan.vmnet.guests", "jump": "never"})
    shown = user.run("ansible-inventory", "-i", "vaulted", "--vault-password-file", "password", "--list").stdout
    listed = json.loads(shown)
    assert (listed["lab_hosts"]["hosts"], listed["vmnet_host_lab1_network_web"]["hosts"]) == (["lab1"], ["vm1"])
    connection = listed["_meta"]["hostvars"]["vm1"]["vmnet_host_connection"]
    assert "__ansible_vault" in connection["ansible_netns_pid_file"]
    assert secret not in shown
    # The twin: who has no password reads nothing.
    assert "vm1" not in user.run("ansible-inventory", "-i", "vaulted", "--graph", check=False).stdout


@pytest.fixture
def stand_ins(labs: list[Host], python_path: pathlib.Path) -> t.Iterator[list[Host]]:
    """Behind each lab host, in the place of its guest and with the guest's address, a host that answers."""
    with Host(python_path) as first, Host(python_path) as second:
        for lab, behind in ((labs[0], first), (labs[1], second)):
            cable(lab, "port-vm1", behind, "eth0", mac=mac(lab, "vm1"))
            lab.run("ip", "link", "set", "port-vm1", "master", "br-web")
            behind.run("ip", "addr", "add", f"{ADDRESS}/24", "dev", "eth0")
            behind.run("ip", "link", "set", "eth0", "up")
            behind.run("sh", "-c", f"echo behind {lab.pid} > /run/who")
            await_condition(
                lambda lab=lab: lab.run("ping", "-c", "1", "-W", "1", ADDRESS, check=False).returncode == 0, "the guest"
            )
        yield [first, second]


@pytest.mark.skipif(shutil.which("sshd", path="/usr/sbin") is None, reason="the program sshd is not installed")
def test_ssh_goes_through_the_lab_hosts_to_guests_with_one_address(
    tmp_path: pathlib.Path, labs: list[Host], stand_ins: list[Host]
) -> None:
    """By SSH through SSH, which itself takes a ProxyCommand; and through a namespace."""
    with Ssh() as ssh:
        for host in (labs[0], *stand_ins):
            ssh.serve(host)
        # A LAN that the first lab host is reached from.
        with Host(labs[0].python_path) as lan:
            cable(lan, "port0", labs[0], "lan0")
            lan.run("ip", "addr", "add", "192.0.2.1/24", "dev", "port0")
            labs[0].run("ip", "addr", "add", "192.0.2.10/24", "dev", "lan0")
            labs[0].run("ip", "link", "set", "lan0", "up")
            user = User(tmp_path)
            door = {**ssh.door("192.0.2.10", via=lan).variables, "ansible_python_interpreter": "/usr/bin/python3"}
            others = by_namespace(labs[1], tmp_path)
            user.write("hosts.yml", {"lab_hosts": {"hosts": {"lab1": door, "lab2": others}}})
            user.write("guests.yml", {"plugin": "labspan.vmnet.guests", "sources": ["hosts.yml"]})
            key = ssh.directory / "login_key"
            known = f"-F none -o UserKnownHostsFile={tmp_path}/known -o StrictHostKeyChecking=accept-new"
            login = {
                "ansible_user": "root",
                "ansible_ssh_private_key_file": str(key),
                "ansible_ssh_extra_args": known,
                "ansible_python_interpreter": "/usr/bin/python3",
                "ansible_control_path_dir": str(ssh.directory),
            }
            user.write("group_vars/vmnet_guests.yml", login)
            try:
                said = user.said("guests.yml", "vmnet_network_web", "cat /run/who")
            finally:
                for socket in ssh.directory.glob("*-22-root"):
                    end = ["ssh", "-F", "none", "-o", f"ControlPath={socket}", "-O", "exit", "guest"]
                    subprocess.run(end, capture_output=True, check=False)
    assert said == {"vm1.lab1": f"behind {labs[0].pid}", "vm1.lab2": f"behind {labs[1].pid}"}
    names = {line.split()[0] for line in (tmp_path / "known").read_text().splitlines()}
    assert names == {"vm1.lab1", "vm1.lab2"}
