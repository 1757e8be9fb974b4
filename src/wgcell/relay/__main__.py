"""``python -P -m wgcell.relay``: the relay as a process, started by the supervisor alone.

Everything is loaded and has run once before the seal closes: afterwards there is no file to load
from, and an exception's traceback, which opens source files, would be the process's death.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import signal
import socket
import sys

from wgcell.relay.loop import Loop
from wgcell.relay.seal import STAGES, Descriptors, Seal, seal

_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Run until told to quit; 1 if the descriptors are not what they should be."""
    parser = argparse.ArgumentParser(prog="wgcell.relay", description=__doc__)
    for name in ("--nic-fd", "--udp-fd", "--control-fd"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument(
        "--fuse-fd", type=int, default=-1, help="what kills the machine when it is closed"
    )
    parser.add_argument("--cell", default="", help="the cell's id")
    parser.add_argument("--open", action="store_true", help="without the seal: for controls only")
    asked = parser.parse_args()
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        return 1
    # Ctrl-C is for the supervisor, which then ends everyone in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    owned = Descriptors(asked.nic_fd, asked.udp_fd, asked.control_fd, asked.fuse_fd)
    nic, udp, control = (socket.socket(fileno=fd) for fd in (owned.nic, owned.udp, owned.control))
    loop = Loop(nic, udp, control, owned.fuse)
    loop.warm()
    if asked.open:
        closed = Seal(dict.fromkeys(STAGES, "left open on purpose"))
    else:
        with contextlib.suppress(ImportError):
            import pyseccomp  # noqa: F401  # while there are files
        closed = seal(owned, asked.cell)
    code = 0
    try:
        loop.run(closed)
    except BaseException as error:
        _last_words(control, error)
        code = 1
    # Not sys.exit: the interpreter's own end closes and frees what the seal has no call for.
    os._exit(code)


def _last_words(control: socket.socket, error: BaseException) -> None:
    trace, line = error.__traceback__, 0
    while trace is not None:
        line, trace = trace.tb_lineno, trace.tb_next
    words = f"{type(error).__name__}: {error} (line {line})"
    with contextlib.suppress(OSError):
        control.sendall(json.dumps({"event": "fault", "detail": words}).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
