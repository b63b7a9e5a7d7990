# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import dataclasses
import json
import traceback
import typing as t

import pytest
import yaml
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import LabspanError
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _seed
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._seed import Asked, CloudInit
from hypothesis import given
from hypothesis import strategies as st

SECRET = "correct horse battery staple"

DATA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda values: st.lists(values) | st.dictionaries(st.text(max_size=100), values),
    max_leaves=8,
)


def ask(guest: str = "vm1", **options: t.Any) -> Asked:
    return _seed.ask(guest, options, salt="salt")


def files(guest: str = "vm1", **options: t.Any) -> dict[str, t.Any]:
    """What cloud-init reads from each file."""
    return {name: yaml.safe_load(data) for name, data in _seed.files(ask(guest, **options), guest, "salt").items()}


def digest(salt: str = "salt", **options: t.Any) -> t.Optional[str]:
    found = _seed.record(_seed.ask("vm1", options, salt=salt), "vm1", None)
    return found.digest if found else None


def test_an_empty_seed_names_the_guest() -> None:
    assert files() == {
        "user-data": None,
        "meta-data": {"instance-id": "labspan-vm1", "local-hostname": "vm1"},
    }


def test_text_is_passed_on_as_it_is() -> None:
    texts = {"user_data": "#!/bin/sh\necho \udcff\n", "meta_data": "a: 1", "network_config": "b", "vendor_data": "#!\n"}
    assert _seed.files(ask(**texts), "vm1", "salt") == {
        "user-data": b"#!/bin/sh\necho \xff\n",
        "meta-data": b"a: 1",
        "network-config": b"b",
        "vendor-data": b"#!\n",
    }


@pytest.mark.parametrize(
    ("data", "header"), [({"hostname": "a"}, b"#cloud-config\n"), ([{"content": "a"}], b"#cloud-config-archive\n")]
)
@pytest.mark.parametrize("option", ["user_data", "vendor_data"])
def test_data_says_what_it_is(option: str, data: t.Any, header: bytes) -> None:
    written = _seed.files(ask(**{option: data}), "vm1", "salt")[_seed.FILES[option]]
    assert written.startswith(header)
    assert yaml.safe_load(written) == data


@given(st.dictionaries(st.text(max_size=100), DATA))
def test_yaml_reads_what_is_written_as_json(data: dict[str, t.Any]) -> None:
    written = _seed.files(ask(user_data=data), "vm1", "salt")["user-data"]
    assert json.dumps(yaml.safe_load(written)) == json.dumps(data)


def test_meta_data_of_the_task_goes_first() -> None:
    given_data = {"instance-id": "i-1", "local-hostname": "web.example.org", "public-keys": ["k"]}
    assert files(meta_data=given_data)["meta-data"] == given_data
    assert files("vm_1", meta_data={"a": 1})["meta-data"] == {
        "instance-id": "labspan-vm_1",
        "local-hostname": "vm-1",
        "a": 1,
    }


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("version", [1, 2, "2"])
def test_a_network_is_written_without_the_key_around_it(version: t.Any, wrapped: bool) -> None:
    network = {"version": version, "ethernets": {}}
    assert files(network_config={"network": network} if wrapped else network)["network-config"] == network


def test_the_instance_stays_the_same_unless_it_shall_not() -> None:
    def identity(**options: t.Any) -> str:
        return str(files(**options)["meta-data"]["instance-id"])

    assert identity(user_data={"a": 1}) == identity(user_data={"a": 2}) == "labspan-vm1"
    first, again, second = (
        identity(user_data={"a": number}, new_instance_on_change=True, meta_data={"b": 1}) for number in (1, 1, 2)
    )
    assert first == again != second
    changed = files(user_data={"a": 1}, new_instance_on_change=True, meta_data={"b": 1})["meta-data"]
    assert (changed["b"], changed["local-hostname"]) == (1, "vm1")


def test_the_digest_is_of_the_content_and_keyed() -> None:
    assert digest(user_data={"a": 1}) == digest(user_data={"a": 1})
    assert digest(user_data={"a": 1}) != digest(user_data={"a": 2})
    assert digest(user_data="#!a") != digest(vendor_data="#!a")
    assert digest(user_data={"a": 1}) != digest(salt="another", user_data={"a": 1})


def test_a_guest_keeps_its_salt() -> None:
    defined = CloudInit("iso", "d", "old")
    assert _seed.record(ask(), "vm1", defined) == _seed.record(dataclasses.replace(ask(), salt="other"), "vm1", defined)
    fresh = _seed.record(ask(), "vm1", CloudInit("smbios", seed_url="http://h/"))
    assert fresh is not None
    assert fresh.salt == "salt"


