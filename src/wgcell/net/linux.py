"""Numbers of Linux's interface that Python's standard library does not name.

Each stands here once, under its own name, with the header that defines it.
"""

from __future__ import annotations

__all__ = [
    "CAPABILITY_VERSION_3",
    "CLONE_NEWIPC",
    "CLONE_NEWNET",
    "CLONE_NEWNS",
    "CLONE_NEWUSER",
    "CLONE_NEWUTS",
    "IP_MTU",
    "IP_PKTINFO",
    "PR_SET_DUMPABLE",
    "PR_SET_NO_NEW_PRIVS",
    "PR_SET_PDEATHSIG",
    "PR_SET_SECCOMP",
    "SO_MEMINFO",
    "UDP_GRO",
    "UDP_SEGMENT",
]

# linux/sched.h
CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000

# sys/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_SECCOMP = 22
PR_SET_NO_NEW_PRIVS = 38

# linux/capability.h
CAPABILITY_VERSION_3 = 0x20080522

# linux/in.h
IP_PKTINFO = 8
IP_MTU = 14

# linux/udp.h
UDP_SEGMENT = 103
UDP_GRO = 104

# asm-generic/socket.h
SO_MEMINFO = 55
