"""The facts of one flow, and the hint for a refused one: the rule that would have allowed it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from wgcell.gateway.model.rules import may_be_advised
from wgcell.net.addresses import Address

__all__ = ["Flow", "hint", "learned_rule"]


@dataclass(slots=True)
class Flow:
    """One flow, with its bytes out of the cell and into it."""

    number: int
    peer: str
    protocol: str
    """``tcp``, ``udp``, ``dns`` for a name that was asked, or another of IP's, as ``icmp``."""
    address: Address
    port: int
    name: str = ""
    """The name that led to ``address``, if one did."""
    rule: str = ""
    names: tuple[str, ...] = ()
    """The names that allow the flow, so that it must ask for one of them; empty if a rule is about
    the address. Another policy changes them. After the host check only the host is left."""
    checked: bool = True
    """Whether the flow must ask for one of ``names``."""
    started: float = field(default_factory=time.monotonic)
    """On the monotonic clock, in seconds."""
    bytes_out: int = 0
    bytes_in: int = 0

    def count_out(self, count: int) -> None:
        """That many bytes more went out of the cell."""
        self.bytes_out += count

    def count_in(self, count: int) -> None:
        """That many bytes more went into it."""
        self.bytes_in += count


def hint(protocol: str, port: int, host: str, *, checked: bool = True) -> str:
    """The rule, without its verb, that would allow a flow; for a name alone, on TLS's port.

    Empty if none would, as for a ping, and for a bare address: no hint advises an address.
    """
    if not may_be_advised(host) or protocol not in ("tcp", "udp", "dns"):
        return ""
    if protocol == "dns":
        return f"{host}:443"
    if not checked:
        return f"{host}:{port}/tcp/unchecked"
    return f"{host}:{port}" + ("/udp" if protocol == "udp" else "")


def learned_rule(flow: Flow, host: str) -> str:
    """The rule, without its verb, for a flow that was learned: by address if it has no ``host``."""
    if host:
        return hint(flow.protocol, flow.port, host)
    where = f"[{flow.address}]" if flow.address.version == 6 else str(flow.address)
    return f"{where}:{flow.port}" + ("/udp" if flow.protocol == "udp" else "")
