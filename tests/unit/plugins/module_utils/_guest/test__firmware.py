# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import pathlib
import struct
import typing as t

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import InvalidInput, Refused
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _argv, _firmware
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._firmware import Uefi
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._spec import GuestSpec
from hypothesis import given, settings
from hypothesis import strategies as st

SECURE = ("secure-boot", "enrolled-keys", "requires-smm")


def described(name: str, *features: str, machines: t.Sequence[str] = ("pc-q35-*",), **mapping: t.Any) -> t.Any:
    return {
        "interface-types": ["uefi"],
        "mapping": {
            "device": "flash",
            "executable": {"filename": f"/f/{name}.code", "format": "raw"},
            "nvram-template": {"filename": f"/f/{name}.vars", "format": "raw"},
            **mapping,
        },
        "targets": [{"architecture": "x86_64", "machines": list(machines)}],
        "features": list(features),
    }


def parsed(name: str, *features: str, **more: t.Any) -> _firmware.Descriptor:
    found = _firmware.parse(described(name, *features, **more))
    assert found is not None
    return found


def test_a_descriptor_becomes_the_images_it_names() -> None:
    found = parsed("a", *SECURE)
    assert found.uefi == Uefi("/f/a.code", "raw", "/f/a.vars", "raw", True)
    assert found.fits("x86_64", "pc-q35-7.2")
    assert not found.fits("x86_64", "pc-i440fx-7.2")
    assert not found.fits("aarch64", "pc-q35-7.2")


@pytest.mark.parametrize(
    "broken",
    [
        {"interface-types": ["bios"]},
        {"mapping": {"device": "memory", "filename": "/f/a"}},
        {"mapping": {"device": "flash", "mode": "stateless", "executable": {"filename": "/f/a", "format": "raw"}}},
        {"mapping": {"device": "flash", "executable": {"filename": "/f/a", "format": "raw"}}},
        {"mapping": None},
        {"features": None},
        {"targets": [{}]},
    ],
)
def test_what_cannot_be_used_is_passed_over(broken: dict[str, t.Any]) -> None:
    assert _firmware.parse(described("a")) is not None
    assert _firmware.parse({**described("a"), **broken}) is None


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    )
)
def test_no_descriptor_breaks_the_search(data: t.Any) -> None:
    assert _firmware.parse(data) is None
    for part in ("mapping", "targets", "features", "interface-types"):
        _firmware.parse({**described("a"), part: data})


def test_descriptors_are_tried_by_name_and_the_administrators_hide_the_packages(tmp_path: pathlib.Path) -> None:
    package, administrator = tmp_path / "usr", tmp_path / "etc"
    for directory in (package, administrator):
        directory.mkdir()

    def put(directory: pathlib.Path, file: str, name: t.Optional[str]) -> None:
        if name is None:
            (directory / file).touch()
            return
        data = described(name)
        for part in ("executable", "nvram-template"):
            image = tmp_path / pathlib.Path(data["mapping"][part]["filename"]).name
            image.touch()
            data["mapping"][part]["filename"] = str(image)
        (directory / file).write_text(json.dumps(data), encoding="utf-8")

    def found() -> list[str]:
        directories = [str(package), str(administrator), str(tmp_path / "missing")]
        return [pathlib.Path(each.uefi.code).stem for each in _firmware.descriptors(directories)]

    put(package, "60-b.json", "b")
    put(package, "40-a.json", "a")
    assert found() == ["a", "b"]
    put(administrator, "50-c.json", "c")
    assert found() == ["a", "c", "b"]
    put(administrator, "40-a.json", "d")
    assert found() == ["d", "c", "b"]
    put(administrator, "60-b.json", None)
    assert found() == ["d", "c"]
    (tmp_path / "c.code").unlink()
    assert found() == ["d"]
    (administrator / "readme.txt").write_text("{", encoding="utf-8")
    (administrator / "99-broken.json").write_text("{", encoding="utf-8")
    assert found() == ["d"]


