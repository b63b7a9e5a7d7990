# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What cloud-init in a guest is told, as the files of a NoCloud seed. Pure.

What the files hold may be secret: it is in no message, no representation and no record. A seed is known by a digest
that is keyed with a salt of its own, so that nobody who sees the digest can try out passwords on it.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import re
import secrets
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._errors import InvalidInput, LabspanError

ISO = "iso"
SMBIOS = "smbios"
NONE = "none"
DELIVERIES = (ISO, SMBIOS, NONE)

#: Names of the data source as the guest's serial number has them; cloud-init 24.1 deprecated the second one, and
#: before it only the second one waits for the network.
DATASOURCES = ("nocloud", "nocloud-net")

#: Option -> the file of the seed with its content.
FILES = {
    "user_data": "user-data",
    "meta_data": "meta-data",
    "network_config": "network-config",
    "vendor_data": "vendor-data",
}

#: Options whose value is shown nowhere. A URL may have a password in it, for which it is refused.
HIDDEN = (*FILES, "seed_url")

INSTANCE_ID = "instance-id"
HOSTNAME = "local-hostname"

_DIGITS_SHOWN = 16

# Printable in JSON, and not in YAML 1.1 (section 5.1), or a line break there (section 5.4).
_NOT_IN_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")

# Beginnings of what cloud-init takes for user data and vendor data (cloudinit/handlers), and cloudbase-init besides.
_HEADER = re.compile(
    r"#!|#cloud-|#include|#part-handler|## *template:|#ps1|<|rem cmd|content-type:|mime-version:|from ", re.IGNORECASE
)

_URL = re.compile(r"https?://[^\s;,@\"']+\Z")

Options = t.Mapping[str, t.Any]


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a task says about cloud-init."""

    delivery: str
    datasource: t.Optional[str] = None
    seed_url: t.Optional[str] = None
    new_instance_on_change: bool = False
    parts: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict, repr=False)
    """Option -> data or text."""
    salt: str = dataclasses.field(default="", repr=False)
    """For a guest that has none yet."""


@dataclasses.dataclass(frozen=True)
class CloudInit:
    """What is recorded of it as part of a guest."""

    delivery: str
    digest: t.Optional[str] = None
    salt: t.Optional[str] = dataclasses.field(default=None, repr=False)
    datasource: t.Optional[str] = None
    seed_url: t.Optional[str] = None


@dataclasses.dataclass(frozen=True)
class SeedFile:
    """The image with the seed."""

    digest: str
    """Of what it was made of; empty when that is not known for sure."""
    uid: int
    """Whose it is."""


def ask(guest: str, options: Options, *, salt: t.Optional[str] = None) -> Asked:
    """The option C(cloud_init), checked."""
    delivery = options.get("delivery") or ISO
    parts = {option: options[option] for option in FILES if options.get(option) is not None}
    url, datasource = options.get("seed_url"), options.get("datasource")
    if delivery != SMBIOS and (url or datasource):
        raise InvalidInput(
            "cloud_init.seed_url" if url else "cloud_init.datasource",
            datasource if not url else "a URL",
            f"of guest {guest} goes with delivery: smbios.",
        )
    if delivery != ISO and (parts or options.get("new_instance_on_change")):
        given = ", ".join(parts) or "new_instance_on_change"
        raise InvalidInput(
            "cloud_init.delivery",
            delivery,
            f"of guest {guest} puts nothing on an image, and {given} is given. "
            + ("Serve it at seed_url instead." if delivery == SMBIOS else "Leave it out."),
        )
    if delivery == SMBIOS:
        return Asked(delivery, datasource or DATASOURCES[0], _url(guest, url))
    asked = Asked(
        delivery,
        new_instance_on_change=bool(options.get("new_instance_on_change")),
        parts=parts,
        salt=salt or secrets.token_hex(16),
    )
    if delivery == ISO:
        _files(asked, guest)
    return asked


def record(asked: Asked, guest: str, defined: t.Optional[CloudInit]) -> t.Optional[CloudInit]:
    """What becomes part of the guest; C(defined) is what has been."""
    if asked.delivery == NONE:
        return None
    if asked.delivery == SMBIOS:
        return CloudInit(SMBIOS, datasource=asked.datasource, seed_url=asked.seed_url)
    salt = (defined.salt if defined else None) or asked.salt
    return CloudInit(ISO, _digest(salt, files(asked, guest, salt)), salt)


def files(asked: Asked, guest: str, salt: str) -> dict[str, bytes]:
    """The files of the seed."""
    found = _files(asked, guest)
    if asked.new_instance_on_change:
        identity = f"{instance_id(guest)}-{_digest(salt, found)[:12]}"
        found["meta-data"] = _data({**asked.parts.get("meta_data", {}), INSTANCE_ID: identity, **_name(asked, guest)})
    return found


def instance_id(guest: str) -> str:
    """What cloud-init knows an installation by, unless the task says otherwise: the same as long as the guest is."""
    return f"labspan-{guest}"


def host_name(guest: str) -> str:
    """The guest's name as a host name, which has no underscores and no dash at either end."""
    return guest.replace("_", "-").strip("-.")


def needs_warning(asked: Asked) -> list[str]:
    """The options whose text cloud-init will ignore, because it does not say what it is."""
    return [
        option
        for option in ("user_data", "vendor_data")
        if isinstance(asked.parts.get(option), str)
        and asked.parts[option].strip()
        and not _HEADER.match(asked.parts[option])
    ]


