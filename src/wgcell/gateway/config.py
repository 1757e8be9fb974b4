"""A gateway's configuration, from its TOML file or the line that starts the process: one schema.

::

    engine = "embedded"               # or "namespace", or "kernel"
    listen = "0.0.0.0:51820"          # where peers come to; embedded: the first peer, see below
    endpoint = "vpn.example.com"      # what their files say of it; without :PORT, the peer's
    private_key = "…"
    address = "10.99.0.1"             # the gateway's own in the tunnel; its resolver answers there
    address6 = "fd99::1"              # a second one, of IPv6
    rules = ["deny ads.example.com:*", "allow *.example.com:443", "allow 203.0.113.0/24:8000-8010"]
    resolver = ["192.0.2.53:53"]      # instead of this machine's own
    protected = ["198.51.100.0/24"]   # this side's networks, refused as private ones are
    [services]
    "10.99.0.5:80" = "127.0.0.1:8000"
    [limits]                          # of each peer
    flows = 512
    [peers.alice]
    public_key = "…"
    address = "10.99.0.2"
    address6 = "fd99::2"              # a second one, if the gateway has one
    port = 51820                      # embedded: each peer comes to a UDP port of its own
    rules = ["allow 203.0.113.7:22"]  # read before the gateway's own
    [peers.alice.limits]
    flows_per_second = 8

Every error names the file, the line where it can be found, the key, what was found and what is
allowed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NoReturn

from wgcell import toml
from wgcell.errors import PolicyError
from wgcell.gateway.keys import decode_key
from wgcell.gateway.policy import (
    Address,
    Limits,
    Network,
    Policy,
    Rule,
    Service,
    is_name,
    parse_line,
    parse_service,
)
from wgcell.net import addresses

__all__ = [
    "GatewayConfig",
    "Peer",
    "check_services",
    "load_config",
    "parse_config",
    "split_endpoint",
]

DEFAULT_LISTEN = "0.0.0.0:51820"
DEFAULT_ADDRESS = "10.99.0.1"
_ENGINES = ("embedded", "namespace", "kernel")
_LARGEST_FILE = 1 << 20
_PEER_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}", re.ASCII)
_MOST_PEERS = 250

_KEYS: dict[str, type] = {
    "engine": str,
    "listen": str,
    "endpoint": str,
    "private_key": str,
    "address": str,
    "address6": str,
    "rules": list,
    "resolver": list,
    "protected": list,
    "services": dict,
    "limits": dict,
    "learn": bool,
    "peers": dict,
}
_PEER_KEYS: dict[str, type] = {
    "public_key": str,
    "preshared_key": str,
    "address": str,
    "address6": str,
    "port": int,
    "rules": list,
    "limits": dict,
}


@dataclass(frozen=True, slots=True)
class Peer:
    """One peer, and what it may reach."""

    name: str
    public_key: str
    address: Address
    """Its own in the tunnel: a packet with any other source than `addresses` is not its own."""
    port: int
    """Where it comes to with the embedded engine; 0 is any that is free."""
    policy: Policy
    preshared_key: str = field(default="", repr=False)
    """Empty for none. Not for the embedded engine."""
    address6: Address | None = None
    """A second one, of IPv6, beside one of IPv4."""

    @property
    def addresses(self) -> tuple[Address, ...]:
        """One or two, of different families."""
        return _both(self.address, self.address6)


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """What one gateway is told."""

    listen: tuple[str, int]
    endpoint: str
    """HOST or HOST:PORT of the peers' files; empty if the file does not say."""
    private_key: str = field(repr=False)
    address: Address
    """The gateway's own address in the tunnel, where its resolver answers."""
    services: tuple[Service, ...]
    protected: tuple[Network, ...]
    peers: tuple[Peer, ...]
    resolver: tuple[tuple[str, int], ...] = ()
    """Where names are asked; empty is this machine's own resolver."""
    engine: str = "embedded"
    address6: Address | None = None
    """A second one, of IPv6, beside one of IPv4."""

    @property
    def addresses(self) -> tuple[Address, ...]:
        """One or two, of different families."""
        return _both(self.address, self.address6)

    @property
    def inside(self) -> tuple[Address, ...]:
        """The gateway's own addresses in the tunnel, and its peers'."""
        return (*self.addresses, *(one for peer in self.peers for one in peer.addresses))

    @property
    def one_port(self) -> bool:
        """Whether all peers come to the same place."""
        return self.engine != "embedded"

    def port_of(self, peer: Peer) -> int:
        """Where ``peer`` comes to."""
        return self.listen[1] if self.one_port else peer.port


