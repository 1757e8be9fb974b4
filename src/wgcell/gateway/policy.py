"""What a cell may reach beyond its tunnel: a pure decision, default deny.

A rule is ``HOST:PORT``, ``CIDR:PORT`` or ``[V6]:PORT``. PORT is a number, a range ``8000-8010`` or
``*``; ``/tcp`` or ``/udp`` at the end narrows a rule to one protocol. Host names are resolved by
whoever owns a resolver (the engine, at its start) and given to `Policy` as a map, so evaluation
never waits and never leaves the process.

The requester's own machine and LAN lie on this side of the tunnel's end, so a rule meant for the
Internet must not open them by accident: private, loopback, link-local (cloud metadata), multicast
and reserved addresses, and the networks given as ``protected``, are refused unless a rule lists
them by address. ``0.0.0.0/0:*`` does not list 192.168.1.1; ``192.168.1.0/24:80`` does. Loopback and
link-local addresses must be listed one by one. A name never lists: what it resolves to is not in
the hand of who wrote the rule.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from wgcell.errors import PolicyError

__all__ = ["Decision", "Policy", "Rule", "Service", "Verdict", "parse_rule", "parse_service"]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", re.ASCII)
_SHAPE = "HOST:PORT, CIDR:PORT or [V6]:PORT, with PORT a number, a range like 8000-8010 or *"

# Ranges on this side of the tunnel's end. The flag says whether a rule may list a whole network
# of the range, or only single addresses.
_PROTECTED: tuple[tuple[Network, str, bool], ...] = tuple(
    (ipaddress.ip_network(text), what, by_network)
    for text, what, by_network in (
        ("127.0.0.0/8", "loopback", False),
        ("169.254.0.0/16", "link-local", False),
        ("0.0.0.0/8", "unspecified", False),
        ("10.0.0.0/8", "private", True),
        ("172.16.0.0/12", "private", True),
        ("192.168.0.0/16", "private", True),
        ("100.64.0.0/10", "shared (CGNAT)", True),
        ("192.0.0.0/24", "reserved", True),
        ("198.18.0.0/15", "reserved", True),
        ("224.0.0.0/4", "multicast", False),
        ("240.0.0.0/4", "reserved", False),
        ("::/128", "unspecified", False),
        ("::1/128", "loopback", False),
        ("fe80::/10", "link-local", False),
        ("fc00::/7", "private", True),
        ("fec0::/10", "site-local", True),
        ("ff00::/8", "multicast", False),
    )
)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class Verdict(Enum):
    """What becomes of a flow."""

    ALLOW = "allow"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing a cell may reach. Exactly one of ``network`` and ``name`` is set."""

    text: str
    network: Network | None
    name: str
    first_port: int
    last_port: int
    protocol: str
    """``tcp``, ``udp``, or empty for both."""

    def covers(self, port: int, protocol: str) -> bool:
        """Whether this rule speaks of that port and protocol."""
        return self.first_port <= port <= self.last_port and self.protocol in ("", protocol)


@dataclass(frozen=True, slots=True)
class Service:
    """An address inside the tunnel, answered by a TCP service of the gateway's side."""

    address: Address
    port: int
    target_host: str
    target_port: int


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict, always with its reason. ``target`` is set where a flow goes elsewhere."""

    verdict: Verdict
    rule: str
    reason: str
    target: tuple[str, int] | None = None


def _ports(text: str, rule: str) -> tuple[int, int]:
    if text == "*":
        return 1, 65535
    match = _PORTS.fullmatch(text)
    if match is None:
        raise PolicyError(f"rule {rule!r}: {text!r} is not a port; allowed: {_SHAPE}")
    first = int(match[1])
    last = int(match[2]) if match[2] else first
    if not 1 <= first <= last <= 65535:
        raise PolicyError(f"rule {rule!r}: port {text!r} is outside 1-65535 or runs backwards")
    return first, last


def _is_name(text: str) -> bool:
    if not 0 < len(text) <= 253:
        return False
    labels = text.split(".")
    # A last label of digits only would be read as an address by resolvers ("10.1" is 10.0.0.1).
    return all(_LABEL.fullmatch(label) for label in labels) and not labels[-1].isdigit()


def parse_rule(text: str) -> Rule:
    """One allow rule; see the module's head for its shape. Raises `PolicyError`."""
    body, protocol = text.strip(), ""
    for candidate in ("tcp", "udp"):
        if body.endswith("/" + candidate):
            body, protocol = body[:-4], candidate
    host, colon, port_text = body.rpartition(":")
    if not colon or not host:
        raise PolicyError(f"rule {text!r} has no port; allowed: {_SHAPE}")
    first, last = _ports(port_text, text)
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    elif ":" in host:
        raise PolicyError(f"rule {text!r}: write an IPv6 address in brackets, as [2001:db8::1]:443")
    network: Network | None = None
    try:
        network = ipaddress.ip_network(host)
    except ValueError as error:
        if "/" in host or bracketed or not _is_name(host.lower().rstrip(".")):
            raise PolicyError(f"rule {text!r}: {error}; allowed: {_SHAPE}") from None
    name = "" if network is not None else host.lower().rstrip(".")
    return Rule(text.strip(), network, name, first, last, protocol)