@pytest.mark.parametrize(
    ("secure_boot", "found", "chosen"),
    [
        (False, [("enrolled", *SECURE), ("keyless", "secure-boot", "requires-smm"), ("plain",)], "plain"),
        (False, [("enrolled", *SECURE), ("keyless", "secure-boot", "requires-smm")], "keyless"),
        (False, [("enrolled", *SECURE)], None),
        (False, [("first",), ("second",)], "first"),
        (False, [("cloud", "intel-tdx"), ("plain", "amd-sev")], "plain"),
        (True, [("keyless", "secure-boot", "requires-smm"), ("enrolled", *SECURE)], "enrolled"),
        (True, [("keyless", "secure-boot", "requires-smm"), ("plain",)], None),
        (True, [], None),
    ],
)
def test_the_first_that_does_what_is_asked_is_chosen(
    secure_boot: bool, found: list[tuple[str, ...]], chosen: t.Optional[str]
) -> None:
    uefi = _firmware.choose([parsed(*each) for each in found], secure_boot=secure_boot)
    assert (uefi.code if uefi else None) == (f"/f/{chosen}.code" if chosen else None)


def test_an_image_given_by_its_path_takes_the_rest_from_its_descriptor() -> None:
    found = [parsed("a"), parsed("b", *SECURE)]
    assert _firmware.named(found, "/f/b.code", None, smm=False) == found[1].uefi
    assert _firmware.named(found, "/f/b.code", "/my.vars", smm=False).template == "/my.vars"
    other = _firmware.named(found, "/f/c.code", "/f/c.qcow2", smm=True)
    assert other == Uefi("/f/c.code", "raw", "/f/c.qcow2", "qcow2", True)


def test_machines_are_known_by_their_full_name() -> None:
    listed = (
        "Supported machines are:\n"
        "pc                   Standard PC (i440FX + PIIX, 1996) (alias of pc-i440fx-7.2)\n"
        "pc-i440fx-7.2        Standard PC (i440FX + PIIX, 1996) (default)\n"
        "q35                  Standard PC (Q35 + ICH9, 2009) (alias of pc-q35-7.2)\n"
    )
    assert _firmware.canonical_machine("q35,usb=off", listed) == "pc-q35-7.2"
    assert _firmware.canonical_machine("pc", listed) == "pc-i440fx-7.2"
    assert _firmware.canonical_machine("pc-q35-6.0", listed) == "pc-q35-6.0"
    assert _firmware.canonical_machine("q35", "") == "q35"


@pytest.mark.parametrize(
    ("spec", "given", "option"),
    [
        (GuestSpec("g", secure_boot=True), {}, "secure_boot"),
        (GuestSpec("g", firmware_code="/f"), {}, "firmware_code"),
        (GuestSpec("g", firmware="uefi", firmware_variables="/f"), {}, "firmware_variables"),
        (GuestSpec("g", architecture="aarch64"), {"firmware": "bios"}, "firmware"),
    ],
)
def test_options_that_do_not_go_together_are_named(spec: GuestSpec, given: dict[str, t.Any], option: str) -> None:
    with pytest.raises(InvalidInput) as error:
        _firmware.check(spec, given)
    assert error.value.details["option"] == option
    _firmware.check(GuestSpec("g", firmware="uefi", secure_boot=True, firmware_code="/f"), {"firmware": "uefi"})


@pytest.mark.parametrize(
    ("architecture", "kernel", "firmware"),
    [("x86_64", None, "bios"), ("x86_64", "/k", "bios"), ("aarch64", None, "uefi"), ("aarch64", "/k", "none")],
)
def test_a_new_guest_has_what_its_machine_needs(architecture: str, kernel: t.Optional[str], firmware: str) -> None:
    assert _firmware.default(architecture, kernel) == firmware


