"""The facts by which a reader can repeat a run."""

from __future__ import annotations

import re

from wgcell.prove.provenance import commit


def test_the_commit_is_this_checkouts() -> None:
    assert re.fullmatch(r"[0-9a-f]{40}(, with changes)?|not known: not a checkout", commit())
