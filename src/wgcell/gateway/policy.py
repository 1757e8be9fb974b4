"""What a peer may reach beyond its tunnel: a pure decision, default deny.

A rule is ``allow`` or ``deny`` and HOST:PORT. HOST is an address, a CIDR, ``[V6]``, a name or
``*.suffix`` (every name below it, not itself); PORT is a number, a range ``8000-8010`` or ``*``;
``/tcp`` or ``/udp`` at the end narrows a rule to one protocol. The host ``*`` alone is any public
address, and any name may be asked then; nothing is compared with the host that a flow asks for.
Rules are read in their order, the
first that matches decides, and whatever none matches is refused.

A rule with a name matches an address because the name led to it, never by itself: whoever owns
the resolver passes the names that lead to an address at this moment. An address that nobody asked
for by name needs a rule of its own. An ``allow`` with a name means TCP unless it says ``/udp``:
over UDP nothing shows, without decryption, whether the name is the one asked (QUIC hides it).
TCP must ask for that name, by TLS or HTTP, where it asks for one (see `wgcell.gateway.hello`).
``/unchecked`` behind a name's ``allow`` says that it need not: for SSH or MQTT on port 443, or a
proxy. Then whatever shares the name's address is open, too.

The gateway's own machine and LAN lie on this side of the tunnel's end, so a rule meant for the
Internet must not open them by accident: private, loopback, link-local (cloud metadata), multicast
and reserved addresses, IPv6 forms that carry an IPv4 address, and the networks given as
``protected`` are refused unless a rule is that very address. ``192.168.1.0/24:80`` does not open
192.168.1.1; ``192.168.1.1:80`` does. A name never does: what it leads to is not in the hand of
who wrote the rule.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from wgcell.errors import PolicyError
from wgcell.net import addresses
from wgcell.net.addresses import Address, Network
from wgcell.net.special import TARGETS, special

__all__ = [
    "LEARNED",
    "PROTECTED",
    "Address",
    "Decision",
    "Limits",
    "Network",
    "Policy",
    "Rule",
    "Service",
    "Verdict",
    "is_name",
    "may_be_advised",
    "parse_line",
    "parse_rule",
    "parse_service",
]

_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)", re.ASCII)
_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", re.ASCII)
_SHAPE = (
    "HOST:PORT, *.NAME:PORT, CIDR:PORT or [V6]:PORT, with PORT a number, a range like 8000-8010 "
    "or *, and /tcp or /udp behind it to narrow it; *:PORT is any public host"
)
_SERVICE = (
    "first an address in the tunnel that nobody has, then where one of yours is reached from here, "
    "as 10.99.0.5:80 = 127.0.0.1:8000"
)
_ANY = "*"
_SHOWN = 80
"""Characters of a stranger's text in a message."""
_UNCHECKED = "/unchecked"
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)")
_URL_PORTS = {"http": 80, "ws": 80, "ssh": 22, "ftp": 21, "git": 9418, "mqtt": 1883}
_DEVIATING = "\u00df\u03c2\u200c\u200d"
"""Characters that the two versions of IDNA spell differently (RFC 5895; UTS 46, section 7)."""

PROTECTED: tuple[tuple[Network, str], ...] = tuple((row.network, row.kind) for row in TARGETS)
"""Ranges on this side of the tunnel's end, the narrow ones first, and what each is."""


LEARNED = "learn"
"""In a rule's place: none refuses it, and the policy is still being learned."""


