# Copyright (c) The labspan.vmnet authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Options of modules that are between an action plugin and its module.

Note that this plugin util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import typing as t


def refusal(args: t.Mapping[str, t.Any], internal: t.Iterable[str]) -> t.Optional[str]:
    """Why a task with these arguments is not begun: it sets what is not its own; None if it does not."""
    given = [name for name in internal if name in args]
    if not given:
        return None
    return (
        f"{' and '.join(given)}: not an option of a task; the controller and the host use it between "
        "themselves. Leave it out."
    )
