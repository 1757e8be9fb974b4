"""Sizes, durations and rates, as people write them: read, and written again.

Inside wgcell a size is bytes, a duration seconds, and a rate bytes a second.
"""

from __future__ import annotations

import math
import re

from wgcell.display import one_line

__all__ = [
    "LONGEST",
    "duration_text",
    "parse_duration",
    "parse_rate",
    "parse_size",
    "rate_text",
    "size_text",
]

LONGEST = 365 * 86400.0
"""Seconds; the longest duration that can be written."""
SLOWEST_RATE, FASTEST_RATE = 64e3 / 8, 1e12 / 8
"""Bytes a second."""

_SIZE = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,3})?) ?([KMGT](?:i?B)?)", re.ASCII | re.IGNORECASE)
_NUMBER = r"([0-9]{1,9}(?:\.[0-9]{1,3})?)"
_DURATION = re.compile("".join(f"(?:{_NUMBER}{unit})?" for unit in "dhms"), re.ASCII)
_DAY, _HOUR, _MINUTE = 86400.0, 3600.0, 60.0
_RATE = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?) ?([KMG])bit(?:/s)?", re.ASCII)
_UNITS = {
    prefix + suffix: base ** (power + 1)
    for power, prefix in enumerate("KMGT")
    for suffix, base in (("IB", 1024), ("", 1024), ("B", 1000))
}


def parse_size(text: str) -> int:
    """Bytes of ``"2GiB"``, ``"2G"`` (the same, as in Docker), ``"1.5GB"``. Raises ValueError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(
            f"{one_line(repr(text), 60)}; allowed: a number and KiB, MiB, GiB or TiB, as 2GiB or 2G"
        )
    return int(float(match[1]) * _UNITS[match[2].upper()])


def size_text(size: int) -> str:
    """Bytes as a job file has them: ``"1.5GiB"``; bytes where no unit fits in three decimals."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        count = size / _UNITS[unit.upper()]
        if count >= 1 and round(count, 3) == count:
            return f"{count:.3f}".rstrip("0").rstrip(".") + unit
    return f"{size} bytes"


def duration_text(seconds: float) -> str:
    """Seconds as a job file has them: ``"1h30m"``."""
    whole = int(seconds)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    rest = seconds - whole + whole % 60
    parts = [f"{n}{unit}" for n, unit in ((days, "d"), (hours, "h"), (minutes, "m")) if n]
    return "".join([*parts, f"{rest:g}s"] if rest or not parts else parts)


def rate_text(rate: float) -> str:
    """Bytes a second as a job file has them: ``"10Mbit"``."""
    bits = rate * 8
    for unit, size in (("G", 1e9), ("M", 1e6), ("K", 1e3)):
        count = bits / size
        if count >= 1 and round(count, 3) == count:
            return f"{count:.3f}".rstrip("0").rstrip(".") + f"{unit}bit"
    return f"{rate:g} bytes a second"


def parse_rate(text: str) -> float:
    """Bytes a second of ``"100Mbit"``, ``"1.5Gbit/s"``. Raises ValueError."""
    match = _RATE.fullmatch(text.strip())
    rate = float(match[1]) * 1000 ** ("KMG".index(match[2]) + 1) / 8 if match else 0.0
    if not SLOWEST_RATE <= rate <= FASTEST_RATE:
        raise ValueError(f"{text!r}; allowed: bits a second, as 10Mbit, from 64Kbit to 1000Gbit")
    return rate


def parse_duration(value: str | int | float) -> float:
    """Seconds of ``"2h"``, ``"1h30m"``, ``"90s"``, or of a plain number. Raises ValueError."""
    allowed = "allowed: seconds, or a duration such as 90s, 15m, 1.5h, 1h30m, up to 365d"
    if isinstance(value, str):
        match = _DURATION.fullmatch(value.strip())
        plain = re.fullmatch(r"[0-9]{1,9}", value.strip(), re.ASCII)
        if plain:
            seconds = float(value)
        elif match is None or not any(match.groups()) or len(value) > 40:
            raise ValueError(f"{one_line(repr(value), 60)}; {allowed}")
        else:
            days, hours, minutes, rest = (float(part or 0) for part in match.groups())
            seconds = days * _DAY + hours * _HOUR + minutes * _MINUTE + rest
    else:
        seconds = float(value) if abs(value) <= LONGEST else math.inf  # float() of 1e400 overflows
    if not (math.isfinite(seconds) and 0 < seconds <= LONGEST):
        raise ValueError(f"{one_line(repr(value), 60)}; {allowed}")
    return seconds
