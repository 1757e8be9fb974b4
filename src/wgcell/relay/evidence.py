"""Refused frames as pcapng (draft-ietf-opsawg-pcapng), one comment each: opens in Wireshark."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["CapturedFrame", "pcapng"]

_LINKTYPE_ETHERNET = 1
_OPT_END = 0
_OPT_COMMENT = 1
_OPT_SHB_USERAPPL = 4
_OPT_IF_TSRESOL = 9
_MICROSECONDS = 6


@dataclass(frozen=True, slots=True)
class CapturedFrame:
    """A frame, when it came (Unix seconds) and why it was refused."""

    data: bytes
    time: float
    comment: str


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + _padded(value)


def _block(kind: int, body: bytes, *options: bytes) -> bytes:
    whole = body + b"".join(options) + struct.pack("<HH", _OPT_END, 0)
    length = len(whole) + 12
    return struct.pack("<II", kind, length) + whole + struct.pack("<I", length)


def pcapng(frames: Iterable[CapturedFrame]) -> bytes:
    """A whole file: section header, one Ethernet interface, an enhanced packet block a frame."""
    section = struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1)
    interface = struct.pack("<HHI", _LINKTYPE_ETHERNET, 0, 0)
    blocks = [
        _block(0x0A0D0D0A, section, _option(_OPT_SHB_USERAPPL, b"wgcell")),
        _block(1, interface, _option(_OPT_IF_TSRESOL, bytes([_MICROSECONDS]))),
    ]
    for frame in frames:
        stamp = int(frame.time * 10**_MICROSECONDS)
        size = len(frame.data)
        head = struct.pack("<IIIII", 0, stamp >> 32, stamp & 0xFFFFFFFF, size, size)
        comment = _option(_OPT_COMMENT, frame.comment.encode("utf-8")[:4096])
        blocks.append(_block(6, head + _padded(frame.data), comment))
    return b"".join(blocks)
