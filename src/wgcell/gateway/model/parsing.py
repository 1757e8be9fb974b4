"""Parses a gateway's configuration: its TOML file, or the line that starts the process. Pure.

Both have one schema::

    engine = "embedded"               # or "namespace", or "kernel"
    listen = "0.0.0.0:51820"          # where peers send to; embedded: the first peer, see below
    endpoint = "vpn.example.com"      # the host in the peers' files; without :PORT, the peer's port
    private_key = "…"
    address = "10.99.0.1"             # the gateway's own in the tunnel; its resolver answers there
    address6 = "fd99::1"              # a second one, of IPv6
    rules = ["deny ads.example.com:*", "allow *.example.com:443", "allow 203.0.113.0/24:8000-8010"]
    resolver = ["192.0.2.53:53"]      # instead of this machine's own
    protected = ["198.51.100.0/24"]   # networks of this side, refused as private ones are
    [services]
    "10.99.0.5:80" = "127.0.0.1:8000"
    [limits]                          # of each peer
    flows = 512
    [peers.alice]
    public_key = "…"
    address = "10.99.0.2"
    address6 = "fd99::2"              # a second one, if the gateway has one
    port = 51820                      # embedded: each peer has a UDP port of its own
    rules = ["allow 203.0.113.7:22"]  # read before the gateway's own
    [peers.alice.limits]
    flows_per_second = 8

Every error names the file, the line where it can be found, the key, what was found and what is
allowed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any, NoReturn

from wgcell import toml
from wgcell.errors import PolicyError
from wgcell.gateway.model.config import GatewayConfig, Peer, both, is_peer_name
from wgcell.gateway.model.keys import decode_key
from wgcell.gateway.model.policy import Limits, Policy
from wgcell.gateway.model.rules import Rule, is_name, parse_line
from wgcell.gateway.model.services import Service, ServiceAsked, parse_service, placed
from wgcell.net import addresses
from wgcell.net.addresses import Address, Network

__all__ = [
    "KEYS",
    "MOST_PEERS",
    "PEER_KEYS",
    "parse_config",
    "split_endpoint",
]

DEFAULT_LISTEN = "0.0.0.0:51820"
DEFAULT_ADDRESS = "10.99.0.1"
_ENGINES = ("embedded", "namespace", "kernel")
MOST_PEERS = 250

KEYS: dict[str, type] = {
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
PEER_KEYS: dict[str, type] = {
    "public_key": str,
    "preshared_key": str,
    "address": str,
    "address6": str,
    "port": int,
    "rules": list,
    "limits": dict,
}


class _Reader:
    """Checks the values of one source, and raises every error in one form."""

    def __init__(self, source: str, text: str) -> None:
        self._source = source
        self._lines = text.splitlines()

    def fail(self, key: str, found: str, *, at: object = None, hint: str = "") -> NoReturn:
        line = self._line(key, at)
        raise PolicyError(f"{self._source}:{line} {key}: {found}", hint=hint)

    def _line(self, key: str, at: object) -> str:
        """The number, and a colon, of the line that holds ``at`` or else ``key``; best effort.

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
            self.fail(key.rstrip(".") or name, f"{name} is missing", hint=_HINTS.get(name, ""))
        try:
            decode_key(raw[name])
        except PolicyError as error:
            self.fail(whole, error.message, hint=_HINTS.get(name, ""))
        return str(raw[name])

    def address(self, key: str, text: str) -> Address:
        try:
            return addresses.address(text)
        except ValueError as error:
            self.fail(key, f"found {error}; allowed: an IP address", at=text)

    def address6(self, key: str, raw: Mapping[str, Any], beside: Address) -> Address | None:
        """The second address of a table, if it has one."""
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

    def each(self, key: str, raw: Iterable[object]) -> list[tuple[str, str]]:
        """The strings of a list, each with its key for errors."""
        found = []
        for number, item in enumerate(raw):
            if not isinstance(item, str):
                self.fail(f"{key}[{number}]", f"found {_short(item)}; allowed: a string", at=item)
            found.append((f"{key}[{number}]", item))
        return found

    def rules(self, key: str, raw: Iterable[object]) -> tuple[Rule, ...]:
        found = []
        for where, text in self.each(key, raw):
            try:
                found.append(parse_line(text))
            except PolicyError as error:
                self.fail(where, error.message, at=text, hint=error.hint)
        return tuple(found)

    def services(self, raw: Mapping[str, object]) -> tuple[ServiceAsked, ...]:
        found = []
        for inside, outside in raw.items():
            try:
                found.append(parse_service(inside, str(outside)))
            except PolicyError as error:
                self.fail("services", error.message, at=inside, hint=error.hint)
        return tuple(found)

    def placed(
        self, asked: Iterable[ServiceAsked], taken: Mapping[Address, str], own: Address
    ) -> tuple[Service, ...]:
        every = tuple(asked)
        for one in every:
            try:
                placed((one,), taken, own)
            except PolicyError as error:
                at = addresses.written(one.name or str(one.address), one.port)
                self.fail("services", error.message, at=at, hint=error.hint)
        try:
            return placed(every, taken, own)
        except PolicyError as error:
            self.fail("services", error.message, hint=error.hint)

    def networks(self, key: str, raw: Iterable[object]) -> tuple[Network, ...]:
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


