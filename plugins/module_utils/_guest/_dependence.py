# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which disk is built on which, over all guests of a host: what others are built on is written by nobody.

QEMU locks an image only while it is open. A base image that is written to while the guests on it are stopped destroys
their disks, and nobody notices before they run.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import collections
import os
import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils._errors import LabspanError
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _images
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._places import IMAGE_ROOT
from ansible_collections.labspan.vmnet.plugins.module_utils._guest._spec import Disk

_LONGEST_CHAIN = 64

Identity = t.Tuple[int, int]


class Use(t.NamedTuple):
    """A disk, and whose it is."""

    guest: str
    disk: Disk


class Leftover(t.NamedTuple):
    """A disk that was made for a guest, whether that is defined still or not."""

    guest: str
    path: str


def problems(uses: t.Sequence[Use], leftovers: t.Sequence[Leftover], concerned: t.Collection[str]) -> list[str]:
    """Why disks must not be used so; only what has to do with the guests that are C(concerned)."""
    above: dict[Identity, list[tuple[str, str]]] = collections.defaultdict(list)
    for guest, disk in uses:
        for image in _below(disk):
            above[image.identity].append((guest, disk.path))
    for guest, path in leftovers:
        for image in _walk(path)[1:]:
            above[image.identity].append((guest, path))
    found = []
    for guest, disk in uses:
        if disk.read_only or disk.is_empty:
            continue
        if guest in concerned and os.path.realpath(disk.path).startswith(f"{os.path.realpath(IMAGE_ROOT)}/"):
            found.append(
                f"the disk {disk.path} of guest {guest} is among the downloaded images, which are never written to. "
                "Give it as base_image instead."
            )
        for image in _walk(disk.path)[:1]:
            found += [
                f"the disk {disk.path} of guest {guest} is what {path} of guest {other} is built on, and would be "
                f"written by {guest}, which destroys it. Give guest {guest} an overlay of its own (base_image: "
                f"{disk.path}), or read_only: true."
                for other, path in above[image.identity]
                if (guest in concerned or other in concerned) and path != disk.path
            ]
    return found


def removals(going: t.Sequence[Leftover], uses: t.Sequence[Use], leftovers: t.Sequence[Leftover]) -> list[str]:
    """Why disks that were made for guests must not go with them: others have them, or are built on them."""
    doomed = {image.identity: each for each in going for image in _walk(each.path)[:1]}
    if not doomed:
        return []
    others = [(guest, disk.path, [*_walk(disk.path)[:1], *_below(disk)]) for guest, disk in uses if not disk.is_empty]
    others += [(each.guest, each.path, _walk(each.path)) for each in leftovers]
    found = []
    for guest, path, images in others:
        for each in (doomed[image.identity] for image in images if image.identity in doomed):
            how = "has it" if os.path.realpath(path) == os.path.realpath(each.path) else f"has {path} built on it"
            found.append(
                f"the disk {each.path} was made for guest {each.guest} and would go with it, and guest {guest} {how}. "
                f"Remove guest {guest} with its disks first, or leave remove_disks out."
            )
    return found


def _below(disk: Disk) -> list[_images.Image]:
    """What the disk is built on, or is going to be."""
    images = _walk(disk.path)
    if images:
        return images[1:]
    return _walk(disk.base_image) if disk.base_image is not None else []


def _walk(path: t.Optional[str]) -> list[_images.Image]:
    """The image and what is below it, as far as that can be followed; whether it may be so is judged elsewhere."""
    images: list[_images.Image] = []
    while path and len(images) < _LONGEST_CHAIN:
        try:
            image = _images.inspect(path)
        except LabspanError:
            break
        if image is None:
            break
        images.append(image)
        path = None if image.external else image.backing
    return images