@pytest.mark.parametrize(
    ("options", "serial"),
    [
        ({"seed_url": "http://192.168.100.1:8000"}, "ds=nocloud;s=http://192.168.100.1:8000/"),
        ({"seed_url": "http://h/a/", "datasource": "nocloud-net"}, "ds=nocloud-net;s=http://h/a/"),
    ],
)
def test_a_serial_number_tells_where_the_seed_is(options: dict[str, str], serial: str) -> None:
    found = _seed.record(ask(delivery="smbios", **options), "vm1", None)
    assert found is not None
    assert _seed.serial(found) == serial


def test_no_seed_is_no_record() -> None:
    assert _seed.record(ask(delivery="none"), "vm1", CloudInit("iso", "d", "s")) is None


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"user_data": 17_021_964}, "user_data of guest vm1 is neither data .* nor text"),
        ({"meta_data": [SECRET]}, "meta_data of guest vm1 is neither data"),
        ({"network_config": [SECRET]}, "network_config of guest vm1 is neither data"),
        ({"network_config": {"ethernets": SECRET}}, "give version: 2"),
        ({"user_data": f"{SECRET}\ud800"}, "cannot be written as UTF-8"),
        ({"meta_data": {"instance-id": SECRET}, "new_instance_on_change": True}, "has an instance-id"),
        ({"meta_data": SECRET, "new_instance_on_change": True}, "has to be data"),
        ({"delivery": "smbios"}, "needs seed_url"),
        ({"delivery": "smbios", "seed_url": f"http://u:{SECRET}@h/"}, "everybody on the host can read it"),
        ({"delivery": "smbios", "seed_url": f"http://u:{SECRET[:7]}@h/"}, "everybody on the host can read it"),
        ({"delivery": "smbios", "seed_url": "http://h/;h=vm2"}, "is not a URL"),
        ({"delivery": "smbios", "seed_url": "http://h/", "user_data": SECRET}, "user_data is given. Serve it"),
        ({"delivery": "none", "user_data": SECRET}, "Leave it out"),
        ({"seed_url": f"http://{SECRET}/"}, "goes with delivery: smbios"),
        ({"datasource": "nocloud"}, "goes with delivery: smbios"),
    ],
)
def test_what_cannot_be_is_refused_without_telling_what_it_was(options: dict[str, t.Any], sentence: str) -> None:
    with pytest.raises(LabspanError, match=sentence) as caught:
        ask(**options)
    told = "".join(traceback.format_exception(caught.type, caught.value, caught.tb)) + repr(caught.value.details)
    assert not [word for word in (SECRET, SECRET[:7], "17021964") if word in told]


def test_representations_tell_nothing() -> None:
    asked = ask(user_data={"password": SECRET}, meta_data=SECRET)
    assert SECRET not in repr(asked) + repr(_seed.record(asked, "vm1", None))
    assert "salt" not in repr(asked) + repr(_seed.record(asked, "vm1", None))


@pytest.mark.parametrize(
    ("text", "warned"),
    [
        ("#cloud-config\n", False),
        ("#!/bin/sh\n", False),
        ("## template: jinja\n#cloud-config\n", False),
        ("Content-Type: multipart/mixed\n", False),
        ("MIME-Version: 1.0\n", False),
        ("", False),
        ("hostname: vm1\n", True),
        ("# cloud-config\n", True),
    ],
)
def test_text_that_does_not_say_what_it_is_is_warned_of(text: str, warned: bool) -> None:
    assert _seed.needs_warning(ask(user_data=text)) == (["user_data"] if warned else [])


def test_differences_are_told_without_content() -> None:
    iso, other = CloudInit("iso", "a", "s"), CloudInit("iso", "b", "s")
    web = CloudInit("smbios", datasource="nocloud", seed_url="http://h/")
    moved = dataclasses.replace(web, seed_url="http://i/")
    assert _seed.differences(iso, iso) == []
    assert _seed.differences(None, iso) == ["cloud-init: the seed is not attached"]
    assert _seed.differences(iso, None) == ["cloud-init: a seed is attached and not wanted"]
    assert _seed.differences(iso, other) == ["cloud-init: the seed has changed"]
    assert _seed.differences(iso, web) == ["cloud-init: delivery is iso, wanted smbios"]
    assert _seed.differences(web, moved) == [
        "cloud-init: the seed is ds=nocloud;s=http://h/, wanted ds=nocloud;s=http://i/"
    ]