_HINTS = {
    "private_key": "wgcell gateway keys makes a pair of keys",
    "public_key": "wgcell gateway peer add NAME makes a peer with its keys",
}


def _short(value: object) -> str:
    return repr(value)[:80]


def parse_config(
    raw: object, source: str = "the gateway's config", text: str = ""
) -> GatewayConfig:
    """Parse and check a configuration. ``text`` is the text of the file, to name lines of.

    Raises `PolicyError` for the first thing that is wrong.
    """
    reader = _Reader(source, text)
    table = reader.table("", raw, KEYS)
    private_key = reader.key("", table, "private_key")
    engine = table.get("engine", _ENGINES[0])
    if engine not in _ENGINES:
        reader.fail("engine", f"found {_short(engine)}; allowed: {' or '.join(_ENGINES)}")
    listen = reader.place("listen", table.get("listen", DEFAULT_LISTEN))
    protected = reader.networks("protected", table.get("protected", []))
    common = Policy(
        rules=reader.rules("rules", table.get("rules", [])),
        protected=protected,
        limits=reader.limits("limits", table.get("limits", {}), Limits()),
        learn=table.get("learn", False),
    )
    address = reader.address("address", table.get("address", DEFAULT_ADDRESS))
    address6 = reader.address6("", table, address)
    own = both(address, address6)
    peers = _peers(reader, table.get("peers", {}), common, listen[1], own)
    taken = dict.fromkeys(own, "the gateway's own")
    taken |= {one: f"{peer.name}'s own" for peer in peers for one in peer.addresses}
    services = reader.placed(reader.services(table.get("services", {})), taken, address)
    try:
        split_endpoint(table.get("endpoint", ""))
    except PolicyError as error:
        reader.fail("endpoint", error.message)
    # The tunnel's own addresses lie on this side of its end, too: no name may lead there.
    inside = [*own, *(s.address for s in services)]
    inside += [one for peer in peers for one in peer.addresses]
    protected = (*protected, *map(addresses.only, dict.fromkeys(inside)))
    return GatewayConfig(
        engine=engine,
        listen=listen,
        endpoint=table.get("endpoint", ""),
        private_key=private_key,
        address=address,
        address6=address6,
        services=services,
        protected=protected,
        peers=tuple(
            replace(peer, policy=replace(peer.policy, protected=protected, services=services))
            for peer in peers
        ),
        resolver=tuple(
            reader.place(key, item, 53)
            for key, item in reader.each("resolver", table.get("resolver", []))
        ),
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
    reader: _Reader, raw: dict[str, Any], common: Policy, port: int, own: tuple[Address, ...]
) -> tuple[Peer, ...]:
    if len(raw) > MOST_PEERS:
        reader.fail("peers", f"{len(raw)} of them; allowed: at most {MOST_PEERS}")
    found: list[Peer] = []
    for name, value in raw.items():
        key = f"peers.{name}"
        if not is_peer_name(name):
            reader.fail(key, "is no peer's name; allowed: 1-32 of a-z, 0-9 and -, not - first")
        table = reader.table(key, value, PEER_KEYS)
        if "address" not in table:
            reader.fail(key, "address is missing; it is the peer's own in the tunnel")
        address = reader.address(f"{key}.address", table["address"])
        address6 = reader.address6(f"{key}.", table, address)
        if address6 is not None and len(own) == 1:
            reader.fail(f"{key}.address6", "the gateway itself has none")
        peer = Peer(
            name=name,
            public_key=reader.key(f"{key}.", table, "public_key"),
            preshared_key=reader.key(f"{key}.", table, "preshared_key")
            if "preshared_key" in table
            else "",
            address=address,
            address6=address6,
            port=table.get("port", port and port + len(found)),
            policy=replace(
                common,
                rules=reader.rules(f"{key}.rules", table.get("rules", [])) + common.rules,
                limits=reader.limits(f"{key}.limits", table.get("limits", {}), common.limits),
            ),
        )
        if not 0 <= peer.port <= 65535:
            reader.fail(f"{key}.port", f"found {peer.port}; allowed: 0-65535")
        for what in ("address", "address6"):
            if getattr(peer, what) in own:
                reader.fail(f"{key}.{what}", "is the gateway's own", at=table[what])
        for other in found:
            for what in ("public_key", "address", "address6"):
                if getattr(peer, what) in (other.public_key, *other.addresses):
                    reader.fail(f"{key}.{what}", f"is also that of peers.{other.name}")
            if peer.port and other.port == peer.port:
                reader.fail(
                    f"{key}.port",
                    f"{peer.port} is also that of peers.{other.name}",
                    hint="the embedded engine has one port a peer",
                )
        found.append(peer)
    return tuple(found)
