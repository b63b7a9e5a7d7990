# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import bz2
import email.message
import gzip
import hashlib
import io
import lzma
import os
import pathlib
import stat
import typing as t
import urllib.error
import urllib.response

import pytest
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import InvalidInput, LabspanError
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _cache
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._spec import Disk

#: Longer than a block, with a hole in it.
CONTENT = b"labspan" * 20000 + bytes(1 << 18) + b"end"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
SOME = f"sha256:{'0' * 64}"


@pytest.fixture
def images(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    pytest.importorskip("ansible")
    monkeypatch.setattr(_cache, "IMAGE_ROOT", str(tmp_path / "images"))
    return tmp_path / "images"


def disk_of(url: str, checksum: t.Optional[str] = None, base_format: t.Optional[str] = None) -> Disk:
    kept = _cache.kept_at(url, checksum)
    return Disk("/d", "qcow2", "virtio", base_image=kept, source=url, checksum=checksum, base_format=base_format)


@pytest.mark.parametrize(
    ("name", "pack"),
    [("i.raw", bytes), ("i.raw.xz", lzma.compress), ("i.raw.gz", gzip.compress), ("i.raw.bz2", bz2.compress)],
)
def test_an_image_is_kept_as_it_is_unpacked(
    images: pathlib.Path, tmp_path: pathlib.Path, name: str, pack: t.Callable[[bytes], bytes]
) -> None:
    packed = pack(CONTENT)
    (tmp_path / name).write_bytes(packed)
    disk = disk_of(f"file://{tmp_path / name}", f"sha256:{hashlib.sha256(packed).hexdigest()}")
    _cache.fetch(disk)
    kept = pathlib.Path(str(disk.base_image))
    assert kept.read_bytes() == CONTENT
    assert stat.S_IMODE(kept.stat().st_mode) == 0o444
    assert os.listdir(images) == [kept.name]
    assert kept.name.startswith("i-")
    assert kept.suffix == ".raw"
    before = kept.stat()
    _cache.fetch(disk)
    assert kept.stat() == before


def test_an_image_is_kept_on_a_file_system_that_wants_names(
    images: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "i.raw").write_bytes(CONTENT)
    disk = disk_of(f"file://{tmp_path / 'i.raw'}")
    images.mkdir()
    (images / f".{os.path.basename(str(disk.base_image))}.part").write_bytes(b"left by a run that was killed" * 100000)
    opened = os.open

    def without_nameless(path: str, flags: int, *arguments: t.Any, **options: t.Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(95, "Operation not supported")
        return opened(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", without_nameless)
    _cache.fetch(disk)
    assert [path.read_bytes() for path in images.iterdir()] == [CONTENT]


QCOW2_ON_ANOTHER = b"QFI\xfb" + (3).to_bytes(4, "big") + (112).to_bytes(8, "big") + (9).to_bytes(4, "big")
QCOW2_ON_ANOTHER += (16).to_bytes(4, "big") + (1 << 20).to_bytes(8, "big") + bytes(68) + (104).to_bytes(4, "big")
QCOW2_ON_ANOTHER += bytes(8) + b"/etc/pass" + bytes(600)


@pytest.mark.parametrize(
    ("name", "content", "checksum", "base_format", "sentence"),
    [
        ("i.raw", CONTENT, SOME, None, f"has the sha256 checksum {SHA256}, not 000"),
        ("i.raw.xz", lzma.compress(CONTENT)[:-40], None, None, "cannot be downloaded"),
        ("i.raw.xz", b"not packed at all", None, None, "cannot be downloaded"),
        ("i.raw.gz", gzip.compress(CONTENT)[:-40], None, None, "cannot be downloaded"),
        ("i.raw", b"", None, None, "is empty"),
        ("i.raw", CONTENT, None, "qcow2", "is a raw image, not qcow2"),
        ("i.qcow2", QCOW2_ON_ANOTHER, None, None, "must stand alone"),
        ("i.qcow2", QCOW2_ON_ANOTHER[:50], None, None, "cut short"),
        ("i.raw", None, None, None, "cannot be downloaded"),
    ],
    ids=["checksum", "half an xz", "no xz", "half a gz", "empty", "format", "overlay", "half a header", "nothing"],
)
def test_what_is_not_right_leaves_nothing(
    images: pathlib.Path,
    tmp_path: pathlib.Path,
    name: str,
    content: t.Optional[bytes],
    checksum: t.Optional[str],
    base_format: t.Optional[str],
    sentence: str,
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(LabspanError, match=sentence):
        _cache.fetch(disk_of(f"file://{tmp_path / name}", checksum, base_format))
    assert os.listdir(images) == []


def test_a_checksum_can_stand_in_a_list(images: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "i.raw").write_bytes(CONTENT)
    sums = tmp_path / "SUMS"
    checksum = f"sha256:file://{sums}"
    other = "1" * 64
    for text in (
        f"{other}  j.raw\n{SHA256}  i.raw\n",
        f"SHA256 (i.raw) = {SHA256.upper()}\n",
        f"{SHA256} *./i.raw\n",
    ):
        sums.write_text(text, encoding="ascii")
        disk = disk_of(f"file://{tmp_path / 'i.raw'}", checksum)
        _cache.fetch(disk)
        os.unlink(str(disk.base_image))
    for text, sentence in (
        (f"{other}  i.raw\n", "not 1111"),
        (f"{SHA256}  j.raw\n", "has no sha256 checksum of i.raw"),
    ):
        sums.write_text(text, encoding="ascii")
        with pytest.raises(LabspanError, match=sentence):
            _cache.fetch(disk_of(f"file://{tmp_path / 'i.raw'}", checksum))
    assert os.listdir(images) == []


LISTED = "sha256:https://list/SUMS"
HTTP_LIST = "sha256:http://list/SUMS"


class Web:
    """Servers that have the image and the list of its checksum everywhere, and redirect by a table."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, redirections: t.Mapping[str, t.Optional[str]]) -> None:
        from ansible.module_utils import urls

        self.asked: list[str] = []
        self._redirections = redirections
        monkeypatch.setattr(urls, "open_url", self._open)

    def _open(self, url: str, *, follow_redirects: str, **_options: t.Any) -> t.Any:
        assert follow_redirects == "none"
        self.asked.append(url)
        if url in self._redirections:
            headers = email.message.Message()
            location = self._redirections[url]
            if location is not None:
                headers["Location"] = location
            raise urllib.error.HTTPError(url, 302, "Found", headers, io.BytesIO())
        content = f"{SHA256}  i.raw\n".encode() if url.endswith("SUMS") else CONTENT
        return urllib.response.addinfourl(io.BytesIO(content), email.message.Message(), url, 200)


@pytest.mark.parametrize(
    ("url", "checksum", "redirections"),
    [
        ("https://h/i.raw", None, {"https://h/i.raw": "/j.raw", "https://h/j.raw": "https://m/i%20.raw"}),
        ("https://h/i.raw", f"sha256:{SHA256}", {"https://h/i.raw": "http://m/i.raw"}),
        ("http://h/i.raw", f"sha256:{SHA256}", {"http://h/i.raw": "//m/i.raw"}),
        ("https://h/i.raw", LISTED, {"https://h/i.raw": "http://m/i.raw"}),
        ("http://h/i.raw", LISTED, {"https://list/SUMS": "https://m/SUMS"}),
        ("https://h/i.raw", HTTP_LIST, {"http://list/SUMS": "http://m/SUMS"}),
    ],
    ids=["https", "digits", "relative", "a list by https", "a list by https elsewhere", "a list by http"],
)
def test_redirections_are_followed_where_nobody_on_the_way_can_change_what_counts(
    images: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    url: str,
    checksum: t.Optional[str],
    redirections: dict[str, str],
) -> None:
    web = Web(monkeypatch, redirections)
    _cache.fetch(disk_of(url, checksum))
    assert [path.read_bytes() for path in images.iterdir()] == [CONTENT]
    assert set(redirections) <= set(web.asked)


@pytest.mark.parametrize(
    ("url", "checksum", "redirections", "sentence"),
    [
        ("https://h/i.raw", None, {"https://h/i.raw": "http://m/i.raw"}, r"h/i\.raw is redirected to http://m, and"),
        (
            "https://h/i.raw",
            None,
            {"https://h/i.raw": "HTTP://m/i.raw", "http://m/i.raw": "https://n/i.raw"},
            "changed by anybody on the way",
        ),
        ("https://h/i.raw", HTTP_LIST, {"https://h/i.raw": "http://m/i.raw"}, "changed by anybody on the way"),
        (
            "https://h/i.raw",
            LISTED,
            {"https://list/SUMS": "http://m/SUMS"},
            r"list/SUMS is redirected to http://m, and",
        ),
        ("http://h/i.raw", LISTED, {"https://list/SUMS": "http://m/SUMS"}, "Give the checksum itself"),
        ("https://h/i.raw", None, {"https://h/i.raw": "http://u:secret@m/i.raw"}, "is redirected to http://m, and"),
        ("https://h/i.raw", None, {"https://h/i.raw": "file:///etc/shadow"}, "what is no web server"),
        ("https://h/i.raw", None, {"https://h/i.raw": "ftp://m/i.raw"}, "what is no web server"),
        ("https://h/i.raw", None, {"https://h/i.raw": "https://[m/i.raw"}, "what is no web server"),
        ("https://h/i.raw", None, {"https://h/i.raw": "https://h/i.raw"}, "redirected more than 10 times"),
        ("https://h/i.raw", None, {"https://h/i.raw": None}, "HTTP Error 302"),
    ],
)
def test_redirections_are_refused_where_somebody_on_the_way_could_change_what_counts(
    images: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    url: str,
    checksum: t.Optional[str],
    redirections: dict[str, t.Optional[str]],
    sentence: str,
) -> None:
    web = Web(monkeypatch, redirections)
    with pytest.raises(LabspanError, match=sentence) as refusal:
        _cache.fetch(disk_of(url, checksum))
    assert "secret" not in str(refusal.value)
    assert os.listdir(images) == []
    assert not [place for place in web.asked if "//m" in place], "it was asked nevertheless"


@pytest.mark.parametrize(
    ("url", "checksum", "sentence"),
    [
        ("ftp://h/i", None, "of another kind"),
        ("https:///i", None, "names no host"),
        ("https://h/", None, "names no file"),
        ("https://u:secret@h/i", None, "a netrc file keeps it"),
        ("file://h/i", None, "on the managed host"),
        ("http://h/i", None, "anybody on the way"),
        ("http://h/i", "sha256:http://h/SUMS", "anybody on the way"),
        ("https://h/i.tar.zst", None, "Unpack it"),
    ],
)
def test_a_url_that_is_no_good_is_refused(url: str, checksum: t.Optional[str], sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence) as refusal:
        _cache.source("o", url, checksum)
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize(
    ("url", "checksum"), [("http://h/i", SOME), ("http://h/i", "md5:https://h/S"), ("file:///i", None)]
)
def test_a_url_that_is_good_is_taken(url: str, checksum: t.Optional[str]) -> None:
    assert _cache.source("o", url, checksum) == url


@pytest.mark.parametrize("value", ["sha256:12", "crc:12", "sha256:", f"sha256:{'g' * 64}", "sha256:ftp://h/S"])
def test_a_checksum_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(InvalidInput):
        _cache.checksum("o", value)
    assert _cache.checksum("o", SOME.upper()) == SOME


def test_each_url_and_checksum_has_a_name_of_its_own() -> None:
    asked = [
        ("https://h/a.qcow2", None),
        ("https://h/a.qcow2", SOME),
        ("https://i/a.qcow2", None),
        ("https://h/a.qcow2?x", None),
    ]
    paths = {_cache.kept_at(url, checksum) for url, checksum in asked}
    assert len(paths) == len(asked)
    for path in paths:
        assert os.path.dirname(path) == "/var/lib/labspan/images"
        assert os.path.basename(path).startswith("a-")
        assert path.endswith(".qcow2")
    for url in (
        "https://h/%2e%2e%2f%2e%2e%2fetc",
        "https://h/..",
        "https://h/-x",
        "https://h/a%00b%0a",
        f"https://h/{'x' * 500}",
    ):
        path = _cache.kept_at(url, None)
        assert os.path.dirname(path) == "/var/lib/labspan/images"
        assert len(os.path.basename(path)) < 200
        assert os.path.basename(path).isprintable()
    assert _cache.shown("https://h/a?token=secret#x") == "https://h/a"
