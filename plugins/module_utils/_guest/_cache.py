# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Images that are downloaded, once for all guests of a host.

A download has no name until it is whole, has the right checksum and holds an image that stands alone. What is cut short
leaves nothing, and of two runs that fetch the same image, one names it and both have it.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import os
import re
import string
import typing as t
import urllib.parse

from ansible_collections.labspan.vmnet.plugins.module_utils import _whole_files
from ansible_collections.labspan.vmnet.plugins.module_utils._errors import InvalidInput, Refused, SystemFailure
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._places import IMAGE_ROOT

if t.TYPE_CHECKING:  # pragma: no cover
    from ansible_collections.labspan.vmnet.plugins.module_utils._guest._spec import Disk

SCHEMES = ("https", "http", "file")
#: What Python's standard library unpacks.
PACKED = (".xz", ".gz", ".bz2")
_CANNOT_UNPACK = (".zst", ".zip", ".7z", ".tar", ".tgz", ".lz4", ".rar")

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_CHECKSUM = re.compile(r"(sha256|sha512|sha1|md5):(.+)\Z", re.IGNORECASE)
_DIGEST = re.compile(r"[0-9a-fA-F]+\Z")
_BLOCK = 1 << 16
_ZEROS = bytes(_BLOCK)
#: No list of checksums is longer.
_LONGEST_LIST = 1 << 22
#: Seconds in which nothing at all arrives.
_PATIENCE = 60
_REDIRECTIONS = (301, 302, 303, 307, 308)
_MOST_REDIRECTIONS = 10


def is_url(text: str) -> bool:
    return _URL.match(text) is not None


def checksum(option: str, value: str) -> str:
    """C(algorithm:digits), or C(algorithm:URL) of a list."""
    match = _CHECKSUM.match(value.strip())
    if match is None or not (_DIGEST.match(match[2]) or is_url(match[2])):
        raise InvalidInput(
            option, value, "is not a checksum; write it as sha256:<hexadecimal digits>, or sha256:<URL of a list>."
        )
    algorithm, rest = match[1].lower(), match[2]
    if is_url(rest):
        return f"{algorithm}:{_plain(option, rest)}"
    wanted = hashlib.new(algorithm).digest_size * 2
    if len(rest) != wanted:
        raise InvalidInput(option, value, f"has {len(rest)} digits; a {algorithm} checksum has {wanted}.")
    return f"{algorithm}:{rest.lower()}"


def is_listed(value: str) -> bool:
    """Whether the checksum stands in a list that has to be fetched."""
    return is_url(value.partition(":")[2])


def source(option: str, url: str, digest: t.Optional[str]) -> str:
    """A URL that an image can be downloaded from."""
    url = _plain(option, url)
    path = urllib.parse.urlsplit(url).path
    if not os.path.basename(path):
        raise InvalidInput(option, url, "names no file.")
    if path.lower().endswith(_CANNOT_UNPACK):
        raise InvalidInput(
            option,
            url,
            f"is packed in a way that is not unpacked here ({', '.join(PACKED)} are). Unpack it, and give "
            "the path or URL of the image.",
        )
    if url.startswith("http:") and not _is_secured(digest):
        raise InvalidInput(
            option, url, "can be changed by anybody on the way. Give its checksum (and not by http), or use https."
        )
    return url


def _is_secured(digest: t.Optional[str]) -> bool:
    """Whether the image may come over any wire, since its checksum does not come by http."""
    return digest is not None and not digest.partition(":")[2].startswith("http:")


def _plain(option: str, url: str) -> str:
    parts = urllib.parse.urlsplit(url.strip())
    if parts.scheme.lower() not in SCHEMES:
        raise InvalidInput(option, url, f"is a URL of another kind than {', '.join(SCHEMES)}.")
    if parts.scheme.lower() == "file" and (parts.netloc not in ("", "localhost") or not parts.path.startswith("/")):
        raise InvalidInput(option, url, "is not the URL of a file on the managed host; write file:///directory/file.")
    if parts.scheme.lower() != "file" and not parts.hostname:
        raise InvalidInput(option, url, "names no host.")
    if parts.username is not None or parts.password is not None:
        raise InvalidInput(
            option, "a URL with a user name or password", "would show it in logs and results; a netrc file keeps it."
        )
    return urllib.parse.urlunsplit(parts._replace(scheme=parts.scheme.lower()))


