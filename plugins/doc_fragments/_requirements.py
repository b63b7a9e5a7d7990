# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a managed host must have, for the documentation of the modules.

Note that this doc fragment is **PRIVATE** to the collection. It can have breaking changes at any time.
Must be kept in sync with plugins/module_utils/_deps.py.
"""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options: {}
requirements:
  - Linux
  - Python >= 3.9
"""

    PYROUTE2 = r"""
options: {}
requirements:
  - pyroute2 >= 0.7.2 for the Python interpreter of the managed host
"""

    IPTC = r"""
options: {}
requirements:
  - python-iptables (only for O(backend=iptables_legacy))
"""
