# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What lab_host does, when all of its code is there.

Note that this module util is **PRIVATE** to the collection. It can have breaking changes at any time.
"""

from __future__ import annotations

import typing as t

from ansible_collections.labspan.vmnet.plugins.module_utils import _as_needed, _carried_code, _discreet, _runner
from ansible_collections.labspan.vmnet.plugins.module_utils._guest import _seed
from ansible_collections.labspan.vmnet.plugins.module_utils._lab import _language, _resources


def main() -> None:
    """Converge the host."""
    module = _discreet.DiscreetModule(
        hidden={*_seed.HIDDEN, *_carried_code.HIDDEN},
        argument_spec={**_language.OPTIONS, **_carried_code.OPTIONS},
        supports_check_mode=True,
    )

    host = _resources.LabHost(check_mode=module.check_mode)

    def present(outcome: _runner.Outcome) -> dict[str, t.Any]:
        result = host.present(outcome)
        if not module.check_mode:
            # A host of which nothing of ours is left has nothing of this left.
            if host.is_empty:
                _as_needed.drop()
            else:
                _carried_code.keep(module.params)
                _as_needed.keep()
        return result

    _runner.run(module, host.build, present=present)
