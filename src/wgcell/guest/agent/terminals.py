"""Terminals of the workload's own devpts, whose masters the agent holds."""

from __future__ import annotations

import _struct as struct
import os
from fcntl import ioctl

__all__ = ["end_of_input", "opened", "resize"]

# <asm-generic/ioctls.h>
_TCGETS, _TIOCSWINSZ, _TIOCSPTLCK, _TIOCGPTPEER = 0x5401, 0x5414, 0x40045431, 0x5441
# struct termios as the kernel has it: four flags, the line discipline, the control characters.
_TERMIOS = struct.Struct("<4IB19s")
_LOCAL_FLAGS, _CHARACTERS = 3, 5
_ICANON, _VEOF = 0o2, 4
TYPE_CHECKING = False
if TYPE_CHECKING:
    from wgcell.guest.frames import Terminal


def opened(devpts: int, size: Terminal) -> tuple[int, int]:
    """A new terminal's master and the terminal, as descriptors. Raises OSError.

    By the descriptor of the file system: no name of the workload's leads there.
    """
    master = os.open("ptmx", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK, dir_fd=devpts)
    try:
        resize(master, size)
        ioctl(master, _TIOCSPTLCK, struct.pack("<i", 0))
        return master, ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        os.close(master)
        raise


def resize(master: int, size: Terminal) -> None:
    """Another size; a change is a SIGWINCH to the foreground process group."""
    ioctl(master, _TIOCSWINSZ, struct.pack("<4H", size.rows, size.columns, 0, 0))


def end_of_input(master: int) -> bytes:
    """The character that ends the input, as long as the terminal reads lines: Ctrl-D."""
    found = _TERMIOS.unpack(ioctl(master, _TCGETS, bytes(_TERMIOS.size)))
    if not found[_LOCAL_FLAGS] & _ICANON:
        return b""
    return bytes(found[_CHARACTERS][_VEOF : _VEOF + 1]).strip(b"\0")  # NUL: there is none
