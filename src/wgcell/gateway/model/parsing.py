"""What a gateway's configuration means: `words.Configure` becomes a `GatewayConfig`. Pure.

A file (`document` has its schema) and the order that starts the process both come through here.
Every error names the file, the line where it can be found, the key, what was found and what is
allowed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import NoReturn

from wgcell.errors import PolicyError
from wgcell.gateway import words
from wgcell.gateway.model.config import GatewayConfig, Peer, both, is_peer_name
from wgcell.gateway.model.document import HINTS, written
from wgcell.gateway.model.keys import decode_key
from wgcell.gateway.model.policy import Limits, Policy
from wgcell.gateway.model.published import Published, parse_published
from wgcell.gateway.model.rules import Rule, is_name, parse_line
from wgcell.gateway.model.services import Service, ServiceAsked, parse_service, placed
from wgcell.gateway.model.source import Source, short
from wgcell.net import addresses
from wgcell.net.addresses import Address, Network

__all__ = ["configured", "parse_config", "split_endpoint"]

_CONFIG = "the gateway's config"


class _Reader:
    """Reads the texts of one source."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def fail(self, key: str, found: str, *, at: object = None, hint: str = "") -> NoReturn:
        self._source.fail(key, found, at=at, hint=hint)

    def key(self, key: str, text: str) -> str:
        try:
            decode_key(text)
        except PolicyError as error:
            self.fail(key, error.message, hint=HINTS.get(key.rpartition(".")[2], ""))
        return text

    def address(self, key: str, text: str) -> Address:
        try:
            return addresses.address(text)
        except ValueError as error:
            self.fail(key, f"found {error}; allowed: an IP address", at=text)

    def address6(self, key: str, text: str | None, beside: Address) -> Address | None:
        """The second address of a table, if it has one."""
        if text is None:
            return None
        found = self.address(key, text)
        if (found.version, beside.version) != (6, 4):
            allowed = "IPv6, beside an address of IPv4"
            self.fail(key, f"found {short(text)}; allowed: {allowed}", at=text)
        return found

    def place(self, key: str, text: str, default_port: int | None = None) -> tuple[str, int]:
        plain = text
        if default_port is not None and (
            addresses.is_address(plain.removeprefix("[").removesuffix("]"))
        ):
            plain = f"{plain}:{default_port}"
        try:
            host, number = addresses.host_and_port(plain)
            addresses.address(host)
        except ValueError:
            self.fail(key, f"found {short(text)}; allowed: ADDRESS:PORT", at=text)
        return host, number

    def rules(self, key: str, texts: Iterable[str]) -> tuple[Rule, ...]:
        found = []
        for number, text in enumerate(texts):
            try:
                found.append(parse_line(text))
            except PolicyError as error:
                self.fail(f"{key}[{number}]", error.message, at=text, hint=error.hint)
        return tuple(found)

    def services(self, texts: Mapping[str, str]) -> tuple[ServiceAsked, ...]:
        found = []
        for inside, outside in texts.items():
            try:
                found.append(parse_service(inside, outside))
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

    def published(self, key: str, texts: Iterable[str]) -> tuple[Published, ...]:
        found = []
        for number, text in enumerate(texts):
            try:
                found.append(parse_published(text))
            except PolicyError as error:
                self.fail(f"{key}[{number}]", error.message, at=text, hint=error.hint)
        return tuple(found)

    def networks(self, key: str, texts: Iterable[str]) -> tuple[Network, ...]:
        found = []
        for number, text in enumerate(texts):
            try:
                found.append(addresses.network(text, strict=False))
            except ValueError as error:
                where, allowed = f"{key}[{number}]", "a network as 192.0.2.0/24"
                self.fail(where, f"{error}; allowed: {allowed}", at=text)
        return tuple(found)

    def limits(self, key: str, given: words.Limits, base: Limits) -> Limits:
        values: dict[str, int] = {}
        for field in fields(given):
            value: int | None = getattr(given, field.name)
            if value is None:
                continue
            least = 0 if field.name == "bytes_per_second" else 1
            if not least <= value <= 1 << 40:
                self.fail(f"{key}.{field.name}", f"found {value}; allowed: {least} or more")
            values[field.name] = value
        return replace(base, **values)


