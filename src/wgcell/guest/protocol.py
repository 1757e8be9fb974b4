"""What host and guest say to each other on the port ``wgcell.control``: ASCII lines, a word and its
arguments. Both ends use this module: one encoder and one strict decoder for each direction.

The guest is hostile: a line that is not exactly one of these raises GuestError, and what a report
says is only ever compared (`wgcell.guest.verify`), never acted upon.

In the guest this must load fast, where an import of `re` or `base64` costs an emulated processor
tens of milliseconds: hence `binascii`, and no regular expression. `dataclasses`, `enum` and
`wgcell.errors` are small stand-ins there (`wgcell.guest.lean`).
"""

from __future__ import annotations

import binascii
from _collections_abc import Mapping, Sequence  # what collections.abc is, without collections
from dataclasses import dataclass, field

from wgcell.errors import GuestError
from wgcell.guest.walls import Wall

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
    "GuestConfig",
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
    "encode_config",
    "parse",
    "parse_config",
    "parse_order",
    "tunnel_mtu",
]

VERSION = 1
LONGEST_LINE = 128 * 1024
"""Bytes: the report of a tunnel with 1024 networks of IPv6, each a route too, in base64."""
LONGEST_FAULT = 4096
"""Characters, of which a fault's text is kept."""
REPORTS = ("firewall", "links", "routes", "wireguard")
CHANGES = ("firewall", "network", "standing")
STREAMS = ("stdout", "stderr")
SESSIONS = "sessions"
"""The port that carries sessions (`wgcell.guest.channel`)."""
_HEXADECIMAL = frozenset("0123456789abcdef")
TYPE_CHECKING = False
if TYPE_CHECKING:
    from wgcell.guest.frames import Terminal

_KEY = 32
"""Bytes of a WireGuard key."""


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
    """Empty: the guest only waits, for sessions and for an order to end."""
    environment: tuple[tuple[str, str], ...] = field(repr=False)
    outputs: tuple[str, ...]
    search: tuple[str, ...] = ()
    """Domains of the resolver's."""
    hosts: tuple[tuple[str, str], ...] = ()
    """Names, each with an address, for the workload's /etc/hosts."""
    stdin: bool = False
    """The command reads what session 0 brings, and from /dev/null otherwise."""
    terminal: Terminal | None = None
    """The command's streams are a terminal of this size, whose output is all on ``stdout``."""


# From the guest to the host.


@dataclass(frozen=True, slots=True)
class Hello:
    """The guest's agent is up, and waits for its configuration."""

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
    """One line of the host's. Raises GuestError for anything but an order."""
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
            return Closed(_subject(stream, STREAMS))
        case ["mtu", mtu]:
            return TunnelMtu(_number(mtu, 65535))
        case ["time", now]:
            return Clock(_seconds(now))
        case _:
            raise GuestError(f"{_shown(line)} is no order")


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
        f"inputs {_YES[config.inputs]}",
        f"stdin {_YES[config.stdin]}",
    ]
    if config.preshared_key is not None:
        lines.append(f"wg_preshared_key {_b64(config.preshared_key)}")
    if config.terminal is not None:
        lines.append(f"terminal {config.terminal.rows} {config.terminal.columns}")
    lines += [f"wg_address {address}" for address in config.addresses]
    lines += [f"dns {server}" for server in config.dns]
    lines += [f"search {domain}" for domain in config.search]
    lines += [f"host {name} {address}" for name, address in config.hosts]
    lines += [f"arg {_b64(_bytes(word))}" for word in config.command]
    lines += [f"env {_b64(_bytes(f'{name}={value}'))}" for name, value in config.environment]
    lines += [f"output {_b64(_bytes(path))}" for path in config.outputs]
    return "".join(f"{line}\n" for line in [*lines, "end"]).encode("ascii")


_YES = {True: "yes", False: "no"}
_ONCE = (
    *("time", "hostname", "walls", "wg_private_key", "wg_peer_public_key", "wg_allowed_ips"),
    *("wg_mtu", "wg_keepalive", "probe", "inputs", "stdin"),
)
_AT_MOST_ONCE = ("wg_preshared_key", "terminal")
_ANY = ("wg_address", "dns", "search", "host", "arg", "env", "output")


