"""Files that the kernel makes, read and written at once."""

from __future__ import annotations

import os

__all__ = ["read", "write", "write_all"]


def read(path: str) -> str:
    """The text of a file."""
    with open(path, encoding="utf-8", errors="backslashreplace") as file:
        return file.read()


def write(path: str, text: str) -> None:
    """Write to a file that is there, by one call."""
    file = os.open(path, os.O_WRONLY)
    try:
        os.write(file, text.encode())
    finally:
        os.close(file)


def write_all(file: int, data: bytes) -> None:
    """Write all of it, by as many calls as that takes: a port takes 32 KiB at once."""
    while data:
        data = data[os.write(file, data) :]