def parse_config(raw: object, source: str = _CONFIG, text: str = "") -> GatewayConfig:
    """Read and check a configuration's tables. ``text`` is the text of the file, to name lines of.

    Raises `PolicyError` for the first thing that is wrong.
    """
    return configured(written(raw, Source(source, text)), source, text)


def configured(order: words.Configure, source: str = _CONFIG, text: str = "") -> GatewayConfig:
    """What ``order`` means. Raises `PolicyError` for the first thing that is wrong."""
    reader = _Reader(Source(source, text))
    private_key = reader.key("private_key", order.private_key)
    if order.engine not in words.ENGINES:
        allowed = " or ".join(words.ENGINES)
        reader.fail("engine", f"found {short(order.engine)}; allowed: {allowed}")
    listen = reader.place("listen", order.listen)
    protected = reader.networks("protected", order.protected)
    common = Policy(
        rules=reader.rules("rules", order.rules),
        protected=protected,
        limits=reader.limits("limits", order.limits, Limits()),
        learn=order.learn,
    )
    address = reader.address("address", order.address)
    address6 = reader.address6("address6", order.address6, address)
    own = both(address, address6)
    peers = _peers(reader, order.peers, common, listen[1], own)
    taken = dict.fromkeys(own, "the gateway's own")
    taken |= {one: f"{peer.name}'s own" for peer in peers for one in peer.addresses}
    services = reader.placed(reader.services(order.services), taken, address)
    try:
        split_endpoint(order.endpoint)
    except PolicyError as error:
        reader.fail("endpoint", error.message)
    # The tunnel's own addresses lie on this side of its end, too: no name may lead there.
    inside = [*own, *(s.address for s in services)]
    inside += [one for peer in peers for one in peer.addresses]
    protected = (*protected, *map(addresses.only, dict.fromkeys(inside)))
    return GatewayConfig(
        engine=order.engine,
        listen=listen,
        endpoint=order.endpoint,
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
            reader.place(f"resolver[{number}]", text, 53)
            for number, text in enumerate(order.resolver)
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
        raise PolicyError(f"found {short(text)}; allowed: HOST or HOST:PORT")
    if port and not 1 <= int(port) <= 65535:
        raise PolicyError(f"found {short(text)}; allowed: a port of 1-65535")
    return host, int(port) if port else None


def _peers(
    reader: _Reader,
    given: Mapping[str, words.Peer],
    common: Policy,
    port: int,
    own: tuple[Address, ...],
) -> tuple[Peer, ...]:
    if len(given) > words.MOST_PEERS:
        reader.fail("peers", f"{len(given)} of them; allowed: at most {words.MOST_PEERS}")
    found: list[Peer] = []
    for name, one in given.items():
        key = f"peers.{name}"
        if not is_peer_name(name):
            reader.fail(key, "is no peer's name; allowed: 1-32 of a-z, 0-9 and -, not - first")
        address = reader.address(f"{key}.address", one.address)
        address6 = reader.address6(f"{key}.address6", one.address6, address)
        if address6 is not None and len(own) == 1:
            reader.fail(f"{key}.address6", "the gateway itself has none")
        preshared = one.preshared_key
        peer = Peer(
            name=name,
            public_key=reader.key(f"{key}.public_key", one.public_key),
            preshared_key=(
                "" if preshared is None else reader.key(f"{key}.preshared_key", preshared)
            ),
            address=address,
            address6=address6,
            port=port and port + len(found) if one.port is None else one.port,
            published=reader.published(f"{key}.publish", one.publish),
            policy=replace(
                common,
                rules=reader.rules(f"{key}.rules", one.rules) + common.rules,
                limits=reader.limits(f"{key}.limits", one.limits, common.limits),
            ),
        )
        if not 0 <= peer.port <= 65535:
            reader.fail(f"{key}.port", f"found {peer.port}; allowed: 0-65535")
        for what in ("address", "address6"):
            if getattr(peer, what) in own:
                reader.fail(f"{key}.{what}", "is the gateway's own", at=getattr(one, what))
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
