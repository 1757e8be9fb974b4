"""A file that a person or a stranger named, read whole within a bound."""

from __future__ import annotations

from pathlib import Path

from wgcell.cell.units import size_text
from wgcell.display import one_line
from wgcell.errors import JobError

__all__ = ["read_whole"]


def read_whole(path: Path, what: str, most: int) -> bytes:
    """A file of at most ``most`` bytes. Raises JobError."""
    try:
        with path.open("rb") as file:
            raw = file.read(most + 1)
    except OSError as error:
        raise JobError(
            f"{path}: {error.strerror or error}", hint=f"name another {what}, one that you may read"
        ) from None
    except ValueError:  # a NUL in its name
        raise JobError(f"{one_line(path)}: no file can be called that") from None
    if len(raw) > most:
        raise JobError(f"{path}: larger than {size_text(most)}, which no {what} is")
    return raw