def _endpoint(text: str, whole: str) -> tuple[str, int]:
    host, colon, port_text = text.strip().rpartition(":")
    if not colon or not host:
        raise PolicyError(f"service {whole}: {text!r} is not ADDRESS:PORT")
    first, last = _ports(port_text, whole)
    if first != last:
        raise PolicyError(f"service {whole}: {text!r} names more than one port")
    return host.removeprefix("[").removesuffix("]"), first


def parse_service(inside: str, outside: str) -> Service:
    """``inside`` (ADDRESS:PORT in the tunnel) answered by ``outside``. Raises `PolicyError`."""
    whole = f"{inside!r} = {outside!r}"
    address_text, port = _endpoint(inside, whole)
    target_host, target_port = _endpoint(outside, whole)
    try:
        address = ipaddress.ip_address(address_text)
    except ValueError:
        raise PolicyError(f"service {whole}: {address_text!r} is not an IP address") from None
    try:
        ipaddress.ip_address(target_host)
    except ValueError:
        if not _is_name(target_host.lower()):
            raise PolicyError(f"service {whole}: {target_host!r} is not a host") from None
    return Service(address, port, target_host, target_port)


def _plain(address: Address) -> Address:
    """The IPv4 address that an IPv6 form carries (mapped, 6to4, NAT64), or the address itself."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is not None:
            return inner
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


@dataclass(frozen=True, slots=True)
class Policy:
    """Rules, services and resolved names. Whatever none of them covers is refused."""

    rules: tuple[Rule, ...] = ()
    services: tuple[Service, ...] = ()
    names: Mapping[str, tuple[Address, ...]] = field(default_factory=dict)
    protected: tuple[Network, ...] = ()

    @staticmethod
    def parse(
        allow: Iterable[str],
        services: Mapping[str, str],
        *,
        names: Mapping[str, tuple[Address, ...]] | None = None,
        protected: Iterable[str] = (),
    ) -> Policy:
        """A policy from its text. Raises `PolicyError` naming the rule or service."""
        try:
            networks = tuple(ipaddress.ip_network(text, strict=False) for text in protected)
        except ValueError as error:
            raise PolicyError(f"protected: {error}") from None
        return Policy(
            rules=tuple(parse_rule(text) for text in allow),
            services=tuple(parse_service(*pair) for pair in services.items()),
            names=dict(names or {}),
            protected=networks,
        )

    def allowed_names(self) -> frozenset[str]:
        """Every host name that a rule gives."""
        return frozenset(rule.name for rule in self.rules if rule.name)

    def name_of(self, address: Address) -> str:
        """The allowed name that resolved to ``address``, or empty."""
        return next((name for name, found in self.names.items() if address in found), "")

    def evaluate(self, address: Address, port: int, protocol: str) -> Decision:
        """Whether a flow of ``protocol`` (``tcp`` or ``udp``) to ``address:port`` may go out."""
        for service in self.services:
            if (service.address, service.port, "tcp") == (address, port, protocol):
                target = (service.target_host, service.target_port)
                where = f"{service.target_host}:{service.target_port}"
                return Decision(Verdict.ALLOW, f"service {where}", "a service", target)
        plain = _plain(address)
        refusal = "no rule allows it"
        for rule in self.rules:
            if not rule.covers(port, protocol):
                continue
            if rule.network is None:
                matches = address in self.names.get(rule.name, ())
            else:
                matches = plain in rule.network or address in rule.network
            if not matches:
                continue
            what = self._kept_from(plain, rule.network)
            if not what:
                return Decision(Verdict.ALLOW, rule.text, "a rule allows it")
            refusal = f"{_article(what)} address, and no rule lists it"
        return Decision(Verdict.REFUSE, "", refusal)

    def _kept_from(self, address: Address, network: Network | None) -> str:
        """What kind of protected address this is and ``network`` does not list, or empty."""
        single = network is not None and network.num_addresses == 1 and address in network
        if single:
            return ""
        for protected, what, by_network in _PROTECTED:
            if address in protected and not (by_network and _inside(network, protected)):
                return what
        own = any(address in near and not _inside(network, near) for near in self.protected)
        return "protected" if own else ""


def _article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def _inside(network: Network | None, outer: Network) -> bool:
    if isinstance(network, ipaddress.IPv4Network) and isinstance(outer, ipaddress.IPv4Network):
        return network.subnet_of(outer)
    if isinstance(network, ipaddress.IPv6Network) and isinstance(outer, ipaddress.IPv6Network):
        return network.subnet_of(outer)
    return False
