"""The guest's configuration, as the lines that the host sends to the agent.

Both ends use this module: one encoder and one strict decoder.
"""

from __future__ import annotations

from _collections_abc import Sequence  # of collections.abc, without collections
from dataclasses import dataclass, field

from wgcell.errors import GuestError
from wgcell.guest.fields import ascii_line, b64, from_b64, number, seconds, subject
from wgcell.guest.walls import Wall

__all__ = ["GuestConfig", "encode_config", "parse_config"]

_KEY = 32
"""Bytes of a WireGuard key."""
_YES = {True: "yes", False: "no"}
_ONCE = (
    *("time", "hostname", "walls", "wg_private_key", "wg_peer_public_key", "wg_allowed_ips"),
    *("wg_mtu", "wg_keepalive", "probe", "inputs", "stdin"),
)
_AT_MOST_ONCE = ("wg_preshared_key", "terminal")
_ANY = ("wg_address", "dns", "search", "host", "arg", "env", "output")
TYPE_CHECKING = False
if TYPE_CHECKING:
    from wgcell.guest.frames import Terminal


@dataclass(frozen=True, slots=True)
class GuestConfig:
    """The guest's whole configuration. Keys are 32 raw bytes; ``time`` is Unix seconds."""

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
    """Domains in which the resolver looks up a name without a dot."""
    hosts: tuple[tuple[str, str], ...] = ()
    """Names, each with an address, for the workload's /etc/hosts."""
    stdin: bool = False
    """The command reads what session 0 brings, and from /dev/null otherwise."""
    terminal: Terminal | None = None
    """The command's streams are a terminal of this size, whose output is all on ``stdout``."""


def encode_config(config: GuestConfig) -> bytes:
    """The configuration as lines, ended by ``end``."""
    lines = [
        f"time {config.time:.6f}",
        f"hostname {config.hostname}",
        f"walls {','.join(wall.value for wall in Wall if wall in config.walls)}",
        f"wg_private_key {b64(config.private_key)}",
        f"wg_peer_public_key {b64(config.peer_public_key)}",
        f"wg_allowed_ips {','.join(config.allowed_ips)}",
        f"wg_mtu {config.mtu}",
        f"wg_keepalive {config.keepalive}",
        f"probe {config.probe}",
        f"inputs {_YES[config.inputs]}",
        f"stdin {_YES[config.stdin]}",
    ]
    if config.preshared_key is not None:
        lines.append(f"wg_preshared_key {b64(config.preshared_key)}")
    if config.terminal is not None:
        lines.append(f"terminal {config.terminal.rows} {config.terminal.columns}")
    lines += [f"wg_address {address}" for address in config.addresses]
    lines += [f"dns {server}" for server in config.dns]
    lines += [f"search {domain}" for domain in config.search]
    lines += [f"host {name} {address}" for name, address in config.hosts]
    lines += [f"arg {b64(_bytes(word))}" for word in config.command]
    lines += [f"env {b64(_bytes(f'{name}={value}'))}" for name, value in config.environment]
    lines += [f"output {b64(_bytes(path))}" for path in config.outputs]
    return "".join(f"{line}\n" for line in [*lines, "end"]).encode("ascii")


def parse_config(lines: Sequence[bytes]) -> GuestConfig:
    """The configuration in these lines, of which ``end`` is the last. Raises GuestError."""
    values = _values(lines)
    once = {word: values[word][0] for word in _ONCE}
    preshared = [_key(value) for value in values["wg_preshared_key"]]
    return GuestConfig(
        time=seconds(once["time"]),
        hostname=once["hostname"],
        walls=_walls(once["walls"]),
        private_key=_key(once["wg_private_key"]),
        peer_public_key=_key(once["wg_peer_public_key"]),
        preshared_key=preshared[0] if preshared else None,
        addresses=tuple(values["wg_address"]),
        allowed_ips=tuple(once["wg_allowed_ips"].split(",")),
        mtu=number(once["wg_mtu"], 65535),
        keepalive=number(once["wg_keepalive"], 65535),
        dns=tuple(values["dns"]),
        probe=once["probe"],
        inputs=subject(once["inputs"], ("yes", "no")) == "yes",
        command=tuple(map(_word, values["arg"])),
        environment=tuple(map(_variable, values["env"])),
        outputs=tuple(map(_word, values["output"])),
        search=tuple(values["search"]),
        hosts=tuple(map(_host, values["host"])),
        stdin=subject(once["stdin"], ("yes", "no")) == "yes",
        terminal=_terminal(values["terminal"][0]) if values["terminal"] else None,
    )


def _values(lines: Sequence[bytes]) -> dict[str, list[str]]:
    """The values of each word, in order, in a number that the word may have. Raises GuestError."""
    values: dict[str, list[str]] = {word: [] for word in _ONCE + _AT_MOST_ONCE + _ANY}
    if not lines or lines[-1].strip() != b"end":
        raise GuestError("the configuration broke off")
    for line in lines[:-1]:
        word, _, value = ascii_line(line).rstrip("\n").partition(" ")
        if word not in values:
            raise GuestError(f"unknown word {word[:40]} in the configuration")
        values[word].append(value)
    for word in _ONCE + _AT_MOST_ONCE:
        if len(values[word]) > 1 or (word in _ONCE and not values[word]):
            raise GuestError(f"the configuration has {len(values[word])} lines {word}")
    return values


def _bytes(word: str) -> bytes:
    """A word that the user typed, which may have bytes that are no UTF-8."""
    return word.encode("utf-8", "surrogateescape")


def _word(encoded: str) -> str:
    return from_b64(encoded).decode("utf-8", "surrogateescape")


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


def _key(encoded: str) -> bytes:
    key = from_b64(encoded)
    if len(key) != _KEY:
        raise GuestError("the configuration has a key that is none")
    return key


def _walls(names: str) -> frozenset[Wall]:
    try:
        return frozenset(Wall(name) for name in names.split(",") if name)
    except ValueError:
        raise GuestError(f"the configuration has walls that are none: {names[:80]!r}") from None


def _terminal(text: str) -> Terminal:
    """Rows and columns. The frames are loaded by a guest only where a terminal is asked for."""
    from wgcell.guest.frames import Terminal

    rows, _, columns = text.partition(" ")
    return Terminal(number(rows, 65535), number(columns, 65535))