def parse_config(lines: Sequence[bytes]) -> GuestConfig:
    """The configuration from its lines, of which ``end`` is the last. Raises GuestError."""
    said: dict[str, list[str]] = {word: [] for word in _ONCE + _AT_MOST_ONCE + _ANY}
    if not lines or lines[-1].strip() != b"end":
        raise GuestError("the configuration broke off")
    for line in lines[:-1]:
        word, _, value = _ascii(line).rstrip("\n").partition(" ")
        if word not in said:
            raise GuestError(f"unknown word {word[:40]} in the configuration")
        said[word].append(value)
    for word in _ONCE + _AT_MOST_ONCE:
        if len(said[word]) > 1 or (word in _ONCE and not said[word]):
            raise GuestError(f"the configuration has {len(said[word])} lines {word}")
    once = {word: said[word][0] for word in _ONCE}
    preshared = [_key(value) for value in said["wg_preshared_key"]]
    return GuestConfig(
        time=_seconds(once["time"]),
        hostname=once["hostname"],
        walls=_walls(once["walls"]),
        private_key=_key(once["wg_private_key"]),
        peer_public_key=_key(once["wg_peer_public_key"]),
        preshared_key=preshared[0] if preshared else None,
        addresses=tuple(said["wg_address"]),
        allowed_ips=tuple(once["wg_allowed_ips"].split(",")),
        mtu=_number(once["wg_mtu"], 65535),
        keepalive=_number(once["wg_keepalive"], 65535),
        dns=tuple(said["dns"]),
        probe=once["probe"],
        inputs=_subject(once["inputs"], ("yes", "no")) == "yes",
        command=tuple(map(_word, said["arg"])),
        environment=tuple(map(_variable, said["env"])),
        outputs=tuple(map(_word, said["output"])),
        search=tuple(said["search"]),
        hosts=tuple(map(_host, said["host"])),
        stdin=_subject(once["stdin"], ("yes", "no")) == "yes",
        terminal=_terminal(said["terminal"][0]) if said["terminal"] else None,
    )


def encode(message: Message) -> bytes:
    """One message of the guest's, as a line."""
    match message:
        case Hello():
            words = f"hello {message.version}"
        case Report():
            parts = [f"= {what}\n{text}\n" for what, text in message.texts.items()]
            words = f"report {_b64(_printed(''.join(parts)))}"
        case Ready():
            words = "ready"
        case Heartbeat():
            words = f"heartbeat {message.number} {message.drops}"
        case Changed():
            words = f"changed {message.what} {_b64(_printed(message.text))}"
        case Fault():
            words = f"fault {_b64(_printed(message.text))}"
        case OutOfMemory():
            words = f"oom {message.count} {_b64(_printed(message.victim))}"
        case Exited():
            words = f"exit {message.code} {message.stdout} {message.stderr}"
        case Outputs():
            words = f"outputs {message.size} {message.status} {message.sha256}"
    return f"{words.rstrip(' ')}\n".encode("ascii")


def parse(line: bytes) -> Message:
    """One line of the guest's. Raises GuestError for anything but a message."""
    if len(line) > LONGEST_LINE:
        raise GuestError("the guest sent a line that is too long")
    match _words(line):
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
        case ["outputs", size, status, sha256] if len(sha256) == 64 and {*sha256} <= _HEXADECIMAL:
            return Outputs(_number(size, 2**53), _number(status, 255), sha256)
        case _:
            raise GuestError(f"the guest sent a line that is no message: {_shown(line)}")


def _ascii(line: bytes) -> str:
    try:
        return line.decode("ascii")
    except UnicodeDecodeError:
        raise GuestError("the guest sent a line that is not ASCII") from None


def _words(line: bytes) -> list[str]:
    return _ascii(line).split()


def _shown(line: bytes) -> str:
    return repr(line[:60].decode("ascii", "backslashreplace").strip())


def _b64(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode("ascii")


def _from_b64(encoded: str) -> bytes:
    try:
        return binascii.a2b_base64(encoded, strict_mode=True)
    except (binascii.Error, ValueError):
        raise GuestError("the guest sent a text that is not base64") from None


def _bytes(word: str) -> bytes:
    """A word of the user's, who may have bytes in it that are no UTF-8."""
    return word.encode("utf-8", "surrogateescape")


def _word(encoded: str) -> str:
    return _from_b64(encoded).decode("utf-8", "surrogateescape")


def _variable(encoded: str) -> tuple[str, str]:
    name, equals, value = _word(encoded).partition("=")
    if not name or not equals:
        raise GuestError("the configuration has a variable without a name")
    return name, value


def _host(line: str) -> tuple[str, str]:
    match line.split(" "):
        case [name, address] if name and address:
            return name, address
        case _:
            raise GuestError(f"the configuration has a host that is none: {line[:80]!r}")


def _printed(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


def _text(encoded: str) -> str:
    return _from_b64(encoded).decode("utf-8", "backslashreplace")


def _key(encoded: str) -> bytes:
    key = _from_b64(encoded)
    if len(key) != _KEY:
        raise GuestError("the configuration has a key that is none")
    return key


def _walls(names: str) -> frozenset[Wall]:
    try:
        return frozenset(Wall(name) for name in names.split(",") if name)
    except ValueError:
        raise GuestError(f"the configuration has walls that are none: {names[:80]!r}") from None


def _seconds(text: str) -> float:
    """Unix time, in seconds, with six decimals."""
    whole, _, fraction = text.partition(".")
    if len(fraction) != 6:
        raise GuestError(f"{text[:40]!r} is no time with six decimals")
    return _number(whole, 2**40) + _number(fraction, 999_999) / 1e6


def _number(text: str, most: int) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 19 or int(text) > most:
        raise GuestError(f"the guest sent {text[:40]!r} where a number up to {most} belongs")
    return int(text)


def _terminal(text: str) -> Terminal:
    """Rows and columns. The frames are loaded by a guest only where a terminal is asked for."""
    from wgcell.guest.frames import Terminal

    rows, _, columns = text.partition(" ")
    return Terminal(_number(rows, 65535), _number(columns, 65535))


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
