"""What runs inside the machine, and how the host speaks with it.

``init`` is the first process, in the initramfs: IPv6 off, modules, firewall, then the card, the
configuration from the host, the link, wg0 (in the workload's namespace, its UDP socket in the
first), the root. ``agent`` goes on in the same shell: it reports what stands, waits for release,
watches, and brings the results home. ``workload`` starts the requester's command with its
capabilities dropped. ``firewall`` and ``protocol`` are the host's
side of the same words.

Once the workload runs, nothing in here is believed.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from types import MappingProxyType

from wgcell.guest.firewall import ruleset

__all__ = ["scripts"]

_PLACES = {
    "init": "init",
    "agent": "bin/agent",
    "clock": "bin/clock",
    "collect": "bin/collect",
    "workload": "bin/workload",
}

# What root may write in /proc without a capability, though it reaches beyond its namespaces: a
# helper that the kernel starts (core_pattern, modprobe), a card's settings, the machine's end.
_READ_ONLY_PROC = "/tmp"  # noqa: S108 - the initramfs's, which nobody else writes to
_READ_ONLY = ("sys", "sysrq-trigger", "irq", "bus")

# What is mounted together, each by one process: an fstab for ``mount -a``.
_MOUNTS: Mapping[str, str] = MappingProxyType(
    {
        "first": """\
proc /proc proc defaults
sys /sys sysfs defaults
dev /dev devtmpfs defaults
run /run tmpfs defaults
""",
        "disks": """\
/dev/vda /lower erofs ro
/dev/vdb /upper ext4 noinit_itable
""",
        "root": """\
pts /newroot/dev/pts devpts newinstance,ptmxmode=0666
shm /newroot/dev/shm tmpfs mode=1777
/upper/tmp /newroot/tmp none bind
run /newroot/run tmpfs mode=755
""",
        "workload": """\
proc /newroot/proc proc nosuid,nodev,noexec
sys /newroot/sys sysfs ro,nosuid,nodev,noexec
"""
        # A proc of its own, read-only, from which the places come: one process for all of it.
        + f"proc {_READ_ONLY_PROC} proc ro,nosuid,nodev,noexec\n"
        + "".join(
            f"{_READ_ONLY_PROC}/{place} /newroot/proc/{place} none bind\n" for place in _READ_ONLY
        ),
    }
)


def scripts() -> Mapping[str, bytes]:
    """Our own files of the initramfs, by their path in it."""
    ours = {place: files(__name__).joinpath(name).read_bytes() for name, place in _PLACES.items()}
    tables = {f"etc/mounts.{stage}": table.encode() for stage, table in _MOUNTS.items()}
    return {**ours, **tables, "etc/firewall.nft": ruleset().encode()}