def kept_at(url: str, digest: t.Optional[str]) -> str:
    """The path of the downloaded image: readable, and another one for each URL and checksum."""
    name = os.path.basename(urllib.parse.unquote(urllib.parse.urlsplit(url).path))
    if name.lower().endswith(PACKED):
        name = name.rpartition(".")[0]
    name = re.sub(r"[^A-Za-z0-9_.+-]", "_", name).lstrip(".-")
    stem, dot, ending = name.rpartition(".")
    key = hashlib.sha256(f"{url}\0{digest or ''}".encode()).hexdigest()[:16]
    stem = (stem if dot else name)[:100]
    return os.path.join(IMAGE_ROOT, f"{stem}-{key}{dot}{ending[:16] if dot else ''}")


def shown(url: str) -> str:
    """The URL without what may be a secret in it."""
    return urllib.parse.urlunsplit(urllib.parse.urlsplit(url)._replace(query="", fragment=""))


@dataclasses.dataclass
class _Reader:
    """A response that counts and hashes what is read of it."""

    response: t.Any
    digest: t.Any
    length: int = 0

    def read(self, size: int = _BLOCK) -> bytes:
        # Never the whole: a decompressor may ask for that.
        block = t.cast(bytes, self.response.read(_BLOCK if size is None or size < 0 else min(size, _BLOCK)))
        self.digest.update(block)
        self.length += len(block)
        return block


def fetch(disk: Disk) -> None:
    """Download the base image of the disk to where it is kept, unless it is there."""
    url, path = disk.source, disk.base_image
    if url is None or path is None or os.path.exists(path):
        return
    _whole_files.make_directories(IMAGE_ROOT)
    os.chmod(IMAGE_ROOT, 0o755)
    algorithm, wanted = _wanted(disk.checksum, url)
    try:
        with _nameless(path) as descriptor:
            found = _download(url, descriptor, algorithm, guarded=not _is_secured(disk.checksum))
            if wanted is not None and found != wanted:
                raise Refused(
                    f"{shown(url)} has the {algorithm} checksum {found}, not {wanted}. Nothing of it was kept."
                )
            _examine(disk, path, descriptor)
            os.fchmod(descriptor, 0o444)
            os.fsync(descriptor)
            _name(descriptor, path)
    except OSError as error:
        raise SystemFailure(
            f"{shown(url)} cannot be kept as {path} ({error.strerror or error}). Nothing of it is left."
        ) from error


def _wanted(digest: t.Optional[str], url: str) -> tuple[str, t.Optional[str]]:
    if digest is None:
        return "sha256", None
    algorithm, _colon, rest = digest.partition(":")
    if not is_url(rest):
        return algorithm, rest
    with _open(rest, guarded=not rest.startswith("http:")) as response:
        text = response.read(_LONGEST_LIST).decode("utf-8", "replace")
    name = os.path.basename(urllib.parse.unquote(urllib.parse.urlsplit(url).path))
    size = hashlib.new(algorithm).digest_size * 2
    found = listed(text, name, size)
    if found is None:
        raise Refused(f"the list {shown(rest)} has no {algorithm} checksum of {name}.")
    return algorithm, found


def listed(text: str, name: str, size: int) -> t.Optional[str]:
    """The checksum of a file in a list, as sha256sum(1) writes it with or without C(--tag)."""
    for line in text.splitlines():
        tagged = re.match(r"\w+ ?\((.+)\) ?= ?([0-9a-fA-F]+)\s*\Z", line)
        plain = re.match(r"([0-9a-fA-F]+)[ \t]+\*?(.+?)\s*\Z", line)
        file, digits = (tagged[1], tagged[2]) if tagged else (plain[2], plain[1]) if plain else ("", "")
        if os.path.basename(file) == name and len(digits) == size:
            return digits.lower()
    return None


@contextlib.contextmanager
def _open(url: str, *, guarded: bool) -> t.Iterator[t.Any]:
    """The response; whatever goes wrong while it is read, on the network or in what comes, is one kind of error.

    With C(guarded), it comes from where nobody on the way can change it.
    """
    import http.client
    import zlib

    # Late, since it costs more than all the rest of this file, and few tasks download.
    from ansible.module_utils import urls

    faults: list[type[Exception]] = [OSError, EOFError, http.client.HTTPException, zlib.error, urls.ConnectionError]
    with contextlib.suppress(ImportError):  # a Python may be built without it
        import lzma

        faults.append(lzma.LZMAError)
    try:
        with contextlib.closing(_request(url, guarded)) as response:
            yield response
    except _CannotWrite:
        raise
    except tuple(faults) as error:
        raise SystemFailure(f"{shown(url)} cannot be downloaded ({error}). Nothing of it was kept.") from error