def differences(before: t.Optional[CloudInit], after: t.Optional[CloudInit]) -> list[str]:
    """What differs between two seeds, without what is in them."""
    if before == after:
        return []
    if before is None or after is None:
        return [f"cloud-init: {'the seed is not attached' if before is None else 'a seed is attached and not wanted'}"]
    if before.delivery != after.delivery:
        return [f"cloud-init: delivery is {before.delivery}, wanted {after.delivery}"]
    if before.delivery == SMBIOS:
        return [
            f"cloud-init: the seed is {_serial(before)}, wanted {_serial(after)}",
        ]
    return ["cloud-init: the seed has changed"]


def show(seed: t.Optional[CloudInit]) -> t.Optional[dict[str, t.Any]]:
    """What the administrator sees of it."""
    if seed is None:
        return None
    return {
        "delivery": seed.delivery,
        "digest": seed.digest[:_DIGITS_SHOWN] if seed.digest else None,
        "seed_url": seed.seed_url,
    }


def serial(seed: CloudInit) -> t.Optional[str]:
    """The guest's serial number, by which cloud-init is told where the seed is; None for a seed on an image."""
    return _serial(seed) if seed.delivery == SMBIOS else None


def from_data(stored: t.Optional[Options]) -> t.Optional[CloudInit]:
    """The record from the guest's file."""
    return None if stored is None else CloudInit(**stored)


def _serial(seed: CloudInit) -> str:
    return f"ds={seed.datasource};s={seed.seed_url}"


def _url(guest: str, url: t.Optional[str]) -> str:
    if not url:
        raise InvalidInput("cloud_init.delivery", SMBIOS, f"of guest {guest} needs seed_url: where the seed is served.")
    if not _URL.match(url):
        # Not shown: what makes it wrong may be a password in it.
        raise _wrong(
            "seed_url",
            guest,
            "is not a URL that can be given to a guest. Write it as in http://192.168.100.1:8000/, without a user, a "
            "password, commas and semicolons: everybody on the host can read it.",
        )
    return url if url.endswith("/") or "?" in url else f"{url}/"


def _files(asked: Asked, guest: str) -> dict[str, bytes]:
    parts = asked.parts
    found = {
        "user-data": _cloud_config("user_data", guest, parts.get("user_data", "")),
        "meta-data": _meta_data(asked, guest),
    }
    if "vendor_data" in parts:
        found["vendor-data"] = _cloud_config("vendor_data", guest, parts["vendor_data"])
    if "network_config" in parts:
        found["network-config"] = _network_config(guest, parts["network_config"])
    return found


def _cloud_config(option: str, guest: str, value: t.Any) -> bytes:
    if isinstance(value, str):
        return _text(option, guest, value or "#cloud-config\n")
    if isinstance(value, dict):
        return b"#cloud-config\n" + _data(value)
    if isinstance(value, list):
        return b"#cloud-config-archive\n" + _data(value)
    raise _wrong(option, guest, "is neither data (a dictionary, or the list of an archive) nor text.")


def _meta_data(asked: Asked, guest: str) -> bytes:
    value = asked.parts.get("meta_data", {})
    if isinstance(value, dict):
        if asked.new_instance_on_change and INSTANCE_ID in value:
            raise _wrong("meta_data", guest, f"has an {INSTANCE_ID}, which new_instance_on_change would replace.")
        return _data({INSTANCE_ID: instance_id(guest), **_name(asked, guest), **value})
    if asked.new_instance_on_change:
        raise _wrong("meta_data", guest, "has to be data (a dictionary) for new_instance_on_change.")
    if isinstance(value, str):
        return _text("meta_data", guest, value)
    raise _wrong("meta_data", guest, "is neither data (a dictionary) nor text.")


def _name(asked: Asked, guest: str) -> dict[str, str]:
    given = asked.parts.get("meta_data", {})
    return {} if HOSTNAME in given else {HOSTNAME: host_name(guest)}


def _network_config(guest: str, value: t.Any) -> bytes:
    if isinstance(value, str):
        return _text("network_config", guest, value)
    if isinstance(value, dict) and set(value) == {"network"} and isinstance(value["network"], dict):
        value = value["network"]  # as netplan writes it; cloud-init wants what is in it
    if not isinstance(value, dict):
        raise _wrong("network_config", guest, "is neither data (a dictionary) nor text.")
    if str(value.get("version")) not in ("1", "2"):
        raise _wrong("network_config", guest, "says nothing of its format; give version: 2 (or 1) in it.")
    return _data(value)


def _text(option: str, guest: str, value: str) -> bytes:
    try:
        return value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise _wrong(option, guest, "has characters that cannot be written as UTF-8.") from None


def _data(value: t.Any) -> bytes:
    """As JSON, which is YAML but for characters that YAML wants escaped: no library is needed for it."""
    text = json.dumps(value, ensure_ascii=False, indent=1)
    return (_NOT_IN_YAML.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + "\n").encode("utf-8")


def _digest(salt: str, content: t.Mapping[str, bytes]) -> str:
    keyed = hmac.new(salt.encode("ascii"), digestmod=hashlib.sha256)
    for name, data in sorted(content.items()):
        keyed.update(f"{name}\0{len(data)}\0".encode("ascii") + data)
    return keyed.hexdigest()


def _wrong(option: str, guest: str, remedy: str) -> LabspanError:
    """An error about an option whose value is not shown."""
    return LabspanError(f"cloud_init.{option} of guest {guest} {remedy}", option=f"cloud_init.{option}")
