"""``python -P -m wgcell.relay CONTROL CELL``: the relay as a process, of a supervisor's alone.

``CONTROL`` is the control socket's descriptor, over which come the NIC's socket, the UDP socket and
the kill switch, with the first byte; ``CELL`` is the cell's id. A third argument, ``open``, leaves
the seal open: for measuring, and for controls.

Everything is loaded and has run once before the seal closes: afterwards there is no file to load
from, and an exception's traceback, which opens source files, would be the process's death.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import sys

from wgcell.net import linux
from wgcell.relay import control as words
from wgcell.relay.loop import Loop
from wgcell.relay.seal import STAGES, Descriptors, Seal, load, seal


def main() -> int:
    """Run until the order to quit; 1 if the descriptors are not those of a relay."""
    fd, cell, *opened = sys.argv[1:]
    parent = os.getppid()
    ctypes.CDLL(None).prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        return 1
    # Ctrl-C is for the supervisor, which then ends everyone in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control = socket.socket(fileno=int(fd))
    _, given, _, _ = socket.recv_fds(control, 1, 3)
    if len(given) < 2:
        return 1
    nic, udp = (socket.socket(fileno=each) for each in given[:2])
    owned = Descriptors(nic.fileno(), udp.fileno(), control.fileno(), *given[2:])
    control.sendall(words.EVENTS.line(words.Begun()))
    loop = Loop(nic, udp, control, owned.kill_switch)
    loop.warm()
    load()
    left_open = Seal(dict.fromkeys(STAGES, "left open on purpose"))
    closed = left_open if opened else seal(owned, cell)
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
    fault = words.Fault(f"{type(error).__name__}: {error} (line {line})")
    with contextlib.suppress(OSError):
        control.sendall(words.EVENTS.line(fault))


if __name__ == "__main__":
    sys.exit(main())
