"""What host and guest say to each other on the port ``wgcell.control``: ASCII lines, a word and its
arguments.

The guest is hostile: a line that is not exactly one of these raises GuestError, and what a report
says is only ever compared, never acted upon.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from wgcell.errors import GuestError
from wgcell.guest.firewall import ENDPOINT, PORT, comparable, ruleset
from wgcell.guest.walls import Wall
from wgcell.net.addresses import network

__all__ = [
    "KILL",
    "RELEASE",
    "REPORTS",
    "STREAMS",
    "TERMINATE",
    "Changed",
    "Exited",
    "Fault",
    "GuestConfig",
    "Heartbeat",
    "Hello",
    "Message",
    "OutOfMemory",
    "Outputs",
    "Ready",
    "Report",
    "clock",
    "closed",
    "encode_config",
    "expected",
    "mismatch",
    "parse",
    "tunnel_mtu",
]

LONGEST_LINE = 128 * 1024
"""Bytes: the report of a tunnel with 1024 networks of IPv6, each a route too, in base64."""
LONGEST_FAULT = 4096
"""Characters, of which a fault's text is kept."""
REPORTS = ("firewall", "links", "routes", "wireguard")
CHANGES = ("firewall", "network", "standing")


@dataclass(frozen=True, slots=True)
class GuestConfig:
    """Everything the guest is told. Keys are 32 raw bytes; ``time`` is Unix seconds."""

    time: float
    hostname: str
    walls: frozenset[Wall]
    private_key: bytes = field(repr=False)
    peer_public_key: bytes
    preshared_key: bytes | None = field(repr=False)
    addresses: tuple[str, ...]
    allowed_ips: tuple[str, ...]
    mtu: int
    keepalive: int
    dns: tuple[str, ...]
    probe: str
    """An address in the tunnel to send an echo to, so that the endpoint has something to answer."""
    inputs: bool
    command: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = field(repr=False)
    outputs: tuple[str, ...]
    search: tuple[str, ...] = ()
    """Domains of the resolver's."""


@dataclass(frozen=True, slots=True)
class Hello:
    """The guest's init is up."""

    version: int


@dataclass(frozen=True, slots=True)
class Report:
    """What stands in the guest, by its own word: a text for each of `REPORTS` that it spoke of."""

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
    """Something changed that should not."""

    what: str
    text: str


@dataclass(frozen=True, slots=True)
class Fault:
    """The guest could not be set up."""

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

RELEASE = b"release\n"
"""The host's words to a guest that is configured: start the workload."""
TERMINATE = b"term\n"
"""Send the workload SIGTERM."""
KILL = b"kill\n"
"""End the workload at once."""
STREAMS = ("stdout", "stderr")


def closed(stream: str) -> bytes:
    """Nobody reads that one of `STREAMS` any more: the workload's next write to it is a SIGPIPE."""
    return f"closed {stream}\n".encode("ascii")


def tunnel_mtu(mtu: int) -> bytes:
    """The tunnel's MTU, in bytes, from now on."""
    return f"mtu {mtu}\n".encode("ascii")


def clock(now: float) -> bytes:
    """The host's clock: Unix time ``now``, in seconds. The guest's is brought to it, never back."""
    return f"time {now:.6f}\n".encode("ascii")


_PLAIN = re.compile(r"[A-Za-z0-9_./=,:@%+-]{1,4096}")
"""Letters that mean nothing to the guest's shell, wherever they stand."""

_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def encode_config(config: GuestConfig) -> bytes:
    """The configuration as lines, ended by ``end``."""
    lines = [
        f"time {config.time:.6f}",
        f"hostname {config.hostname}",
        f"walls {','.join(wall.value for wall in Wall if wall in config.walls)}",
        f"wg_private_key {_b64(config.private_key)}",
        f"wg_peer_public_key {_b64(config.peer_public_key)}",
        f"wg_allowed_ips {','.join(config.allowed_ips)}",
        f"wg_mtu {config.mtu}",
        f"wg_keepalive {config.keepalive}",
        f"probe {config.probe}",
        f"inputs {'yes' if config.inputs else 'no'}",
    ]
    if config.preshared_key is not None:
        lines.append(f"wg_preshared_key {_b64(config.preshared_key)}")
    lines += [f"wg_address {address}" for address in config.addresses]
    lines += [f"dns {server}" for server in config.dns]
    lines += [f"search {domain}" for domain in config.search]
    lines += [f"arg {_word(word)}" for word in config.command]
    lines += [f"env {_word(f'{name}={value}')}" for name, value in config.environment]
    lines += [f"output {_b64(path.encode('utf-8', 'surrogateescape'))}" for path in config.outputs]
    return "".join(f"{line}\n" for line in [*lines, "end"]).encode("ascii")


def _word(word: str) -> str:
    """A word of the command: behind a colon if it is plain, else base64.

    Plain saves an emulated guest the four processes that decode it.
    """
    if _PLAIN.fullmatch(word):
        return f":{word}"
    return _b64(word.encode("utf-8", "surrogateescape"))


def _number(text: str, most: int) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 19 or int(text) > most:
        raise GuestError(f"the guest sent {text[:40]!r} where a number up to {most} belongs")
    return int(text)