class Verdict(Enum):
    """What becomes of a flow."""

    ALLOW = "allow"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of a policy. Exactly one of ``network`` and ``name`` is set."""

    text: str
    """As written, with ``allow`` or ``deny`` before it."""
    verdict: Verdict
    network: Network | None
    name: str
    """Lower case, or ``*.`` and a suffix, or ``*``."""
    first_port: int
    last_port: int
    protocol: str
    """``tcp``, ``udp``, or empty for both."""
    checked: bool = True
    """Whether a flow that is allowed by the name must ask for it."""
    written: str = ""
    """The host as it was written, if ``name`` is its ASCII form."""

    @property
    def any(self) -> bool:
        """Whether this rule is any host."""
        return self.name == _ANY

    def covers(self, port: int, protocol: str) -> bool:
        """Whether this rule speaks of that port and protocol."""
        return self.first_port <= port <= self.last_port and self.protocol in ("", protocol)

    def names(self, name: str) -> bool:
        """Whether this rule speaks of ``name``, which is in lower case without a final dot."""
        if self.any:
            return True
        if self.name.startswith("*."):
            return name.endswith(self.name[1:]) and len(name) >= len(self.name)
        return bool(self.name) and name == self.name

    @property
    def single(self) -> bool:
        """Whether this rule is one address."""
        return self.network is not None and self.network.num_addresses == 1


@dataclass(frozen=True, slots=True)
class Service:
    """An address inside the tunnel, answered by a TCP service of the gateway's side."""

    address: Address
    port: int
    target_host: str
    target_port: int


@dataclass(frozen=True, slots=True)
class Limits:
    """The most one peer may do. Whole numbers above zero, but ``bytes_per_second``: 0 is none."""

    flows: int = 512
    """Open at a time; also the burst of new ones."""
    flows_per_second: int = 64
    """New ones, in the long run."""
    queries_per_second: int = 64
    """Of the resolver, in the long run; four seconds' worth as a burst."""
    bytes_per_second: int = 0
    """Both ways together, of all flows."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict, always with its reason."""

    verdict: Verdict
    rule: str
    reason: str
    target: tuple[str, int] | None = None
    """Set where a flow goes elsewhere: a service."""
    names: tuple[str, ...] = ()
    """The names it is allowed by; empty if a rule is about the address, or it is a service."""
    checked: bool = True
    """Whether it must ask for one of those names."""


def _ports(text: str, rule: str) -> tuple[int, int]:
    if text == "*":
        return 1, 65535
    match = _PORTS.fullmatch(text)
    if match is None:
        number = 443 if text.lower() == "https" else _URL_PORTS.get(text.lower())
        mend = f"{text} is port {number}" if number else ""
        raise PolicyError(f"rule {rule!r}: {text!r} is not a port; allowed: {_SHAPE}", mend=mend)
    first = int(match[1])
    last = int(match[2]) if match[2] else first
    if not 1 <= first <= last <= 65535:
        raise PolicyError(f"rule {rule!r}: port {text!r} is outside 1-65535 or runs backwards")
    return first, last


def is_name(text: str) -> bool:
    """Whether a rule can have this name, which is in lower case without a final dot."""
    if not 0 < len(text) <= 253:
        return False
    labels = text.split(".")
    # A last label of digits only would be read as an address by resolvers ("10.1" is 10.0.0.1).
    return all(_LABEL.fullmatch(label) for label in labels) and not labels[-1].isdigit()


def may_be_advised(name: str) -> bool:
    """Whether a rule with this name would open something: no service's name (RFC 6763) does, and
    no address's (RFC 1035, 3.5)."""
    labels = name.split(".")
    return is_name(name) and labels[-1] != "arpa" and not any(part[0] == "_" for part in labels)


def _ascii(host: str, rule: str) -> str:
    """A name's ASCII form (RFC 3490); as it is if it is ASCII. Raises `PolicyError`."""
    if host.isascii():
        return host
    try:
        if not set(host) & set(_DEVIATING):
            return host.encode("idna").decode("ascii")
    except UnicodeError:
        pass
    raise PolicyError(f"rule {rule!r}: write {host!r} in its ASCII form, which begins with xn--")


def _no_url(text: str) -> None:
    """Raises `PolicyError` for a URL, naming the rule that is meant."""
    found = _URL.match(text.strip())
    if found is None:
        return
    scheme, place = found[1].lower(), found[2].rpartition("@")[2]
    if not re.search(r":[0-9]+\Z", place):
        place = f"{place}:{_URL_PORTS.get(scheme, 443)}"
    raise PolicyError(f"rule {text!r} is a URL", mend=f"a rule is HOST:PORT: {place}")


