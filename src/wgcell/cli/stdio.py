"""Standard input, output and error, however broken they are when wgcell is started."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["STDOUT", "whole"]

STDOUT = "standard output"


class _Named(io.FileIO):
    """A descriptor whose errors say which it is, as a file's do."""

    def write(self, data: ReadableBuffer) -> int:
        try:
            return super().write(data) or 0
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OSError(error.errno, error.strerror, STDOUT) from None


def whole() -> None:
    """Make sure that descriptors 0, 1 and 2 are open, and that `sys` has a stream for each.

    A closed one would be the next file that is opened, and words would go into it: into a cell's
    record, say. In the place of a closed standard output stands one that nothing can be written
    to, so that a result that gets lost is an error and not a silence.
    """
    for fd, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            # The lowest free number is taken: fd, for all below it are open by now.
            os.set_inheritable(os.open(os.devnull, mode), True)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115  # a descriptor, for good
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    # A stranger's odd bytes in a name are no reason to fail.
    sys.stderr.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_Named(1, "w", closefd=False)),
        encoding="utf-8",
        errors="backslashreplace",
        line_buffering=os.isatty(1),
    )
