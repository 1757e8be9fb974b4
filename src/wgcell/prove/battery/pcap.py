"""A user's own frames, from a pcap or pcapng file.

The file may come from a stranger, so every length in it is checked before it is used.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from wgcell.errors import InputFileError
from wgcell.prove.battery.case import Case, Probe
from wgcell.prove.verdict import Phase, Verdict

__all__ = ["UserFrame", "load", "parse"]

MOST_FRAMES = 10_000
LARGEST_FILE = 64 << 20
_ETHERNET = 1
_PCAP = {
    b"\xd4\xc3\xb2\xa1": "<",
    b"\x4d\x3c\xb2\xa1": "<",
    b"\xa1\xb2\xc3\xd4": ">",
    b"\xa1\xb2\x3c\x4d": ">",
}
_LITTLE_ENDIAN = b"\x4d\x3c\x2b\x1a"
_SECTION, _INTERFACE, _SIMPLE, _ENHANCED = 0x0A0D0D0A, 1, 3, 6


@dataclass(frozen=True, slots=True)
class UserFrame:
    """One frame of the file, and its number in the file, from 1."""

    number: int
    data: bytes
    phases: tuple[Phase, ...] = (Phase.RUNNING,)

    def case(self) -> Case:
        """A case that the frame must not leave."""
        return Case(
            f"frame-{self.number}",
            "your frames",
            f"sends frame {self.number} of the file, {len(self.data)} bytes",
            Verdict.STOP,
            lambda scene: Probe((self.data,)),
        )


def load(path: Path) -> tuple[UserFrame, ...]:
    """The frames of a capture file. Raises InputFileError, which names the fault."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise InputFileError(f"{path}: larger than {LARGEST_FILE >> 20} MiB")
        data = path.read_bytes()
    except OSError as error:
        raise InputFileError(f"{path}: {error.strerror}") from error
    try:
        found = [UserFrame(number, frame) for number, frame in enumerate(parse(data), start=1)]
    except ValueError as error:
        raise InputFileError(
            f"{path}: {error}", hint="give a pcap or pcapng file of whole Ethernet frames"
        ) from error
    if not found:
        raise InputFileError(f"{path}: holds no frames")
    if len(found) > MOST_FRAMES:
        raise InputFileError(f"{path}: holds more than {MOST_FRAMES} frames")
    return tuple(found)


def parse(data: bytes) -> Iterator[bytes]:
    """The frames of a file's bytes, pcap or pcapng. Raises ValueError."""
    if data[:4] in _PCAP:
        return _pcap(data, _PCAP[data[:4]])
    if data[:4] == _SECTION.to_bytes(4, "big"):
        return _pcapng(data)
    raise ValueError("not a pcap or pcapng file")


def _pcap(data: bytes, order: str) -> Iterator[bytes]:
    if len(data) < 24:
        raise ValueError("the file's header is cut off")
    (network,) = struct.unpack_from(f"{order}I", data, 20)
    if network & 0xFFFF != _ETHERNET:
        raise ValueError(f"link type {network & 0xFFFF}, which is not Ethernet")
    at = 24
    while at < len(data):
        if at + 16 > len(data):
            raise ValueError("the last frame's header is cut off")
        captured, original = struct.unpack_from(f"{order}II", data, at + 8)
        at += 16
        if captured > len(data) - at:
            raise ValueError("a frame is cut off")
        if captured != original:
            raise ValueError("a frame was not captured whole")
        yield data[at : at + captured]
        at += captured


def _blocks(data: bytes) -> Iterator[tuple[str, int, bytes]]:
    """The byte order, type and body of each block; a section's block sets the order."""
    at, order = 0, "<"
    while at < len(data):
        if len(data) - at < 12:
            raise ValueError("the last block is cut off")
        if data[at : at + 4] == _SECTION.to_bytes(4, "big"):
            order = "<" if data[at + 8 : at + 12] == _LITTLE_ENDIAN else ">"
        kind, length = struct.unpack_from(f"{order}II", data, at)
        if length < 12 or length % 4 or length > len(data) - at:
            raise ValueError(f"a block says a length of {length} bytes")
        yield order, kind, data[at + 8 : at + length - 4]
        at += length


def _pcapng(data: bytes) -> Iterator[bytes]:
    networks: list[int] = []
    for order, kind, body in _blocks(data):
        if kind == _SECTION:
            networks = []
        elif kind == _INTERFACE and len(body) >= 8:
            networks.append(struct.unpack_from(f"{order}H", body)[0])
        elif kind == _ENHANCED:
            yield _enhanced_packet(body, order, networks)
        elif kind == _SIMPLE:
            raise ValueError("simple packet blocks do not say how long a frame is")


def _enhanced_packet(body: bytes, order: str, networks: Sequence[int]) -> bytes:
    """The frame of an enhanced packet block; ``networks`` are the interfaces' link types."""
    if len(body) < 20:
        raise ValueError("a packet block is cut off")
    interface, _, _, captured, original = struct.unpack_from(f"{order}5I", body)
    if interface >= len(networks) or networks[interface] != _ETHERNET:
        raise ValueError("a packet of an interface that is not Ethernet")
    if captured > len(body) - 20 or captured != original:
        raise ValueError("a frame was not captured whole")
    return body[20 : 20 + captured]
