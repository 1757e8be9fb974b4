"""The host check: the SNI of TLS or the Host of HTTP in a client's first bytes. Pure.

An address does not say which of its many hosts a client means; these bytes do. A flow that is
allowed because of a name must ask for that name. `check` looks at the bytes that a client has sent
so far. It returns None if it needs more; then nothing may be forwarded yet.

The first bytes decide whether a flow is TLS or HTTP, on any port. On ports 443 and 80, where only a
name distinguishes hosts, anything else is refused. Where the host can't be compared, the refusal
says so: a rule may have ``/unchecked`` (see `model.rules`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["LONGEST_HEAD", "HostCheck", "check"]

LONGEST_HEAD = 64 * 1024
"""Bytes of a ClientHello or of an HTTP head before it is refused."""

_MOST_RECORDS = 128
"""Records of one ClientHello: each check parses all of them again."""
_HANDSHAKE = 22
_CLIENT_HELLO = 1
_SERVER_NAME = 0
_HOST_NAME = 0
_ENCRYPTED_HELLO = 0xFE0D
_INNER = 1
"""Encrypted Client Hello, section 5: the type of an inner ClientHello, which hides its SNI."""
_BEGINS_SSL2 = re.compile(rb"[\x80-\xff]([\s\S](\x01(\x03[\s\S]?|\x00\x02?)?)?)?\Z")
"""The beginning of SSL 2's ClientHello, which TLS servers took (RFC 5246, appendix E.2)."""
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}"
_SPACE = rb"[ \t\x0b\x0c\r]"
"""The bytes that a server may take for a space in a request line (RFC 9112, section 3)."""
_TARGET = rb"[!-~\x80-\xff]"
_TEXT = rb"[\t\x0b-\r -~\x80-\xff]*"
_METHOD = re.compile(rb"[A-Z0-9_-]{1,32}\Z")
"""Bytes that may become a method: all registered methods are in capitals (RFC 9110, 16.1.3)."""
_BEGINS_REQUEST = re.compile(_TOKEN + _SPACE + rb"+(" + _TARGET + _TEXT + rb")?\Z")
"""How a `_REQUEST_LINE` and an `_OLD_REQUEST` begin, behind the method. Forwarded bytes are never
checked again, so no bytes may be forwarded that more bytes could turn into one of these."""
_REQUEST_LINE = re.compile(_TOKEN + _SPACE + rb"+" + _TARGET + _TEXT + _SPACE + rb"HTTP/")
_OLD_REQUEST = re.compile(
    rb"GET" + _SPACE + rb"+(/|[A-Za-z][A-Za-z0-9+.-]*://)" + _TARGET + rb"*" + _SPACE + rb"*\Z"
)
"""A request of HTTP/0.9, which has no Host; its target may name a host all the same."""
_PROXIED = re.compile(rb"[\r\n]*\S+ (?![/*])")
"""A request whose target is more than a path: it asks a proxy for another host."""
_HTTP2_PREFACE = b"PRI * HTTP/2.0"
_REQUEST = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32} (\S{1,8192}) HTTP/1\.[01]")
_AUTHORITY = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://([^/?#]*)")
_PLAIN_HOST = re.compile(rb"[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]")


@dataclass(frozen=True, slots=True)
class HostCheck:
    """The result for a client's first bytes. ``refusal`` is empty if they may be forwarded."""

    kind: str
    """``tls``, ``http`` or ``other``."""
    host: str
    """The host that they ask for, in lower case; empty if they name none."""
    refusal: str
    unchecked: bool = False
    """Whether only a rule with ``/unchecked`` would let the flow pass."""


class _Incomplete(Exception):
    """More bytes are needed."""


class _Malformed(Exception):
    """The bytes begin as TLS or HTTP and are not."""