def words(uefi: t.Optional[Uefi]) -> list[str]:
    return _argv.command_line(GuestSpec("vm1", uefi=uefi), program="qemu", accelerator="tcg")


@pytest.mark.parametrize("smm", [False, True])
def test_qemu_is_given_both_halves_of_the_flash(smm: bool) -> None:
    plain = words(None)
    uefi = words(Uefi("/f/code,a.fd", "raw", "/f/vars.qcow2", "qcow2", smm))
    machine = "q35,pflash0=firmware,pflash1=variables" + (",smm=on" if smm else "")
    assert uefi[uefi.index("-machine") + 1] == machine
    store = "/var/lib/labspan/guests/vm1/uefi_vars.fd"
    added = [
        "-blockdev",
        "driver=raw,node-name=firmware,read-only=on,file.driver=file,file.filename=/f/code,,a.fd",
        "-blockdev",
        f"driver=qcow2,node-name=variables,read-only=off,file.driver=file,file.filename={store}",
        *(["-global", "driver=cfi.pflash01,property=secure,value=on"] if smm else []),
    ]
    at = uefi.index("-blockdev")
    assert uefi[at : at + len(added)] == added
    assert [*uefi[:at], *uefi[at + len(added) :]] == [machine if word == "q35" else word for word in plain]


def variable(
    name: str, *, state: int = 0x3F, vendor: bytes = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")
) -> bytes:
    words = f"{name}\0".encode("utf-16-le")
    return struct.pack("<HBBIQ16sIII16s", 0x55AA, state, 0, 7, 0, b"", 0, len(words), 4, vendor) + words + b"data"


@pytest.mark.parametrize(
    ("content", "there"),
    [
        (variable("PK"), True),
        (variable("KEK") + variable("PK"), True),
        (variable("PK", state=0x3C) + variable("PK"), True),
        (variable("PK", state=0x3C), False),  # deleted
        (variable("PK", vendor=b"x" * 16), False),
        (variable("xPK"), False),
        ("PK\0".encode("utf-16-le"), False),
        (b"", False),
    ],
)
def test_a_platform_key_is_a_variable_that_is_there(tmp_path: pathlib.Path, content: bytes, there: bool) -> None:
    path = tmp_path / "vars.fd"
    path.write_bytes(b"\xff" * 100 + content + b"\xff" * 100)
    assert _firmware.has_platform_key(str(path)) == there


@pytest.mark.parametrize(("template", "there"), [("OVMF_VARS_4M.ms.fd", True), ("OVMF_VARS_4M.fd", False)])
def test_the_platform_key_of_real_templates_is_seen(template: str, there: bool) -> None:
    path = pathlib.Path("/usr/share/OVMF") / template
    if not path.exists():
        pytest.skip("the package ovmf is not installed")
    assert _firmware.has_platform_key(str(path)) == there


@settings(max_examples=20)
@given(pieces=st.lists(st.sampled_from([b"\0" * (1 << 20), b"x" * (1 << 20), b"y", b"\0" * 7]), max_size=4))
def test_a_store_is_a_copy_of_its_template(tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]) -> None:
    directory = tmp_path_factory.mktemp("store")
    template, store = directory / "template", directory / "store"
    template.write_bytes(b"".join(pieces))
    seen: list[int] = []
    _firmware.make_store(Uefi("/c", template=str(template)), str(store), lambda found: seen.append(found.st_ino))
    assert store.read_bytes() == template.read_bytes()
    assert seen == [store.stat().st_ino]
    assert sorted(path.name for path in directory.iterdir()) == ["store", "template"]


def test_a_store_is_never_made_over_anything(tmp_path: pathlib.Path) -> None:
    template, store = tmp_path / "template", tmp_path / "store"
    template.write_bytes(b"new")
    store.symlink_to(tmp_path / "nowhere")
    with pytest.raises(Refused):
        _firmware.make_store(Uefi("/c", template=str(template)), str(store), lambda _found: None)
    assert store.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", "template"]
