"""The guest's own programs, and the protocol between host and guest.

``init`` is the first process, in the initramfs: IPv6 off, modules, firewall, then the card. Beside
it starts the ``agent``, in Python: it reads the configuration from the host, sets up the link, wg0
(in the workload's namespace, its UDP socket in the first) and the root, reports the result, waits
for release, starts the workload, watches, and sends the results to the host. ``lean`` has stand-ins
for modules that are too slow to load there; ``collect`` is the shell that makes the outputs' tar.
Both ends use ``protocol``, ``config``, ``fields``, ``walls`` and ``firewall``; ``verify`` is the
host's.

Once the workload runs, the host believes nothing that the guest says.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable

from wgcell.guest.firewall import ruleset

__all__ = ["AGENT", "scripts"]

AGENT = "lib/agent"
"""The folder of the agent's modules, in the initramfs."""
_SHELL = {"init": "init", "collect": "bin/collect"}
_MODULES = (
    *(
        "channel.py",
        "config.py",
        "fields.py",
        "firewall.py",
        "frames.py",
        "subjects.py",
        "protocol.py",
    ),
    "walls.py",
)
_STAND_INS = {
    "dataclasses.py": "dataclasses.py",
    "enum.py": "enum.py",
    "errors.py": "wgcell/errors.py",
}

_FIRST_MOUNTS = """\
proc /proc proc defaults
sys /sys sysfs defaults
dev /dev devtmpfs defaults
run /run tmpfs defaults
"""
"""By one process: an fstab for ``mount -a``."""


def scripts() -> Mapping[str, bytes]:
    """Our own files of the initramfs, by their path in it. Python's are there as source."""
    here = files(__name__)
    agent = [file for file in here.joinpath("agent").iterdir() if file.name.endswith(".py")]
    found: dict[str, Traversable] = {
        **{place: here.joinpath(name) for name, place in _SHELL.items()},
        **{f"{AGENT}/wgcell/guest/{name}": here.joinpath(name) for name in _MODULES},
        **{f"{AGENT}/wgcell/guest/agent/{file.name}": file for file in agent},
        **{f"{AGENT}/{place}": here.joinpath("lean", name) for name, place in _STAND_INS.items()},
    }
    packages = {f"{AGENT}/{name}/__init__.py": b"" for name in ("wgcell", "wgcell/guest")}
    tables = {"etc/mounts.first": _FIRST_MOUNTS.encode(), "etc/firewall.nft": ruleset().encode()}
    return {**{place: file.read_bytes() for place, file in found.items()}, **packages, **tables}