def _both(one: Address, other: Address | None) -> tuple[Address, ...]:
    return (one,) if other is None else (one, other)


class _Reading:
    """Where a configuration comes from, and one way to complain about it."""

    def __init__(self, source: str, text: str) -> None:
        self._source = source
        self._lines = text.splitlines()

    def fail(self, key: str, found: str, *, at: object = None, mend: str = "") -> NoReturn:
        line = self._line(key, at)
        raise PolicyError(f"{self._source}:{line} {key}: {found}", mend=mend)

    def _line(self, key: str, at: object) -> str:
        """The number and a colon of the line that holds ``at``, or else ``key``; best effort.

        tomllib keeps no positions. The search begins at the peer's own table, if it is about one.
        """
        begin = 0
        parts = key.split(".")
        if parts[0] == "peers" and len(parts) > 1:
            heads = [
                n for n, s in enumerate(self._lines) if s.strip().startswith(f"[peers.{parts[1]}")
            ]
            begin = heads[0] if heads else 0
        last = re.sub(r"\[.*", "", parts[-1])
        for wanted in ([f'"{at}"', f"'{at}'"] if isinstance(at, str) else []) + [last]:
            for number, line in enumerate(self._lines[begin:], start=begin + 1):
                if wanted in line.split(" #")[0]:
                    return f"{number}:"
        return ""

    def table(self, key: str, raw: object, known: Mapping[str, type]) -> dict[str, Any]:
        if not isinstance(raw, dict):
            self.fail(key or "gateway", f"found {_short(raw)}; allowed: a table")
        for name, value in raw.items():
            whole = f"{key}.{name}" if key else str(name)
            if name not in known:
                self.unknown(whole, known)
            # bool is an int to Python, not to who writes a policy.
            if not isinstance(value, known[name]) or (known[name] is int and value is True):
                self.fail(whole, f"found {_short(value)}; allowed: {toml.CALLED[known[name]]}")
        return raw

    def unknown(self, key: str, known: Iterable[str]) -> NoReturn:
        sentence = toml.unknown_key(key, known)
        raise PolicyError(f"{self._source}:{self._line(key, None)} {sentence}")

    def key(self, key: str, raw: Mapping[str, Any], name: str) -> str:
        whole = f"{key}{name}"
        if name not in raw:
            self.fail(key.rstrip(".") or name, f"{name} is missing", mend=_MENDS.get(name, ""))
        try:
            decode_key(raw[name])
        except PolicyError as error:
            self.fail(whole, error.message, mend=_MENDS.get(name, ""))
        return str(raw[name])

    def address(self, key: str, text: str) -> Address:
        try:
            return addresses.address(text)
        except ValueError as error:
            self.fail(key, f"found {error}; allowed: an IP address", at=text)

    def address6(self, key: str, raw: Mapping[str, Any], beside: Address) -> Address | None:
        """The second address of a table's, if there is one."""
        if "address6" not in raw:
            return None
        found = self.address(f"{key}address6", raw["address6"])
        if (found.version, beside.version) != (6, 4):
            self.fail(
                f"{key}address6",
                f"found {_short(raw['address6'])}; allowed: IPv6, beside an address of IPv4",
                at=raw["address6"],
            )
        return found

    def place(self, key: str, text: object, default_port: int | None = None) -> tuple[str, int]:
        plain = str(text)
        if default_port is not None and (
            addresses.is_address(plain.removeprefix("[").removesuffix("]"))
        ):
            plain = f"{plain}:{default_port}"
        try:
            host, number = addresses.host_and_port(plain)
            addresses.address(host)
        except ValueError:
            self.fail(key, f"found {_short(text)}; allowed: ADDRESS:PORT", at=text)
        return host, number

    def each(self, key: str, raw: list[Any]) -> list[tuple[str, str]]:
        """The strings of a list, each with its key."""
        for number, item in enumerate(raw):
            if not isinstance(item, str):
                self.fail(f"{key}[{number}]", f"found {_short(item)}; allowed: a string", at=item)
        return [(f"{key}[{number}]", item) for number, item in enumerate(raw)]

    def rules(self, key: str, raw: list[Any]) -> tuple[Rule, ...]:
        found = []
        for where, text in self.each(key, raw):
            try:
                found.append(parse_line(text))
            except PolicyError as error:
                self.fail(where, error.message, at=text, mend=error.mend)
        return tuple(found)

    def services(self, raw: dict[str, Any]) -> tuple[Service, ...]:
        found = []
        for inside, outside in raw.items():
            try:
                found.append(parse_service(inside, str(outside)))
            except PolicyError as error:
                self.fail("services", error.message, at=inside, mend=error.mend)
        return tuple(found)

    def networks(self, key: str, raw: list[Any]) -> tuple[Network, ...]:
        found = []
        for where, text in self.each(key, raw):
            try:
                found.append(addresses.network(text, strict=False))
            except ValueError as error:
                self.fail(where, f"{error}; allowed: a network as 192.0.2.0/24", at=text)
        return tuple(found)

    def limits(self, key: str, raw: object, base: Limits) -> Limits:
        known = {item.name: int for item in fields(Limits)}
        table = self.table(key, raw, known)
        for name, value in table.items():
            least = 0 if name == "bytes_per_second" else 1
            if not least <= value <= 1 << 40:
                self.fail(f"{key}.{name}", f"found {value}; allowed: {least} or more")
        return replace(base, **table)


