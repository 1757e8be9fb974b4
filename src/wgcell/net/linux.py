"""Numbers of Linux's interface that Python's `os` and `socket` do not name.

Each stands here once, under its own name, with the header that defines it. The guest's agent has
its own (`wgcell.guest.agent.kernel`): it runs on another kernel, with no module but its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

__all__ = [
    "CAPABILITY_VERSION_3",
    "CLONE_NEWIPC",
    "CLONE_NEWNET",
    "CLONE_NEWNS",
    "CLONE_NEWUSER",
    "CLONE_NEWUTS",
    "ETHERTYPES",
    "ETH_P_ALL",
    "ETH_P_IP",
    "ETH_P_IPV6",
    "IP_MTU",
    "IP_PKTINFO",
    "LANDLOCK_ADD_RULE",
    "LANDLOCK_CREATE_RULESET",
    "LANDLOCK_RESTRICT_SELF",
    "MNT_DETACH",
    "MS_BIND",
    "MS_NODEV",
    "MS_NOEXEC",
    "MS_NOSUID",
    "MS_PRIVATE",
    "MS_RDONLY",
    "MS_REC",
    "MS_REMOUNT",
    "PACKET_STATISTICS",
    "PIDFD_GETFD",
    "PIVOT_ROOT",
    "PROT_EXEC",
    "PR_CAP_AMBIENT",
    "PR_CAP_AMBIENT_RAISE",
    "PR_SET_DUMPABLE",
    "PR_SET_NO_NEW_PRIVS",
    "PR_SET_PDEATHSIG",
    "PR_SET_SECCOMP",
    "SECCOMP_MODE_FILTER",
    "SOL_PACKET",
    "SO_MEMINFO",
    "SO_RCVBUFFORCE",
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
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2

# linux/capability.h
CAPABILITY_VERSION_3 = 0x20080522

# linux/seccomp.h
SECCOMP_MODE_FILTER = 2

# sys/mman.h
PROT_EXEC = 4

# sys/mount.h
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2

# asm/unistd.h: system calls. Those of Landlock and PIDFD_GETFD are the same on every architecture.
PIVOT_ROOT: Mapping[str, int] = MappingProxyType({"x86_64": 155, "aarch64": 41})
PIDFD_GETFD = 438
LANDLOCK_CREATE_RULESET = 444
LANDLOCK_ADD_RULE = 445
LANDLOCK_RESTRICT_SELF = 446

# linux/if_ether.h
ETH_P_ALL = 0x0003
ETH_P_IP = 0x0800
ETH_P_IPV6 = 0x86DD
ETHERTYPES: Mapping[int, int] = MappingProxyType({4: ETH_P_IP, 6: ETH_P_IPV6})
"""By IP's version."""

# linux/in.h
IP_PKTINFO = 8
IP_MTU = 14

# linux/udp.h
UDP_SEGMENT = 103
UDP_GRO = 104

# linux/socket.h, linux/if_packet.h
SOL_PACKET = 263
PACKET_STATISTICS = 6

# asm-generic/socket.h
SO_RCVBUFFORCE = 33
SO_MEMINFO = 55