def parse_rule(text: str, verdict: Verdict = Verdict.ALLOW) -> Rule:
    """One rule without its verb; see the module's head for its shape. Raises `PolicyError`."""
    _no_url(text)
    body, protocol = text.strip(), ""
    checked = not body.endswith(_UNCHECKED)
    body = body.removesuffix(_UNCHECKED)
    for candidate in ("tcp", "udp"):
        if body.endswith("/" + candidate):
            body, protocol = body[:-4], candidate
    host, colon, port_text = body.rpartition(":")
    if not colon or not host:
        named = is_name(body.lower()) or addresses.is_address(body)
        mend = f"for HTTPS write {body}:443" if named else ""
        raise PolicyError(f"rule {text!r} has no port; allowed: {_SHAPE}", mend=mend)
    first, last = _ports(port_text, text)
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    elif ":" in host:
        raise PolicyError(f"rule {text!r}: write IPv6 in brackets, as [2001:db8::1]:443")
    name, network, written = "", None, ""
    try:
        network = addresses.network(host)
    except ValueError as error:
        name = _ascii(host, text).lower().rstrip(".")
        shaped = name == _ANY or is_name(name.removeprefix("*."))
        if "/" in host or bracketed or not shaped:
            raise PolicyError(f"rule {text!r}: {error}; allowed: {_SHAPE}") from None
        written = "" if host.isascii() else host
        if verdict is Verdict.ALLOW:
            protocol = protocol or "tcp"
    of_a_name = bool(name) and name != _ANY and verdict is Verdict.ALLOW and protocol == "tcp"
    if not checked and not of_a_name:
        raise PolicyError(f"rule {text!r}: {_UNCHECKED} is for a name that is allowed, over TCP")
    verb = "allow" if verdict is Verdict.ALLOW else "deny"
    whole = f"{verb} {text.strip().replace(host, name) if written else text.strip()}"
    ports = first, last
    return Rule(whole, verdict, network, name, *ports, protocol, checked, written)


def parse_line(text: str) -> Rule:
    """One line of a policy: ``allow`` or ``deny``, and a rule. Raises `PolicyError`."""
    verb, _, rest = text.strip().partition(" ")
    verdicts = {"allow": Verdict.ALLOW, "deny": Verdict.REFUSE}
    if verb not in verdicts:
        raise PolicyError(f"rule {text!r} does not begin with allow or deny")
    return parse_rule(rest, verdicts[verb])


def _endpoint(text: str, whole: str) -> tuple[str, int]:
    try:
        host, port = addresses.host_and_port(text)
    except ValueError as error:
        raise PolicyError(f"service {whole}: {error}, with one port", mend=_SERVICE) from None
    if not port:
        raise PolicyError(f"service {whole}: port 0 is nobody's")
    return host, port


def parse_service(inside: str, outside: str) -> Service:
    """``inside`` (ADDRESS:PORT in the tunnel) answered by ``outside``. Raises `PolicyError`."""
    whole = f"{inside[:_SHOWN]!r} = {outside[:_SHOWN]!r}"
    address_text, port = _endpoint(inside, whole)
    target_host, target_port = _endpoint(outside, whole)
    try:
        address = addresses.address(address_text)
    except ValueError as error:
        raise PolicyError(f"service {whole}: {error}", mend=_SERVICE) from None
    if not addresses.is_address(target_host) and not is_name(target_host.lower()):
        raise PolicyError(f"service {whole}: {target_host!r} is not a host", mend=_SERVICE)
    if addresses.is_address(target_host) and addresses.address(target_host).is_unspecified:
        loopback = "[::1]" if ":" in target_host else "127.0.0.1"
        raise PolicyError(
            f"service {whole}: at {target_host} servers listen, but none can be reached there",
            mend=f"for one on this machine write {loopback}:{target_port}",
        )
    return Service(address, port, target_host, target_port)


