"""The rules of a policy: their meaning and their syntax. Pure.

A rule is ``allow`` or ``deny`` and HOST:PORT. HOST is an address, a CIDR, ``[V6]``, a name or
``*.suffix`` (every name below it, not itself); PORT is a number, a range ``8000-8010`` or ``*``.
``/tcp`` or ``/udp`` at the end narrows a rule to one protocol. The host ``*`` alone stands for any
public address: the peer may then ask for any name, and the gateway checks no host.

An ``allow`` with a name means TCP unless it says ``/udp``: over UDP only decryption would show
whether a flow asks for that name (QUIC hides it). A TCP flow must ask for that name by TLS or HTTP,
where it asks for one at all (see `proxy.hostcheck`). ``/unchecked`` behind the ``allow`` of a name
lifts this check: for SSH or MQTT on port 443, or for a proxy. Then everything that shares an
address with the name is open, too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from wgcell.errors import PolicyError
from wgcell.net import addresses
from wgcell.net.addresses import Network

__all__ = [
    "Action",
    "Rule",
    "is_name",
    "may_be_advised",
    "parse_line",
    "parse_rule",
]

_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)", re.ASCII)
_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", re.ASCII)
_SHAPE = (
    "HOST:PORT, *.NAME:PORT, CIDR:PORT or [V6]:PORT, with PORT a number, a range like 8000-8010 "
    "or *, and /tcp or /udp behind it to narrow it; *:PORT is any public host"
)
_ANY = "*"
_UNCHECKED = "/unchecked"
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)")
_URL_PORTS = {"http": 80, "ws": 80, "ssh": 22, "ftp": 21, "git": 9418, "mqtt": 1883}
_DEVIATING = "\u00df\u03c2\u200c\u200d"
"""Characters that IDNA 2003 and 2008 encode differently (RFC 5895; UTS 46, section 7)."""


class Action(Enum):
    """What a rule, and a decision, does with a flow."""

    ALLOW = "allow"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of a policy. Exactly one of ``network`` and ``name`` is set."""

    text: str
    """The rule as it was written, with ``allow`` or ``deny`` before it."""
    action: Action
    network: Network | None
    name: str
    """A name in lower case, or ``*.`` and a suffix, or ``*``; empty if there is a ``network``."""
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
        """Whether the rule's host is ``*``."""
        return self.name == _ANY

    def covers(self, port: int, protocol: str) -> bool:
        """Whether this rule is about that port and protocol (``tcp`` or ``udp``)."""
        return self.first_port <= port <= self.last_port and self.protocol in ("", protocol)

    def names(self, name: str) -> bool:
        """Whether this rule is about ``name``, which is in lower case without a final dot."""
        if self.any:
            return True
        if self.name.startswith("*."):
            return name.endswith(self.name[1:]) and len(name) >= len(self.name)
        return bool(self.name) and name == self.name

    @property
    def single(self) -> bool:
        """Whether the rule's host is one address."""
        return self.network is not None and self.network.num_addresses == 1


def _ports(text: str, rule: str) -> tuple[int, int]:
    if text == "*":
        return 1, 65535
    match = _PORTS.fullmatch(text)
    if match is None:
        number = 443 if text.lower() == "https" else _URL_PORTS.get(text.lower())
        hint = f"{text} is port {number}" if number else ""
        raise PolicyError(f"rule {rule!r}: {text!r} is not a port; allowed: {_SHAPE}", hint=hint)
    first = int(match[1])
    last = int(match[2]) if match[2] else first
    if not 1 <= first <= last <= 65535:
        raise PolicyError(f"rule {rule!r}: port {text!r} is outside 1-65535 or runs backwards")
    return first, last


def is_name(text: str) -> bool:
    """Whether a rule can have this name, which is in lower case without a final dot (RFC 1035)."""
    if not 0 < len(text) <= 253:
        return False
    labels = text.split(".")
    # A last label of digits only would be read as an address by resolvers ("10.1" is 10.0.0.1).
    return all(_LABEL.fullmatch(label) for label in labels) and not labels[-1].isdigit()


def may_be_advised(name: str) -> bool:
    """Whether a hint may advise a rule with this name.

    The name of a service (RFC 6763) has no address, nor has the reverse name of an address (RFC
    1035, 3.5): such a rule would allow nothing.
    """
    labels = name.split(".")
    return is_name(name) and labels[-1] != "arpa" and not any(part[0] == "_" for part in labels)


def _ascii(host: str, rule: str) -> str:
    """The ASCII form of a name (RFC 3490). Raises `PolicyError` if it is ambiguous."""
    if host.isascii():
        return host
    try:
        if not set(host) & set(_DEVIATING):
            return host.encode("idna").decode("ascii")
    except UnicodeError:
        pass
    raise PolicyError(f"rule {rule!r}: write {host!r} in its ASCII form, which begins with xn--")


def _no_url(text: str) -> None:
    """Raises `PolicyError` if ``text`` is a URL, with the rule that was probably meant."""
    found = _URL.match(text.strip())
    if found is None:
        return
    scheme, place = found[1].lower(), found[2].rpartition("@")[2]
    if not re.search(r":[0-9]+\Z", place):
        place = f"{place}:{_URL_PORTS.get(scheme, 443)}"
    raise PolicyError(f"rule {text!r} is a URL", hint=f"a rule is HOST:PORT: {place}")


def parse_rule(text: str, action: Action = Action.ALLOW) -> Rule:
    """Parse a rule without its verb, as ``example.com:443``. Raises `PolicyError`."""
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
        hint = f"for HTTPS write {body}:443" if named else ""
        raise PolicyError(f"rule {text!r} has no port; allowed: {_SHAPE}", hint=hint)
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
        if action is Action.ALLOW:
            protocol = protocol or "tcp"
    of_a_name = bool(name) and name != _ANY and action is Action.ALLOW and protocol == "tcp"
    if not checked and not of_a_name:
        raise PolicyError(f"rule {text!r}: {_UNCHECKED} is for a name that is allowed, over TCP")
    verb = "allow" if action is Action.ALLOW else "deny"
    whole = f"{verb} {text.strip().replace(host, name) if written else text.strip()}"
    ports = first, last
    return Rule(whole, action, network, name, *ports, protocol, checked, written)


def parse_line(text: str) -> Rule:
    """Parse a line of a policy: ``allow`` or ``deny``, and a rule. Raises `PolicyError`."""
    verb, _, rest = text.strip().partition(" ")
    actions = {"allow": Action.ALLOW, "deny": Action.REFUSE}
    if verb not in actions:
        raise PolicyError(f"rule {text!r} does not begin with allow or deny")
    return parse_rule(rest, actions[verb])
