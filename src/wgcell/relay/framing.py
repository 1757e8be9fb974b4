"""QEMU's stream: each frame behind its length, 4 bytes big-endian (``-netdev stream``)."""

from __future__ import annotations

from wgcell.relay.verdict import Reason, Refusal

__all__ = ["LONGEST_FRAME", "Framer", "prefixed"]

LONGEST_FRAME = 65536 + 256
"""Bytes; QEMU itself never writes more. A longer length is no frame but a lie."""

_PREFIX = 4


def prefixed(frame: bytes) -> bytes:
    """``frame`` as it goes to QEMU."""
    return len(frame).to_bytes(_PREFIX, "big") + frame


class Framer:
    """Cuts a stream that comes in pieces of any size."""

    def __init__(self) -> None:
        self._kept = b""

    def feed(self, data: bytes) -> tuple[list[bytes], Refusal | None]:
        """The whole frames so far, and a refusal if the stream can't be followed any further."""
        buffer = self._kept + data
        frames: list[bytes] = []
        at = 0
        while len(buffer) - at >= _PREFIX:
            length = int.from_bytes(buffer[at : at + _PREFIX], "big")
            if not 0 < length <= LONGEST_FRAME:
                return frames, Refusal(Reason.STREAM, f"a frame's length of {length}")
            end = at + _PREFIX + length
            if end > len(buffer):
                break
            frames.append(buffer[at + _PREFIX : end])
            at = end
        self._kept = buffer[at:]
        return frames, None