def _request(url: str, guarded: bool) -> t.Any:
    """The response of the place to which the URL leads in the end. Each on the way is looked at before it is asked."""
    import urllib.error

    from ansible.module_utils import urls

    place = url
    for _redirection in range(_MOST_REDIRECTIONS + 1):
        try:
            # As the file is: a server must not unpack it on the way.
            return urls.open_url(place, timeout=_PATIENCE, decompress=False, follow_redirects="none")
        except urllib.error.HTTPError as error:
            location = error.headers.get("Location")
            if error.code not in _REDIRECTIONS or not location:
                raise
            error.close()
        try:
            place, scheme, host = _redirected(place, location)
        except ValueError:  # of an address that is none
            scheme = host = ""
        if not host or scheme not in ("http", "https"):
            raise OSError("it is redirected to what is no web server")
        if guarded and scheme == "http":
            raise Refused(
                f"{shown(url)} is redirected to http://{host}, and what comes from there can be changed by anybody on "
                "the way. Give the checksum itself (sha256:<hexadecimal digits>), or a URL that stays with https. "
                "Nothing of it was kept."
            )
    raise OSError(f"it is redirected more than {_MOST_REDIRECTIONS} times")


def _redirected(url: str, location: str) -> tuple[str, str, t.Optional[str]]:
    """Where a server sends who asked for the URL: the new one, its scheme and its host."""
    # What is not ASCII in a header was read as Latin-1.
    place = urllib.parse.urljoin(url, urllib.parse.quote(location, encoding="iso-8859-1", safe=string.punctuation))
    parts = urllib.parse.urlsplit(place)
    return place, parts.scheme, parts.hostname


class _CannotWrite(OSError):
    """The fault is on this side of the wire."""


def _download(url: str, descriptor: int, algorithm: str, *, guarded: bool) -> str:
    """Write what the URL has, unpacked; returns the checksum of what came."""
    with _open(url, guarded=guarded) as response:
        reader = _Reader(response, hashlib.new(algorithm))
        written = 0
        for block in _blocks(_unpacked(url, reader)):
            try:
                # Zeros become a hole.
                if block != _ZEROS[: len(block)]:
                    _write(descriptor, block, written)
            except OSError as error:
                raise _CannotWrite(error.errno, error.strerror) from error
            written += len(block)
        for _block in _blocks(reader):  # what a decompressor left
            pass
        announced = response.headers.get("Content-Length") if response.headers is not None else None
        if announced is not None and announced.isdigit() and int(announced) != reader.length:
            raise EOFError(f"it broke off after {reader.length} of {announced} bytes")
    os.ftruncate(descriptor, written)
    return str(reader.digest.hexdigest())


def _write(descriptor: int, block: bytes, offset: int) -> None:
    view = memoryview(block)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


def _blocks(reader: t.Any) -> t.Iterator[bytes]:
    while True:
        block = reader.read(_BLOCK)
        if not block:
            return
        yield block


def _unpacked(url: str, reader: _Reader) -> t.Any:
    ending = os.path.splitext(urllib.parse.urlsplit(url).path)[1].lower()
    raw: t.Any = reader
    if ending == ".xz":
        import lzma

        return lzma.LZMAFile(raw)
    if ending == ".gz":
        import gzip

        return gzip.GzipFile(fileobj=raw, mode="rb")
    if ending == ".bz2":
        import bz2

        return bz2.BZ2File(raw)
    return reader


def _examine(disk: Disk, path: str, descriptor: int) -> None:
    from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _images

    url = str(disk.source)
    image = _images.inspect_open(path, descriptor)
    if image.backing is not None or image.external:
        raise Refused(
            f"the image {shown(url)} is built on another one or keeps data elsewhere; one that is downloaded must "
            "stand alone. Nothing of it was kept."
        )
    if not image.size and image.format == "raw":
        raise Refused(f"{shown(url)} is empty. Nothing was kept.")
    if disk.base_format is not None and image.format != disk.base_format:
        raise Refused(
            f"the image {shown(url)} is a {image.format} image, not {disk.base_format}. Give base_format: "
            f"{image.format}, or leave it out. Nothing of it was kept."
        )


@contextlib.contextmanager
def _nameless(path: str) -> t.Iterator[int]:
    """A new file beside C(path) that is gone with this process; under a name where the file system needs one."""
    directory = os.path.dirname(path)
    try:
        descriptor = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
        with _part(f"{directory}/.{os.path.basename(path)}.part") as descriptor:
            yield descriptor
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _part(path: str) -> t.Iterator[int]:
    """A file for one run at a time; what a run that was killed has left in it is thrown away."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    os.ftruncate(descriptor, 0)
                    try:
                        yield descriptor
                    finally:
                        os.unlink(path)
                    return
        finally:
            os.close(descriptor)


def _name(descriptor: int, path: str) -> None:
    directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # A link of the open file itself; with a descriptor of the directory, or Python would link the one in /proc.
        with contextlib.suppress(FileExistsError):  # another run was faster, with the same
            os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=directory, follow_symlinks=True)
        os.fsync(directory)
    finally:
        os.close(directory)
