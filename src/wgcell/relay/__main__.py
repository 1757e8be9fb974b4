"""``python -P -m wgcell.relay``: the relay as a process, started by the supervisor alone."""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import socket
import sys

from wgcell.relay.loop import Loop

_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Run until told to quit; 1 if the descriptors are not what they should be."""
    parser = argparse.ArgumentParser(prog="wgcell.relay", description=__doc__)
    for name in ("--nic-fd", "--udp-fd", "--control-fd"):
        parser.add_argument(name, type=int, required=True)
    asked = parser.parse_args()
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        return 1
    # Ctrl-C is for the supervisor, which then ends everyone in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    nic, udp, control = (
        socket.socket(fileno=fd) for fd in (asked.nic_fd, asked.udp_fd, asked.control_fd)
    )
    Loop(nic, udp, control).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
