"""How many examples a property has: 100, or as many as it says; few on a second machine.

Debian 13 runs what Debian 12 has run: its Python and its programs are other ones, the properties
are the same. There ``WGCELL_FEW`` is set.
"""

from __future__ import annotations

import os

FEW = 10


def examples(count: int) -> int:
    """``count`` of them, or `FEW`."""
    return min(count, FEW) if os.environ.get("WGCELL_FEW") else count