class _Cursor:
    """Reads big-endian fields. Raises `_Malformed` if a field reaches beyond the data."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        part = self._data[self._at : self._at + count]
        if len(part) < count:
            raise _Malformed("a field ends early")
        self._at += count
        return part

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "big")

    def vector(self, width: int) -> _Cursor:
        return _Cursor(self.take(self.number(width)))

    def rest(self) -> bytes:
        return self._data[self._at :]

    def __bool__(self) -> bool:
        return self._at < len(self._data)


def check(data: bytes, names: tuple[str, ...], port: int) -> HostCheck | None:
    """The host in ``data``, a client's first bytes, compared with ``names``; None: read on.

    ``names`` are in lower case without a final dot. Empty ``data`` gives None as well: in some
    protocols the server speaks first. Raises nothing.
    """
    if not data:
        return None
    kind, read = _kind(data, port)
    try:
        host = read(data) if read else ""
    except _Incomplete:
        if len(data) < LONGEST_HEAD:
            return None
        return HostCheck(
            kind, "", f"more than {LONGEST_HEAD} bytes and no end of the {_WORDS[kind]}"
        )
    except _Malformed as error:
        return HostCheck(kind, "", f"malformed {_WORDS[kind]}: {error}", unchecked=True)
    if kind == "other":
        known = {443: "TLS", 80: "HTTP"}.get(port)
        return HostCheck(kind, "", f"not {known}, on port {port}" if known else "", bool(known))
    if host not in names:
        asked = f"asks for {host}" if host else "asks for no host"
        refusal = f"{_WORDS[kind]} {asked}, and the name it looked up is {names[-1]}"
        proxied = kind == "http" and _PROXIED.match(data) is not None
        return HostCheck(kind, host, refusal, unchecked=proxied or not host)
    return HostCheck(kind, host, "")


_WORDS = {"tls": "TLS hello", "http": "HTTP request", "other": "first bytes"}


def _kind(data: bytes, port: int) -> tuple[str, Callable[[bytes], str] | None]:
    if data[0] == _HANDSHAKE and data[1:2] in (b"", b"\x03"):
        return "tls", _server_name
    if _BEGINS_SSL2.match(data[:5]):
        return "tls", _ssl2
    first, end, _ = data.lstrip(b" \t\x0b\x0c\r\n").partition(b"\n")
    if end and _OLD_REQUEST.match(first):
        return "http", _http_old
    whole = end and _REQUEST_LINE.match(first)
    begun = not end and (not first or _METHOD.match(first) or _BEGINS_REQUEST.match(first))
    if whole or begun or port == 80:
        return "http", _http_host
    return "other", None


def _ssl2(data: bytes) -> str:
    if len(data) < 5:
        raise _Incomplete
    raise _Malformed("of SSL 2's form, which names no host")


def _http_old(data: bytes) -> str:
    raise _Malformed("of HTTP/0.9, which names no host")


def _server_name(data: bytes) -> str:
    """RFC 8446, sections 5.1 and 4.1.2; RFC 6066, section 3."""
    hello, at = bytearray(), 0
    for _ in range(_MOST_RECORDS + 1):
        if len(hello) >= 4:
            if hello[0] != _CLIENT_HELLO:
                raise _Malformed("the handshake does not begin with a ClientHello")
            size = int.from_bytes(hello[1:4], "big")
            if size > LONGEST_HEAD:
                raise _Malformed("it is too long")
            if len(hello) >= 4 + size:
                return _extension(_Cursor(bytes(hello[4 : 4 + size])))
        if len(data) < at + 5:
            raise _Incomplete
        if data[at] != _HANDSHAKE or data[at + 1] != 3:
            raise _Malformed("a record that is no handshake")
        size = int.from_bytes(data[at + 3 : at + 5], "big")
        if not 0 < size <= 1 << 14:
            raise _Malformed("a record of an impossible size")
        if len(data) < at + 5 + size:
            raise _Incomplete
        hello += data[at + 5 : at + 5 + size]
        at += 5 + size
    raise _Malformed(f"it is in more than {_MOST_RECORDS} records")


def _extension(hello: _Cursor) -> str:
    hello.take(2 + 32)  # version, random
    hello.vector(1)  # session
    hello.vector(2)  # cipher suites
    hello.vector(1)  # compression
    if not hello:
        return ""
    extensions = hello.vector(2)
    found: list[bytes] = []
    while extensions:
        kind, body = extensions.number(2), extensions.vector(2)
        if kind == _ENCRYPTED_HELLO and body.rest()[:1] == bytes([_INNER]):
            raise _Malformed("an inner hello (ECH) by itself")
        if kind != _SERVER_NAME:
            continue
        entries = body.vector(2)
        while entries:
            kind, name = entries.number(1), entries.vector(2)
            if kind == _HOST_NAME:
                found.append(name.rest())
    if len(found) > 1:
        raise _Malformed("two server names")
    return _plain(found[0]) if found else ""


def _http_host(data: bytes) -> str:
    """RFC 9112, sections 3.2 and 5; the target's authority goes before the Host (3.2.2)."""
    text = data.lstrip(b"\r\n")
    if text.startswith(_HTTP2_PREFACE):
        raise _Malformed("HTTP/2 without TLS, which this gateway does not read")
    head, end, _ = text.partition(b"\r\n\r\n")
    if not end:
        raise _Incomplete
    first, *fields = head.split(b"\r\n")
    request = _REQUEST.fullmatch(first)
    if request is None:
        raise _Malformed("not a request line of HTTP/1")
    hosts = []
    for line in fields:
        name, colon, value = line.partition(b":")
        if not colon or name != name.strip() or b"\n" in line or b"\r" in line:
            raise _Malformed("a header line that is none")
        if name.lower() == b"host":
            hosts.append(_without_port(value.strip(b" \t")))
    if len(hosts) > 1:
        raise _Malformed("two Host headers")
    host = _plain(hosts[0]) if hosts else ""
    target = request[1]
    authority = _AUTHORITY.match(target)
    if target.startswith(b"/") or target == b"*":
        return host
    asked = authority[1] if authority else target
    if _plain(_without_port(asked.rpartition(b"@")[2])) != host:
        raise _Malformed("its target is not its Host")
    return host


def _without_port(host: bytes) -> bytes:
    return re.sub(rb":[0-9]{0,5}\Z", b"", host)


def _plain(host: bytes) -> str:
    if not _PLAIN_HOST.fullmatch(host):
        raise _Malformed("a host that is no name")
    return host.decode("ascii").lower().rstrip(".")