_MENDS = {
    "private_key": "wgcell gateway keys makes a pair of keys",
    "public_key": "wgcell gateway peer add NAME makes a peer with its keys",
}


def _short(value: object) -> str:
    return repr(value)[:80]


def parse_config(
    raw: object, source: str = "the gateway's config", text: str = ""
) -> GatewayConfig:
    """The configuration, checked. ``text`` is the file's, to find lines in.

    Raises `PolicyError` for the first thing that is wrong.
    """
    reading = _Reading(source, text)
    table = reading.table("", raw, _KEYS)
    private_key = reading.key("", table, "private_key")
    engine = table.get("engine", _ENGINES[0])
    if engine not in _ENGINES:
        reading.fail("engine", f"found {_short(engine)}; allowed: {' or '.join(_ENGINES)}")
    listen = reading.place("listen", table.get("listen", DEFAULT_LISTEN))
    protected = reading.networks("protected", table.get("protected", []))
    common = Policy(
        rules=reading.rules("rules", table.get("rules", [])),
        services=reading.services(table.get("services", {})),
        protected=protected,
        limits=reading.limits("limits", table.get("limits", {}), Limits()),
        learn=table.get("learn", False),
    )
    address = reading.address("address", table.get("address", DEFAULT_ADDRESS))
    address6 = reading.address6("", table, address)
    own = _both(address, address6)
    peers = _peers(reading, table.get("peers", {}), common, listen[1], own)
    taken = dict.fromkeys(own, "the gateway's own")
    taken |= {one: f"{peer.name}'s own" for peer in peers for one in peer.addresses}
    for service in common.services:
        try:
            check_services((service,), taken)
        except PolicyError as error:
            at = addresses.written(str(service.address), service.port)
            reading.fail("services", error.message, at=at, mend=error.mend)
    try:
        split_endpoint(table.get("endpoint", ""))
    except PolicyError as error:
        reading.fail("endpoint", error.message)
    # The tunnel's own addresses lie on this side of its end, too: no name may lead there.
    inside = [*own, *(s.address for s in common.services)]
    inside += [one for peer in peers for one in peer.addresses]
    protected = (*protected, *map(addresses.only, dict.fromkeys(inside)))
    return GatewayConfig(
        engine=engine,
        listen=listen,
        endpoint=table.get("endpoint", ""),
        private_key=private_key,
        address=address,
        address6=address6,
        services=common.services,
        protected=protected,
        peers=tuple(
            replace(peer, policy=replace(peer.policy, protected=protected)) for peer in peers
        ),
        resolver=tuple(
            reading.place(key, item, 53)
            for key, item in reading.each("resolver", table.get("resolver", []))
        ),
    )


def check_services(services: Iterable[Service], taken: Mapping[Address, str]) -> None:
    """An address that somebody has in the tunnel can't be a service's. Raises `PolicyError`.

    ``taken`` says whose each is, as "the gateway's own".
    """
    for service in services:
        if service.address in taken:
            beside = next(one for one in taken if one.version == service.address.version)
            free = next(
                address
                for number in range(5, 5 + len(taken) + 1)
                if (address := beside + number) not in taken
            )
            raise PolicyError(
                f"{service.address} is {taken[service.address]} address in the tunnel",
                mend="take one that nobody has: "
                f"{addresses.written(str(free), service.port)} = "
                f"{addresses.written(service.target_host, service.target_port)}",
            )


