"""What is left of one VM: the packets of the captures, the guest's marks and messages, the result.

No I/O. The guest is hostile, so a line of its output may hold anything.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field

from wgcell import api
from wgcell.prove.battery.usage import ResourceUse
from wgcell.prove.testbed.base import HOST, PORT
from wgcell.prove.testbed.capture import Packet, is_port_unreachable, shown, tunnel_payload
from wgcell.relay import link
from wgcell.wire import wireguard

__all__ = ["Recording"]

_HOST = socket.inet_aton(HOST)
_GATEWAY = frozenset({link.GATEWAY_ADDRESS})
_LONGEST_MESSAGE = 200
"""Characters of a guest's message that are kept."""


@dataclass(slots=True)
class Recording:
    """One VM, from its start to its end."""

    packets: list[Packet] = field(default_factory=list)
    lost: int = 0
    marks: dict[str, list[bytes]] = field(default_factory=dict)
    """By case, the marks of the frames that the guest was about to send."""
    messages: list[str] = field(default_factory=list)
    done: bool = False
    """Whether the guest runner has reported its end."""
    result: api.Result | None = None
    seconds: float = 0.0
    use: ResourceUse = field(default_factory=ResourceUse)

    @property
    def outcome(self) -> str:
        """The cell's outcome."""
        return "" if self.result is None else self.result.outcome.value

    @property
    def reason(self) -> str:
        """Why the cell has ended."""
        return "" if self.result is None else self.result.reason

    def refusals(self) -> list[str]:
        """The relay's reasons for refusals, and how often."""
        refused = {} if self.result is None else self.result.refused
        return [f"{reason} x{n}" for reason, n in refused.items()]

    def carried(self, mark: bytes) -> bool:
        """Whether a packet that has left the host contains ``mark``."""
        return any(packet.out and mark in packet.data for packet in self.packets)

    def on_cable(self) -> list[Packet]:
        """The packets that have left the host by its card: loopback's are not among them."""
        return [packet for packet in self.packets if packet.out and not _on_loopback(packet)]

    def strays_beside(self, allowed: Iterable[bytes]) -> list[str]:
        """A line for each packet that has left the host by its card, with the endpoint on the host.

        Those that hold an ``allowed`` mark are no strays.
        """
        marks = tuple(allowed)
        return shown(
            packet
            for packet in self.on_cable()
            if not any(mark in packet.data for mark in marks)
            and not is_port_unreachable(packet.data, _HOST)
        )

    def strays(self, *, pass_through: bool = False) -> list[str]:
        """A line for each packet that has left the host and is not WireGuard to the endpoint.

        ``pass_through``: the guest's own WireGuard frames are no strays either, for a
        `PassThroughRelay` sends them as they are.
        """
        return shown(
            packet
            for packet in self.packets
            if packet.out
            and not _is_wireguard(packet.tunnel)
            and not (pass_through and _is_wireguard(_payload_to_gateway(packet)))
            and not is_port_unreachable(packet.data, _HOST)
        )

    def add_line(self, line: bytes) -> None:
        """Note a line of the guest runner: the marks of a case, its end, or a message."""
        try:
            fields = json.loads(line)
            if not isinstance(fields, dict):
                return
            if "marks" in fields:
                self.marks[str(fields["case"])] = [bytes.fromhex(one) for one in fields["marks"]]
            elif fields.get("done") is True:
                self.done = True
            else:
                self.messages.append(str(fields)[:_LONGEST_MESSAGE])
        except (ValueError, TypeError, KeyError):
            self.messages.append(repr(line[:_LONGEST_MESSAGE]))


def _on_loopback(packet: Packet) -> bool:
    return packet.place.endswith(" lo")


def _payload_to_gateway(packet: Packet) -> bytes | None:
    return tunnel_payload(packet.data, _GATEWAY, PORT)


def _is_wireguard(payload: bytes | None) -> bool:
    """Whether ``payload`` has the length and the first bytes of a WireGuard message."""
    if payload is None or len(payload) < wireguard.SHORTEST_TRANSPORT or payload[1:4] != bytes(3):
        return False
    lengths = {1: len(payload) == 148, 2: len(payload) == 92, 3: len(payload) == 64, 4: True}
    return lengths.get(payload[0], False)
