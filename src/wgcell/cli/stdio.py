"""Standard input, output and error, however broken they are when wgcell is started."""

from __future__ import annotations

import errno
import os
import sys

__all__ = ["flush", "stdout_is_broken", "whole"]


def whole() -> None:
    """Make sure that descriptors 0, 1 and 2 are open.

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
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    # A stranger's odd bytes in a name are no reason to fail.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def flush() -> None:
    """Bring to standard output what was printed. Raises OSError."""
    sys.stdout.flush()


def stdout_is_broken(error: OSError) -> bool:
    """Whether ``error``, which names no file, is standard output's: what was printed is stuck."""
    if error.errno not in (errno.ENOSPC, errno.EBADF, errno.EIO, errno.EFBIG, errno.EDQUOT):
        return False
    try:
        sys.stdout.flush()
    except OSError:
        return True
    except ValueError:
        return False
    return False
