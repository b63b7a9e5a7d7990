# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What can go wrong, as exceptions whose text is a sentence for the administrator.

Below the runner nobody calls C(fail_json): one of these is raised, and the runner ends the module with its text.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import typing as t


class LabspanError(Exception):
    """The base of all errors that a user is meant to read; C(details) become keys of the failed result."""

    def __init__(self, message: str, **details: t.Any) -> None:
        super().__init__(message)
        self.details = details


class InvalidInput(LabspanError):
    """An option has a value that cannot be right: names the option, what was found and what to do."""

    def __init__(self, option: str, found: object, remedy: str) -> None:
        super().__init__(f"{option}: {found!r} {remedy}", option=option)


class Refused(LabspanError):
    """What the task asks for would touch what is not ours, or cannot be done without loss."""


class MissingDependency(LabspanError):
    """A library or a program that this task needs is not on the managed host."""


class SystemFailure(LabspanError):
    """The kernel or a program refused a request that should have worked."""


class NotConverged(LabspanError):
    """Everything was applied, and reading again shows that the host still differs from what was asked."""
