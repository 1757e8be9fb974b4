"""The comparison of a guest's report with its configuration. No report is believed."""

from __future__ import annotations

import binascii
from collections.abc import Mapping, Sequence

from wgcell.guest.config import GuestConfig
from wgcell.guest.firewall import ENDPOINT, PORT, comparable, ruleset
from wgcell.guest.protocol import REPORTS
from wgcell.guest.walls import Wall
from wgcell.net.addresses import network

__all__ = ["expected", "mismatch"]


def expected(config: GuestConfig) -> Mapping[str, str]:
    """The reports of a guest that is set up as asked; routes are held to a rule instead."""
    workload = "first eth0\nfirst lo\nworkload lo\nworkload wg0"
    one = "first eth0\nfirst lo\nfirst wg0"
    key = binascii.b2a_base64(config.peer_public_key, newline=False).decode("ascii")
    return {
        "firewall": comparable(ruleset()) if Wall.FIREWALL in config.walls else "",
        "links": workload if Wall.NAMESPACE in config.walls else one,
        "wireguard": f"{key} {ENDPOINT}:{PORT} {','.join(config.allowed_ips)} {config.keepalive}",
    }


def mismatch(config: GuestConfig, reports: Mapping[str, str]) -> str | None:
    """The difference from the configuration, in one sentence; None if there is none."""
    for what in REPORTS:
        if what not in reports:
            return f"the guest did not report its {what}"
    for what, asked in expected(config).items():
        seen = comparable(reports[what])
        if what == "links":
            seen = "\n".join(sorted(set(seen.splitlines())))
        if what == "wireguard":
            asked, seen = _one_spelling(asked), _one_spelling(seen)
        if seen != asked:
            return f"the guest's {what} is not what was asked: {_difference(asked, seen)}"
    return _misrouted(reports["routes"].splitlines())


def _one_spelling(report: str) -> str:
    """A report on WireGuard with its networks in order, each once and written in one way.

    ``wg`` writes them as inet_ntop(3) does, and the kernel keeps each once. Networks that are none
    stay as they are.
    """
    words = report.split(" ")
    if len(words) != 4:
        return report
    try:
        networks = {network(text) for text in words[2].split(",")}
    except ValueError:
        return report
    words[2] = ",".join(map(str, sorted(networks, key=lambda one: (one.version, one))))
    return " ".join(words)


_LINK = "eth0 0040A8C0 FCFFFFFF"
"""192.168.64.0/30 as ``/proc/net/route`` writes it."""


def _misrouted(routes: Sequence[str]) -> str | None:
    """The error in the guest's routes: a device, a network and its mask or length each."""
    tunnel = False
    for route in routes:
        device, network, *_ = [*route.split(), "", ""]
        # IPv6 puts its multicast network over every interface by itself.
        tunnel |= device == "wg0" and not network.startswith("ff00")
        if device == "eth0" and route != _LINK:
            return f"the guest has a route over eth0: {route[:80]!r}"
        if device not in ("eth0", "wg0", "lo"):
            return f"the guest has a route over {device[:20]!r}"
    return None if tunnel else "the guest has no route into the tunnel"


def _difference(asked: str, seen: str) -> str:
    theirs = seen.splitlines()
    for line in asked.splitlines():
        if line not in theirs:
            return f"{line.strip()[:80]!r} is missing"
    extra = [line for line in theirs if line not in asked.splitlines()]
    return f"{extra[0].strip()[:80]!r} is too much" if extra else "the order differs"
