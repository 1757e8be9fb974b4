"""A file that is written whole or not at all.

A leaf: imports nothing of wgcell's.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

__all__ = ["write"]

_LONGEST = 200
"""Bytes of the file's name that its draft has: with the rest it stays within 255."""


def write(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Put ``content`` at ``path``, in the place of what is there. Raises OSError; then the file is
    as it was.

    It is written beside it, flushed to the disk and renamed. ``mode`` are its permissions, less
    the umask.
    """
    name = os.fsdecode(os.fsencode(path.name)[:_LONGEST])
    draft = path.with_name(f".{name}.{os.urandom(4).hex()}.part")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise
