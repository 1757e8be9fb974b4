"""The messages between host and guest on the port ``wgcell.control``: ASCII lines, a word and its
arguments. Both ends use this module: one encoder and one strict decoder for each direction.

The guest is hostile: a line that is not exactly a message raises GuestError, and a report is only
ever compared (`wgcell.guest.verify`), never acted upon. The lines of the configuration are
`wgcell.guest.config`'s.

In the guest this must load fast, where an import of `re` or `base64` costs an emulated processor
tens of milliseconds. `dataclasses`, `enum` and `wgcell.errors` are small stand-ins there
(`wgcell.guest.lean`).
"""

from __future__ import annotations

from _collections_abc import Mapping  # of collections.abc, without collections
from dataclasses import dataclass

from wgcell.errors import GuestError
from wgcell.guest.fields import ascii_line, b64, from_b64, number, seconds, shown, subject

__all__ = [
    "KILL",
    "RECONNECT",
    "RELEASE",
    "REPORTS",
    "SESSIONS",
    "STREAMS",
    "TERMINATE",
    "VERSION",
    "Changed",
    "Clock",
    "Closed",
    "Exited",
    "Fault",
    "Heartbeat",
    "Hello",
    "Kill",
    "Message",
    "Order",
    "OutOfMemory",
    "Outputs",
    "Ready",
    "Reconnect",
    "Release",
    "Report",
    "Terminate",
    "TunnelMtu",
    "clock",
    "closed",
    "encode",
    "parse",
    "parse_order",
    "tunnel_mtu",
]

VERSION = 1
LONGEST_LINE = 128 * 1024
"""Bytes: the report of a tunnel with 1024 networks of IPv6, each a route too, in base64."""
LONGEST_FAULT = 4096
"""Characters of a fault's text that are kept."""
REPORTS = ("firewall", "links", "routes", "wireguard")
CHANGES = ("firewall", "network", "standing")
STREAMS = ("stdout", "stderr")
SESSIONS = "sessions"
"""The port that carries sessions (`wgcell.guest.channel`)."""
_HEXADECIMAL = frozenset("0123456789abcdef")


# From the guest to the host.


@dataclass(frozen=True, slots=True)
class Hello:
    """The guest's agent is up, and waits for its configuration."""

    version: int


@dataclass(frozen=True, slots=True)
class Report:
    """The guest's state by its own account: texts by their subject, each one of `REPORTS`."""

    texts: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Ready:
    """All reports are in; the guest waits for release."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The agent lives; ``drops`` packets were dropped by the guest's firewall so far."""

    number: int
    drops: int


@dataclass(frozen=True, slots=True)
class Changed:
    """Something has changed that must not change."""

    what: str
    text: str


@dataclass(frozen=True, slots=True)
class Fault:
    """The agent failed: the guest could not be set up, or, later, the agent could not go on."""

    text: str


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """The guest's kernel killed ``count`` processes for want of memory, ``victim`` the last."""

    count: int
    victim: str


@dataclass(frozen=True, slots=True)
class Exited:
    """The workload's exit code, 0-255, and how many bytes it wrote to each of its streams.

    The bytes are on their way, and some may still come after this.
    """

    code: int
    stdout: int
    stderr: int


@dataclass(frozen=True, slots=True)
class Outputs:
    """The whole tar of outputs, which is on its way: ``size`` in bytes, SHA-256 in hexadecimal.

    ``status`` is tar's exit code: other than 0 if it could not read all of it.
    """

    size: int
    status: int
    sha256: str


Message = Hello | Report | Ready | Heartbeat | Changed | Fault | OutOfMemory | Exited | Outputs


# From the host to a guest that has its configuration.


@dataclass(frozen=True, slots=True)
class Release:
    """Start the workload."""


@dataclass(frozen=True, slots=True)
class Terminate:
    """Send the workload SIGTERM."""


@dataclass(frozen=True, slots=True)
class Kill:
    """End the workload at once."""


@dataclass(frozen=True, slots=True)
class Closed:
    """Nobody reads that one of `STREAMS` any more: the workload's next write is a SIGPIPE."""

    stream: str


@dataclass(frozen=True, slots=True)
class TunnelMtu:
    """The tunnel's MTU, in bytes, from now on."""

    mtu: int


@dataclass(frozen=True, slots=True)
class Clock:
    """The host's clock: Unix time, in seconds. The guest's is brought to it, never back."""

    now: float


@dataclass(frozen=True, slots=True)
class Reconnect:
    """Make a handshake: the endpoint is at another address, where no session is known.

    WireGuard by itself would wait for an answer for 15 s, and only if it had something to send
    (whitepaper, 6.5).
    """


Order = Release | Terminate | Kill | Closed | TunnelMtu | Clock | Reconnect

RELEASE = b"release\n"
TERMINATE = b"term\n"
KILL = b"kill\n"
RECONNECT = b"reconnect\n"


def closed(stream: str) -> bytes:
    """`Closed`, as a line."""
    return f"closed {stream}\n".encode("ascii")


def tunnel_mtu(mtu: int) -> bytes:
    """`TunnelMtu`, as a line."""
    return f"mtu {mtu}\n".encode("ascii")


def clock(now: float) -> bytes:
    """`Clock`, as a line."""
    return f"time {now:.6f}\n".encode("ascii")


def parse_order(line: bytes) -> Order:
    """The order in one line from the host. Raises GuestError for anything else."""
    match _words(line):
        case ["release"]:
            return Release()
        case ["term"]:
            return Terminate()
        case ["kill"]:
            return Kill()
        case ["reconnect"]:
            return Reconnect()
        case ["closed", stream]:
            return Closed(subject(stream, STREAMS))
        case ["mtu", mtu]:
            return TunnelMtu(number(mtu, 65535))
        case ["time", now]:
            return Clock(seconds(now))
        case _:
            raise GuestError(f"{shown(line)} is no order")


def encode(message: Message) -> bytes:
    """One message from the guest, as a line."""
    match message:
        case Hello():
            words = f"hello {message.version}"
        case Report():
            parts = [f"= {what}\n{text}\n" for what, text in message.texts.items()]
            words = f"report {b64(_printed(''.join(parts)))}"
        case Ready():
            words = "ready"
        case Heartbeat():
            words = f"heartbeat {message.number} {message.drops}"
        case Changed():
            words = f"changed {message.what} {b64(_printed(message.text))}"
        case Fault():
            words = f"fault {b64(_printed(message.text))}"
        case OutOfMemory():
            words = f"oom {message.count} {b64(_printed(message.victim))}"
        case Exited():
            words = f"exit {message.code} {message.stdout} {message.stderr}"
        case Outputs():
            words = f"outputs {message.size} {message.status} {message.sha256}"
    return f"{words.rstrip(' ')}\n".encode("ascii")


def parse(line: bytes) -> Message:
    """The message in one line from the guest. Raises GuestError for anything else."""
    if len(line) > LONGEST_LINE:
        raise GuestError("the guest sent a line that is too long")
    match _words(line):
        case ["hello", version]:
            return Hello(number(version, 1000))
        case ["report", text]:
            return Report(_sections(_text(text)))
        case ["ready"]:
            return Ready()
        case ["heartbeat", count, drops]:
            return Heartbeat(number(count, 2**53), number(drops, 2**63))
        case ["changed", what, text]:
            return Changed(subject(what, CHANGES), _text(text))
        case ["changed", what]:
            return Changed(subject(what, CHANGES), "")
        case ["fault", text]:
            return Fault(_text(text)[:LONGEST_FAULT])
        case ["oom", count, victim]:
            return OutOfMemory(number(count, 2**53), _text(victim).strip()[:64])
        case ["oom", count]:
            return OutOfMemory(number(count, 2**53), "")
        case ["exit", code, stdout, stderr]:
            return Exited(number(code, 255), number(stdout, 2**53), number(stderr, 2**53))
        case ["outputs", size, status, sha256] if len(sha256) == 64 and {*sha256} <= _HEXADECIMAL:
            return Outputs(number(size, 2**53), number(status, 255), sha256)
        case _:
            raise GuestError(f"the guest sent a line that is no message: {shown(line)}")


def _words(line: bytes) -> list[str]:
    return ascii_line(line).split()


def _printed(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


def _text(encoded: str) -> str:
    return from_b64(encoded).decode("utf-8", "backslashreplace")


def _sections(text: str) -> Mapping[str, str]:
    """The text of each subject: the lines behind ``= links``, for example."""
    found: dict[str, list[str]] = {}
    under: list[str] = []
    for line in text.splitlines():
        if line.startswith("= "):
            under = found.setdefault(subject(line[2:], REPORTS), [])
        else:
            under.append(line)
    return {what: "\n".join(lines) for what, lines in found.items()}
