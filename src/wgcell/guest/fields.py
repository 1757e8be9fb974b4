"""The fields of the lines between host and guest: text, numbers and bytes, strictly decoded.

The guest is hostile: a field that is malformed or out of its bounds raises GuestError. In the guest
this must load fast: hence `binascii`, and neither `base64` nor a regular expression.
"""

from __future__ import annotations

import binascii

from wgcell.errors import GuestError

__all__ = ["ascii_line", "b64", "from_b64", "number", "seconds", "shown", "subject"]


def ascii_line(line: bytes) -> str:
    """A line as text. Raises GuestError for a byte that is not ASCII."""
    try:
        return line.decode("ascii")
    except UnicodeDecodeError:
        raise GuestError("the guest sent a line that is not ASCII") from None


def shown(line: bytes) -> str:
    """The beginning of a line, for an error."""
    return repr(line[:60].decode("ascii", "backslashreplace").strip())


def b64(data: bytes) -> str:
    """Bytes as one word."""
    return binascii.b2a_base64(data, newline=False).decode("ascii")


def from_b64(encoded: str) -> bytes:
    """The reverse of `b64`. Raises GuestError."""
    try:
        return binascii.a2b_base64(encoded, strict_mode=True)
    except (binascii.Error, ValueError):
        raise GuestError("the guest sent a text that is not base64") from None


def number(text: str, most: int) -> int:
    """A decimal number from 0 to ``most``, which is at most 2**63. Raises GuestError."""
    if not text.isascii() or not text.isdigit() or len(text) > 19 or int(text) > most:
        raise GuestError(f"the guest sent {text[:40]!r} where a number up to {most} belongs")
    return int(text)


def seconds(text: str) -> float:
    """Unix time, in seconds, with six decimals. Raises GuestError."""
    whole, _, fraction = text.partition(".")
    if len(fraction) != 6:
        raise GuestError(f"{text[:40]!r} is no time with six decimals")
    return number(whole, 2**40) + number(fraction, 999_999) / 1e6


def subject(word: str, allowed: tuple[str, ...]) -> str:
    """``word``, which must be one of ``allowed``. Raises GuestError."""
    if word not in allowed:
        raise GuestError(f"the guest reported on {word[:40]!r}, which is unknown")
    return word
