# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

"""Labs to try the collection in: hosts that are namespaces of this machine, on a LAN that is one, too."""