def split_endpoint(text: str) -> tuple[str, int | None]:
    """The host, and the port if there is one, of HOST, HOST:PORT, V6 or [V6]:PORT; ("", None) for
    nothing. Raises `PolicyError`.
    """
    host, port = text, ""
    if found := re.fullmatch(r"(\[[^\[\]]*\]|[^:]*):([0-9]{1,5})", text, re.ASCII):
        host, port = found[1], found[2]
    host = host.removeprefix("[").removesuffix("]")
    named = addresses.is_address(host) or is_name(host.lower().rstrip("."))
    if text and not named:
        raise PolicyError(f"found {_short(text)}; allowed: HOST or HOST:PORT")
    if port and not 1 <= int(port) <= 65535:
        raise PolicyError(f"found {_short(text)}; allowed: a port of 1-65535")
    return host, int(port) if port else None


def _peers(
    reading: _Reading, raw: dict[str, Any], common: Policy, port: int, own: tuple[Address, ...]
) -> tuple[Peer, ...]:
    if len(raw) > _MOST_PEERS:
        reading.fail("peers", f"{len(raw)} of them; allowed: at most {_MOST_PEERS}")
    found: list[Peer] = []
    for name, value in raw.items():
        key = f"peers.{name}"
        if not _PEER_NAME.fullmatch(name):
            reading.fail(key, "is no peer's name; allowed: 1-32 of a-z, 0-9 and -, not - first")
        table = reading.table(key, value, _PEER_KEYS)
        if "address" not in table:
            reading.fail(key, "address is missing; it is the peer's own in the tunnel")
        address = reading.address(f"{key}.address", table["address"])
        address6 = reading.address6(f"{key}.", table, address)
        if address6 is not None and len(own) == 1:
            reading.fail(f"{key}.address6", "the gateway itself has none")
        peer = Peer(
            name=name,
            public_key=reading.key(f"{key}.", table, "public_key"),
            preshared_key=reading.key(f"{key}.", table, "preshared_key")
            if "preshared_key" in table
            else "",
            address=address,
            address6=address6,
            port=table.get("port", port and port + len(found)),
            policy=replace(
                common,
                rules=reading.rules(f"{key}.rules", table.get("rules", [])) + common.rules,
                limits=reading.limits(f"{key}.limits", table.get("limits", {}), common.limits),
            ),
        )
        if not 0 <= peer.port <= 65535:
            reading.fail(f"{key}.port", f"found {peer.port}; allowed: 0-65535")
        for what in ("address", "address6"):
            if getattr(peer, what) in own:
                reading.fail(f"{key}.{what}", "is the gateway's own", at=table[what])
        for other in found:
            for what in ("public_key", "address", "address6"):
                if getattr(peer, what) in (other.public_key, *other.addresses):
                    reading.fail(f"{key}.{what}", f"is also that of peers.{other.name}")
            if peer.port and other.port == peer.port:
                reading.fail(
                    f"{key}.port",
                    f"{peer.port} is also that of peers.{other.name}",
                    mend="the embedded engine has one port a peer",
                )
        found.append(peer)
    return tuple(found)


def load_config(path: Path) -> GatewayConfig:
    """The configuration of a file. Raises `PolicyError`, naming the file and the line."""
    text = read_text(path)
    return parse_config(parse_toml(path, text), str(path), text)


def read_text(path: Path) -> str:
    """A gateway file's text. Raises `PolicyError`."""
    try:
        with path.open("rb") as file:
            raw = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise PolicyError(f"{path}: {error.strerror or error}") from None
    if len(raw) > _LARGEST_FILE:
        raise PolicyError(f"{path}: larger than 1 MiB, which no gateway file is")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise PolicyError(f"{path}:{line}: not UTF-8 text") from None


def parse_toml(path: Path, text: str) -> dict[str, Any]:
    """A gateway file's tables. Raises `PolicyError` naming the line."""
    try:
        return toml.parse(text.encode())
    except toml.TomlError as error:
        raise PolicyError(error.at(path)) from None