def _text(encoded: str) -> str:
    try:
        return base64.b64decode(encoded, validate=True).decode("utf-8", "backslashreplace")
    except (binascii.Error, ValueError):
        raise GuestError("the guest sent a text that is not base64") from None


def _subject(word: str, allowed: tuple[str, ...]) -> str:
    if word not in allowed:
        raise GuestError(f"the guest reported on {word[:40]!r}, which is nothing we know")
    return word


def _sections(text: str) -> Mapping[str, str]:
    """``= links`` and the lines under it, for each subject."""
    found: dict[str, list[str]] = {}
    under: list[str] = []
    for line in text.splitlines():
        if line.startswith("= "):
            under = found.setdefault(_subject(line[2:], REPORTS), [])
        else:
            under.append(line)
    return {what: "\n".join(lines) for what, lines in found.items()}


def parse(line: bytes) -> Message:
    """One line of the guest's. Raises GuestError for anything but a message."""
    if len(line) > LONGEST_LINE:
        raise GuestError("the guest sent a line that is too long")
    try:
        words = line.decode("ascii").split()
    except UnicodeDecodeError:
        raise GuestError("the guest sent a line that is not ASCII") from None
    match words:
        case ["hello", version]:
            return Hello(_number(version, 1000))
        case ["report", text]:
            return Report(_sections(_text(text)))
        case ["ready"]:
            return Ready()
        case ["heartbeat", number, drops]:
            return Heartbeat(_number(number, 2**53), _number(drops, 2**63))
        case ["changed", what, text]:
            return Changed(_subject(what, CHANGES), _text(text))
        case ["changed", what]:
            return Changed(_subject(what, CHANGES), "")
        case ["fault", text]:
            return Fault(_text(text)[:LONGEST_FAULT])
        case ["oom", count, victim]:
            return OutOfMemory(_number(count, 2**53), _text(victim).strip()[:64])
        case ["oom", count]:
            return OutOfMemory(_number(count, 2**53), "")
        case ["exit", code, stdout, stderr]:
            return Exited(_number(code, 255), _number(stdout, 2**53), _number(stderr, 2**53))
        case ["outputs", size, status, sha256] if _SHA256.fullmatch(sha256):
            return Outputs(_number(size, 2**53), _number(status, 255), sha256)
        case _:
            shown = line[:60].decode("ascii", "backslashreplace").strip()
            raise GuestError(f"the guest sent a line that is no message: {shown!r}")


def expected(config: GuestConfig) -> Mapping[str, str]:
    """The reports of a guest that is set up as asked; routes are held to a rule instead."""
    workload = "first eth0\nfirst lo\nworkload lo\nworkload wg0"
    one = "first eth0\nfirst lo\nfirst wg0"
    return {
        "firewall": comparable(ruleset()) if Wall.FIREWALL in config.walls else "",
        "links": workload if Wall.NAMESPACE in config.walls else one,
        "wireguard": f"{_b64(config.peer_public_key)} {ENDPOINT}:{PORT} "
        f"{','.join(config.allowed_ips)} {config.keepalive}",
    }


def mismatch(config: GuestConfig, reports: Mapping[str, str]) -> str | None:
    """What differs from what was asked, in one sentence; None if nothing does."""
    for what in REPORTS:
        if what not in reports:
            return f"the guest did not report its {what}"
    for what, asked in expected(config).items():
        seen = comparable(reports[what])
        if what == "links":
            seen = "\n".join(sorted(set(seen.splitlines())))
        if what == "wireguard":
            asked, seen = _one_spelling(asked), _one_spelling(seen)
        if seen != asked:
            return f"the guest's {what} is not what was asked: {_difference(asked, seen)}"
    return _misrouted(reports["routes"].splitlines())


def _one_spelling(report: str) -> str:
    """A report on WireGuard with its networks in order, each once and written in one way.

    ``wg`` writes them as inet_ntop(3) does, and the kernel keeps each once. Networks that are none
    stay as they are.
    """
    words = report.split(" ")
    if len(words) != 4:
        return report
    try:
        networks = {network(text) for text in words[2].split(",")}
    except ValueError:
        return report
    words[2] = ",".join(map(str, sorted(networks, key=lambda one: (one.version, one))))
    return " ".join(words)


_LINK = "eth0 0040A8C0 FCFFFFFF"
"""192.168.64.0/30 as ``/proc/net/route`` writes it."""


def _misrouted(routes: Sequence[str]) -> str | None:
    """What is wrong with the guest's routes: a device, a network and its mask or length each."""
    tunnel = False
    for route in routes:
        device, network, *_ = [*route.split(), "", ""]
        # IPv6 puts its multicast network over every interface by itself.
        tunnel |= device == "wg0" and not network.startswith("ff00")
        if device == "eth0" and route != _LINK:
            return f"the guest has a route over eth0: {route[:80]!r}"
        if device not in ("eth0", "wg0", "lo"):
            return f"the guest has a route over {device[:20]!r}"
    return None if tunnel else "the guest has no route into the tunnel"


def _difference(asked: str, seen: str) -> str:
    theirs = seen.splitlines()
    for line in asked.splitlines():
        if line not in theirs:
            return f"{line.strip()[:80]!r} is missing"
    extra = [line for line in theirs if line not in asked.splitlines()]
    return f"{extra[0].strip()[:80]!r} is too much" if extra else "the order differs"
