"""What runs inside the machine, and how the host speaks with it.

``init`` is the first process, in the initramfs: IPv6 off, modules, firewall, then the card, the
configuration from the host, the link, wg0 (born in the first namespace, where its UDP socket
stays, and moved into the workload's), the root. ``agent`` goes on in the same shell: it reports
what stands, waits for release, watches, and brings the results home. ``workload`` starts the
requester's command with its capabilities dropped. ``firewall`` and ``protocol`` are the host's
side of the same words.

Once the workload runs, nothing in here is believed.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files

from wgcell.guest.firewall import ruleset

__all__ = ["scripts"]

_PLACES = {"init": "init", "agent": "bin/agent", "workload": "bin/workload"}


def scripts() -> Mapping[str, bytes]:
    """Our own files of the initramfs, by their path in it."""
    ours = {place: files(__name__).joinpath(name).read_bytes() for name, place in _PLACES.items()}
    return {**ours, "etc/firewall.nft": ruleset().encode()}
