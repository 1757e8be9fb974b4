"""WireGuard's messages as they stand on the wire (the WireGuard paper, section 5.4).

Only what can be read and checked without a private key: types, lengths, indices, counters, mac1.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from enum import IntEnum

__all__ = [
    "COOKIE_REPLY_LENGTH",
    "INITIATION_LENGTH",
    "REJECT_AFTER_TIME",
    "REKEY_TIMEOUT",
    "RESPONSE_LENGTH",
    "CookieReply",
    "Initiation",
    "MalformedMessageError",
    "Message",
    "MessageType",
    "Response",
    "Transport",
    "keyed_mac1",
    "mac1",
    "mac1_key",
    "parse",
]

# Section 6.1, in seconds.
REKEY_TIMEOUT = 5
REJECT_AFTER_TIME = 180

INITIATION_LENGTH = 148
RESPONSE_LENGTH = 92
COOKIE_REPLY_LENGTH = 64
TRANSPORT_HEADER = 16
RECEIVER = slice(4, 8)
COUNTER = slice(8, 16)
TAG_LENGTH = 16
SHORTEST_TRANSPORT = TRANSPORT_HEADER + TAG_LENGTH
MAC_LENGTH = 16
NO_MAC = bytes(MAC_LENGTH)
TRANSPORT_HEAD = struct.Struct("<IIQ")
"""Type and reserved bytes, receiver's index, counter."""
LABEL_MAC1 = b"mac1----"


class MessageType(IntEnum):
    """The first byte; the three behind it are reserved and zero."""

    INITIATION = 1
    RESPONSE = 2
    COOKIE_REPLY = 3
    TRANSPORT = 4


class MalformedMessageError(ValueError):
    """Bytes that are no WireGuard message; says why."""


@dataclass(frozen=True, slots=True)
class Initiation:
    """The first handshake message. ``covered`` is what mac1 covers."""

    sender: int
    covered: bytes
    mac1: bytes
    mac2: bytes


@dataclass(frozen=True, slots=True)
class Response:
    """The second handshake message."""

    sender: int
    receiver: int
    covered: bytes
    mac1: bytes
    mac2: bytes


@dataclass(frozen=True, slots=True)
class CookieReply:
    """Sent under load instead of an answer."""

    receiver: int


@dataclass(frozen=True, slots=True)
class Transport:
    """An encrypted packet; ``length`` is the whole message's, in bytes."""

    receiver: int
    counter: int
    length: int


Message = Initiation | Response | CookieReply | Transport


def mac1_key(public_key: bytes) -> bytes:
    """HASH(LABEL_MAC1 || public key), section 5.4.4."""
    return hashlib.blake2s(LABEL_MAC1 + public_key).digest()


def mac1(receiver_public_key: bytes, covered: bytes) -> bytes:
    """The 16 bytes of mac1 over a handshake message without its macs."""
    return keyed_mac1(mac1_key(receiver_public_key), covered)


def keyed_mac1(key: bytes, covered: bytes) -> bytes:
    """`mac1` by its key, for who checks many."""
    return hashlib.blake2s(covered, digest_size=MAC_LENGTH, key=key).digest()


def parse(message: bytes) -> Message:
    """One UDP payload as a message. Raises MalformedMessageError."""
    if len(message) < 4:
        raise MalformedMessageError(f"{len(message)} bytes are too few")
    if message[1:4] != b"\0\0\0":
        raise MalformedMessageError("the reserved bytes are not zero")
    length = len(message)
    match message[0]:
        case MessageType.TRANSPORT:
            if length < SHORTEST_TRANSPORT:
                raise MalformedMessageError(f"a transport message of {length} bytes")
            receiver, counter = struct.unpack_from("<IQ", message, 4)
            return Transport(receiver, counter, length)
        case MessageType.INITIATION:
            _exactly(length, INITIATION_LENGTH, "an initiation")
            (sender,) = struct.unpack_from("<I", message, 4)
            return Initiation(sender, message[:-32], message[-32:-16], message[-16:])
        case MessageType.RESPONSE:
            _exactly(length, RESPONSE_LENGTH, "a response")
            sender, receiver = struct.unpack_from("<II", message, 4)
            return Response(sender, receiver, message[:-32], message[-32:-16], message[-16:])
        case MessageType.COOKIE_REPLY:
            _exactly(length, COOKIE_REPLY_LENGTH, "a cookie reply")
            (receiver,) = struct.unpack_from("<I", message, 4)
            return CookieReply(receiver)
        case other:
            raise MalformedMessageError(f"type {other} does not exist")


def _exactly(length: int, asked: int, what: str) -> None:
    if length != asked:
        raise MalformedMessageError(f"{what} of {length} bytes, which has {asked}")