@dataclass(frozen=True, slots=True)
class Policy:
    """Rules in their order, and services. Whatever none of them covers is refused."""

    rules: tuple[Rule, ...] = ()
    services: tuple[Service, ...] = ()
    protected: tuple[Network, ...] = ()
    limits: Limits = Limits()
    learn: bool = False
    """Allow what no rule refuses, to find out what a workload needs. Protected stays refused."""

    @staticmethod
    def parse(
        allow: Iterable[str], services: Mapping[str, str], *, protected: Iterable[str] = ()
    ) -> Policy:
        """A policy that only allows, from its text. Raises `PolicyError` naming what is wrong."""
        try:
            networks = tuple(addresses.network(text, strict=False) for text in protected)
        except ValueError as error:
            raise PolicyError(f"protected: {error}") from None
        return Policy(
            rules=tuple(parse_rule(text) for text in allow),
            services=tuple(parse_service(*pair) for pair in services.items()),
            protected=networks,
        )

    def evaluate(
        self, address: Address, port: int, protocol: str, names: Iterable[str] = ()
    ) -> Decision:
        """Whether a flow of ``protocol`` (``tcp`` or ``udp``) to ``address:port`` may go out.

        ``names`` are those that lead to ``address`` now; a rule with a name matches if one of them
        does. So an address that a name denied on this port shares with another is closed to both
        once both have been asked: an address is all that a packet shows.
        """
        for service in self.services:
            if (service.address, service.port, "tcp") == (address, port, protocol):
                target = (service.target_host, service.target_port)
                where = f"{service.target_host}:{service.target_port}"
                return Decision(Verdict.ALLOW, f"service {where}", "a service", target)
        every = tuple(names)
        decision, by_name = self._first(address, port, protocol, every)
        if decision.verdict is Verdict.REFUSE or not by_name:
            return decision
        granted = tuple(
            name
            for name in every
            if self._first(address, port, protocol, (name,))[0].verdict is Verdict.ALLOW
        )
        return replace(decision, names=granted)

    def _allowing(self, rule: Rule) -> Decision:
        return Decision(Verdict.ALLOW, rule.text, "a rule allows it", checked=rule.checked)

    def rule_for_name(self, name: str) -> str:
        """The rule by which ``name`` may be asked of the resolver; empty if it may not."""
        for rule in self.rules:
            if rule.names(name):
                if rule.verdict is Verdict.ALLOW:
                    return rule.text
                if (rule.first_port, rule.last_port, rule.protocol) == (1, 65535, ""):
                    return ""
        return LEARNED if self.learn else ""

    def is_above(self, name: str) -> bool:
        """Whether a rule allows names below ``name``: in the DNS it then exists (RFC 8020)."""
        return any(
            rule.verdict is Verdict.ALLOW and rule.name.endswith(f".{name}") for rule in self.rules
        )

    def listed(self, address: Address) -> bool:
        """Whether a rule allows that very address, on whatever port."""
        single = (r.network for r in self.rules if r.single and r.verdict is Verdict.ALLOW)
        return any(network is not None and address in network for network in single)

    def kept(self, address: Address) -> str:
        """What kind of protected address this is; empty if it is none, or a rule is about it."""
        return "" if self.listed(address) else self._protected(address)

    def _protected(self, address: Address) -> str:
        row = special(address)
        if row is not None and not row.nobodys:
            return row.kind
        return "protected" if any(address in network for network in self.protected) else ""

    def _first(
        self, address: Address, port: int, protocol: str, names: tuple[str, ...]
    ) -> tuple[Decision, bool]:
        """The first rule's word, and whether it was about a name."""
        kept = self._protected(address)
        refusal = "no rule allows it"
        if kept:
            refusal = f"{_article(kept)} address, and no rule is that address"
        for rule in self.rules:
            by_address = rule.any or (rule.network is not None and address in rule.network)
            by_name = not rule.any and any(map(rule.names, names))
            if not (rule.covers(port, protocol) and (by_address or by_name)):
                continue
            if rule.verdict is Verdict.REFUSE:
                return Decision(Verdict.REFUSE, rule.text, "a rule denies it"), by_name
            if not kept or rule.single:
                return self._allowing(rule), by_name
        if self.learn and not kept:
            learned = Decision(Verdict.ALLOW, LEARNED, "learning: no rule refuses it")
            return learned, bool(names)
        return Decision(Verdict.REFUSE, "", refusal), False


def _article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiouI' else 'a'} {word}"
