"""The relay's verdicts on a frame, and every reason that it may give.

*Rogue*: no honest guest could ever send it. *Out of step*: loss, reordering, a suspended host, or
an endpoint that restarted or moved can explain it; it is dropped and counted, and rogue only past a
stated rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["OUT_OF_STEP", "Reason", "Refusal"]


class Reason(Enum):
    """Why a frame or a message was refused."""

    # The stream and the link.
    STREAM = "stream"
    LENGTH = "length"
    DESTINATION_MAC = "destination_mac"
    SOURCE_MAC = "source_mac"
    ETHERTYPE = "ethertype"
    IP_VERSION = "ip_version"
    IP_LENGTH = "ip_length"
    FRAGMENT = "fragment"
    TIME_TO_LIVE = "time_to_live"
    PROTOCOL = "protocol"
    IP_CHECKSUM = "ip_checksum"
    SOURCE_ADDRESS = "source_address"
    DESTINATION_ADDRESS = "destination_address"
    SOURCE_PORT = "source_port"
    DESTINATION_PORT = "destination_port"
    UDP_LENGTH = "udp_length"
    # WireGuard.
    NOT_WIREGUARD = "not_wireguard"
    TRANSPORT_LENGTH = "transport_length"
    MAC1 = "mac1"
    MAC2 = "mac2"
    BEFORE_HANDSHAKE = "before_handshake"
    COUNTER_ABSURD = "counter_absurd"
    RATE = "rate"
    # What an honest guest may do by bad luck.
    INITIATION_RATE = "initiation_rate"
    UNSOLICITED = "unsolicited"
    UNCONFIRMED = "unconfirmed"
    UNKNOWN_INDEX = "unknown_index"
    SESSION_DEAD = "session_dead"
    COUNTER_REPEATED = "counter_repeated"
    COUNTER_OLD = "counter_old"
    COOKIE_AGED = "cookie_aged"
    PEER_LEFT = "peer_left"
    # Of the endpoint's only.
    FLOOD = "flood"


OUT_OF_STEP = frozenset(
    {
        Reason.INITIATION_RATE,
        Reason.UNSOLICITED,
        Reason.UNCONFIRMED,
        Reason.UNKNOWN_INDEX,
        Reason.SESSION_DEAD,
        Reason.COUNTER_REPEATED,
        Reason.COUNTER_OLD,
        Reason.COOKIE_AGED,
        Reason.PEER_LEFT,
        Reason.FLOOD,
    }
)
"""The second tier; every other reason is rogue at once."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refusal with its reason, and what was found, for a person."""

    reason: Reason
    detail: str = ""

    @property
    def rogue(self) -> bool:
        """Whether no honest guest could have sent this."""
        return self.reason not in OUT_OF_STEP
