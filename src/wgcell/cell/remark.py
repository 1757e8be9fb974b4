"""What is said to a person about a cell, before it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from wgcell.wire.lines import Flag, OneOf, Text

__all__ = ["WEIGHTS", "Remark"]

WEIGHTS = ("quiet", "normal", "verbose")
"""The least verbosity at which a remark is shown."""


@dataclass(frozen=True, slots=True)
class Remark:
    """A sentence for a person, about the cell that is being started."""

    weight: Annotated[str, OneOf(WEIGHTS)]
    warns: Annotated[bool, Flag()]
    text: Annotated[str, Text(16 << 10)]
