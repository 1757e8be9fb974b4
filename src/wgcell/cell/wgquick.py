"""wg-quick files, read as wg-quick and wg read them.

A file may come from a stranger, so whatever wg-quick would *run* or would change on this machine (a
hook with a command, ``Table`` with a number, ``SaveConfig = true``) is refused by name. What can't
act here is read and passed over: ``FwMark``, ``Table = off``, an empty hook. What the real tools
refuse is refused.

There are two steps, as there are two programs. `_strip` is wg-quick: it takes its own keys out of
[Interface]. `_setconf` is wg: it removes every space of what is left, and knows its own keys. Of a
key that comes again the last one counts; Address, DNS and AllowedIPs are added up.

Beyond that a cell needs a key, an address, and one peer with an endpoint and AllowedIPs. Refused,
though the tools take them: IPv4 addresses in octal, hexadecimal or with parts left out, a prefix
length with a leading zero in Address, ports above 65535 or by a service's name, and scope ids
(``fe80::1%eth0``). Taken, though they don't: a byte order mark.

No text of the file is shown in an error but numbers: any line may be a piece of a wrapped key.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, NoReturn

from wgcell.cell import probe
from wgcell.cell.inputs import Input, opened
from wgcell.errors import VpnConfigError
from wgcell.net.addresses import Address, Interface, Network, address, interface, network

__all__ = ["DEFAULT_KEEPALIVE", "DEFAULT_MTU", "VpnConfig", "load_vpn_config", "parse_vpn_config"]


DEFAULT_MTU = 1420
MINIMUM_MTU = {4: 576, 6: 1280}
"""Bytes that each link must carry (RFC 791, RFC 8200 section 5)."""
DEFAULT_KEEPALIVE = 25
MOST_NETWORKS = 1024
"""Of AllowedIPs, joined: the guest's agent reads its routes every 5 s, and reports each."""
_MAXIMUM_FILE = 256 * 1024

# isspace(3) in the C locale; str.strip() takes more, some of it letters in other encodings.
_SPACE = " \t\n\v\f\r"
_NO_SPACE = dict.fromkeys(map(ord, _SPACE))
_HOOKS = {
    "preup": "PreUp",
    "postup": "PostUp",
    "predown": "PreDown",
    "postdown": "PostDown",
}
# What wg-quick takes out of [Interface] before wg sees the rest.
_QUICK = {
    "address": "Address",
    "mtu": "MTU",
    "dns": "DNS",
    "table": "Table",
    "saveconfig": "SaveConfig",
    **_HOOKS,
}
_SECTIONS = {"[interface]": "Interface", "[peer]": "Peer"}
_HOST_NAME = re.compile(
    r"(?=.{1,253}\Z)(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*\.?",
    re.IGNORECASE | re.ASCII,
)
_NUMBER = re.compile(r"0*([0-9]{1,10})", re.ASCII)
# wg's own: off, or a number that strtoul(3) reads with base 10, or 16 behind 0x; 32 bits.
_FWMARK = re.compile(r"(?i:off)|0*([0-9]{1,10})|0x0*[0-9a-fA-F]{1,8}", re.ASCII)
# strtol(3) with base 0, as ip-link(8) reads an MTU.
_C_INTEGER = re.compile(r"\+?(0x[0-9a-f]{1,8}|0[0-7]{0,11}|[1-9][0-9]{0,9})", re.ASCII | re.I)
# Not an inverted one, which Python would take.
_NETMASK = re.compile(
    r"[0-9.]+(/([1-9]?[0-9]|(1|2)[0-9]{2}(\.[0-9]{1,3}){3}|0\.0\.0\.0))?", re.ASCII
)
_SHOWN = re.compile(r"[0-9]{1,3}(\.[0-9]{1,3}){0,4}(/[0-9]{1,3})?|[0-9]{1,6}", re.ASCII)
_NO_WAY_TO_DNS = (
    "lies outside AllowedIPs: no lookup in the cell can reach it; add it to AllowedIPs, or name a "
    "resolver within them"
)
_NAMESERVER = re.compile(r"[0-9.]+|.*:.*", re.ASCII)


@dataclass(frozen=True, slots=True)
class VpnConfig:
    """One tunnel. Keys are 32 raw bytes and never shown by ``repr``."""

    private_key: bytes = field(repr=False)
    peer_public_key: bytes
    endpoint_host: str
    endpoint_port: int
    """0-65535 as written: `wgcell.cell.endpoint.vet` refuses 0 with its reason."""
    addresses: tuple[Interface, ...]
    allowed_ips: tuple[Network, ...]
    """Joined: none lies within another, and no two make a larger one."""
    preshared_key: bytes | None = field(default=None, repr=False)
    dns: tuple[Address, ...] = ()
    search: tuple[str, ...] = ()
    """Domains that a name without a dot is sought in."""
    mtu: int = DEFAULT_MTU
    """Bytes, 576-1420; at least 1280 if the tunnel carries IPv6."""
    keepalive: int = DEFAULT_KEEPALIVE
    """Seconds, 1-65535. An idle WireGuard is silent, so 0 and "off" become the default."""
    remarks: tuple[str, ...] = ()
    """What of the file was taken otherwise than written; our own words."""

    @property
    def carries_ipv6(self) -> bool:
        """Whether the tunnel's interface must have IPv6, which Linux takes off a narrow one."""
        return any(one.version == 6 for one in (*self.addresses, *self.allowed_ips))


@dataclass(frozen=True, slots=True)
class _Text:
    """A line, or a value, and where it stands."""

    line: int
    text: str


class _Refused(ValueError):
    """A value is not what its key allows; what that is."""


# wg-quick's half.


def _strip(text: str) -> tuple[dict[str, list[_Text]], list[_Text]]:
    """wg-quick's own values by key in small letters, and the lines that it hands to wg."""
    quick: dict[str, list[_Text]] = {key: [] for key in _QUICK}
    rest: list[_Text] = []
    inside = False
    # A shell's read drops NUL bytes.
    for number, line in enumerate(text.replace("\0", "").split("\n"), start=1):
        stripped = line.partition("#")[0]
        key, equals, value = stripped.partition("=")
        key = key.strip(_SPACE).lower()
        if key.startswith("["):
            inside = key == "[interface]"
        if inside and key in quick:
            # Without "=" the whole line is the value, as for wg-quick.
            quick[key].append(_Text(number, (value if equals else stripped).strip(_SPACE)))
        else:
            rest.append(_Text(number, stripped))
    return quick, rest


def _words(values: Sequence[_Text]) -> Iterator[_Text]:
    """The words between spaces, tabs and commas."""
    for value in values:
        for word in re.split(r"[ \t,]+", value.text):
            if word:
                yield _Text(value.line, word)


# The values. Addresses are parsed in these two only.


def _interface(text: str) -> Interface:
    """As ip-address(8) has it, less what readers disagree about. Raises ValueError."""
    if ":" not in text and not _NETMASK.fullmatch(text):
        raise ValueError("neither a prefix length nor a netmask")
    if ":" in text and not re.fullmatch(r"[0-9a-f:.]+(/([1-9][0-9]{0,2}|0))?", text, re.A | re.I):
        raise ValueError("not an IPv6 address")
    return interface(text)


def _address(text: str, prefix: str = "") -> Any:
    """An address, or with a prefix length its network: inet_pton(3). Raises ValueError."""
    one = address(text)
    return network(f"{one}/{int(prefix)}", strict=False) if prefix else one


def _key(value: str) -> bytes:
    try:
        raw = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    # wg refuses bits behind the last byte, which base64 would pass over.
    if len(raw) != 32 or base64.b64encode(raw).decode() != value:
        raise _Refused("is not a WireGuard key (44 characters of base64)")
    return raw


def _between(value: str, low: int, high: int) -> int:
    found = _NUMBER.fullmatch(value)
    number = int(found[1]) if found else -1
    if not low <= number <= high:
        raise _Refused(f"{_shown(value)}is not a number of {low}-{high}")
    return number


def _port(value: str) -> int:
    return _between(value, 0, 65535)


def _fwmark(value: str) -> None:
    """Checked and forgotten: it marks packets of a machine's own WireGuard."""
    found = _FWMARK.fullmatch(value)
    if found is None or int(found[1] or 0) >= 1 << 32:
        raise _Refused(f"{_shown(value)}is not off or a number of 32 bits")


def _keepalive(value: str) -> int:
    return DEFAULT_KEEPALIVE if value.lower() == "off" else _port(value) or DEFAULT_KEEPALIVE


def _networks(value: str) -> list[Network]:
    found: list[Network] = []
    for part in value.split(","):
        address, slash, prefix = part.partition("/")
        length = _NUMBER.fullmatch(prefix)
        try:
            if slash and length is None:
                raise ValueError("no prefix length")
            alone = 32 if ":" not in address else 128
            found.append(_address(address, length[1] if length else str(alone)))
        except ValueError:
            raise _Refused(f"{_shown(part)}is not a network as 192.0.2.0/24") from None
    return found


def _endpoint(value: str) -> tuple[str, int]:
    """The host, in brackets or not, up to the last colon: so wg reads a bare IPv6 address."""
    if value.startswith("["):
        host, bracket, port = value[1:].partition("]")
        colon, port = port[:1], port[1:]
    else:
        host, colon, port = value.rpartition(":")
        bracket = "-"
    found = _NUMBER.fullmatch(port)
    number = int(found[1]) if found else -1
    if not bracket or colon != ":" or not _is_host(host) or not 0 <= number <= 65535:
        raise _Refused("is not HOST:PORT, ADDRESS:PORT or [V6]:PORT")
    return host, number


def _is_host(host: str) -> bool:
    try:
        _address(host)
    except ValueError:
        return _HOST_NAME.fullmatch(host) is not None
    return True


def _shown(value: str) -> str:
    """``value`` in quotes if it is a number or like an IPv4 address; nothing else is repeated."""
    return f"{value!r} " if _SHOWN.fullmatch(value) else ""


# wg's half.

_WG: Mapping[str, Mapping[str, tuple[str, Callable[[str], Any]]]] = MappingProxyType(
    {
        "Interface": {
            "privatekey": ("PrivateKey", _key),
            "listenport": ("ListenPort", _port),
            "fwmark": ("FwMark", _fwmark),
        },
        "Peer": {
            "publickey": ("PublicKey", _key),
            "presharedkey": ("PresharedKey", _key),
            "allowedips": ("AllowedIPs", _networks),
            "endpoint": ("Endpoint", _endpoint),
            "persistentkeepalive": ("PersistentKeepalive", _keepalive),
        },
    }
)
_ALLOWED = {
    "Interface": [name for name, _ in _WG["Interface"].values()] + list(_QUICK.values()),
    "Peer": [name for name, _ in _WG["Peer"].values()],
}


class _Reader:
    """One file: its two halves, and one way to complain about them."""

    def __init__(self, text: str, source: str) -> None:
        self._source = source
        self._last_line = text.count("\n") + 1
        self._quick, rest = _strip(text)
        self._found: dict[str, Any] = {}
        self.remarks: list[str] = []
        self._setconf(rest)

    def fail(self, line: int, message: str, hint: str = "") -> NoReturn:
        raise VpnConfigError(f"{self._source}:{line or self._last_line}: {message}", hint=hint)

    def remark(self, line: int, message: str) -> None:
        self.remarks.append(f"{self._source}:{line}: {message}")

    def _setconf(self, lines: Sequence[_Text]) -> None:
        section = ""
        peers = 0
        for line in lines:
            cleaned = line.text.translate(_NO_SPACE)
            if not cleaned:
                continue
            if (named := _SECTIONS.get(cleaned.lower())) is not None:
                section = named
                peers += named == "Peer"
                if peers > 1:
                    self.fail(line.line, "a second [Peer]: a cell has one tunnel to one peer")
                continue
            key, _, value = cleaned.partition("=")
            if not value or key.lower() not in _WG.get(section, {}):
                self._unrecognized(line.line, section, cleaned)
            name, parse = _WG[section][key.lower()]
            try:
                parsed = parse(value)
            except _Refused as refused:
                self.fail(line.line, f"{name} {refused}")
            # Of one key the last line counts, of AllowedIPs all.
            before = self._found.get(name)
            self._found[name] = before + parsed if isinstance(before, list) else parsed

    def _unrecognized(self, line: int, section: str, cleaned: str) -> NoReturn:
        """Say why wg would not know this line. Its text is not shown."""
        key, equals, _ = cleaned.partition("=")
        lower = key.lower()
        if cleaned.startswith("["):
            self.fail(line, "unknown section; allowed: [Interface], [Peer]")
        if lower in _HOOKS:
            self._hook(line, lower)
        if not section:
            self.fail(line, "a line stands before any [Interface] or [Peer]")
        if not equals:
            self.fail(line, "not a section, and not KEY = VALUE")
        if lower in _WG[section]:
            self.fail(line, f"{_WG[section][lower][0]} has no value")
        for other, names in {"Interface": _QUICK, "Peer": {}}.items():
            known = {**names, **{lower: name for lower, (name, _) in _WG[other].items()}}
            if lower in known:
                self.fail(line, f"{known[lower]} belongs into [{other}]")
        allowed = ", ".join(_ALLOWED[section])
        self.fail(line, f"an unknown key in [{section}]; allowed: {allowed}")

    def _hook(self, line: int, key: str) -> NoReturn:
        self.fail(
            line,
            f"{_HOOKS[key]} runs a command on this machine, and is never run by wgcell",
            "delete the line; what the workload needs at its start goes into its command",
        )

    def refuse_what_acts(self) -> None:
        """On this machine. Of a repeated key the last counts; hooks are all run."""
        for key in _HOOKS:
            for value in self._quick[key]:
                if value.text:
                    self._hook(value.line, key)
        for value in self._quick["saveconfig"]:
            if value.text.lower() not in {"true", "false"}:
                self.fail(value.line, "SaveConfig is neither true nor false")
        inside = "the tunnel lives inside the VM: delete the line"
        if (saved := self._last("saveconfig")) and saved.text.lower() == "true":
            self.fail(saved.line, "SaveConfig = true lets wg-quick write this file", inside)
        if (table := self._last("table")) and table.text not in ("", "off", "auto"):
            what = "Table with another value than off or auto changes this machine's routes"
            self.fail(table.line, what, inside)

    def _last(self, key: str) -> _Text | None:
        return self._quick[key][-1] if self._quick[key] else None

    def get(self, name: str) -> Any:
        return self._found.get(name)

    def required(self, section: str, name: str, hint: str = "") -> Any:
        """What a tunnel can't be without."""
        if not (found := self._found.get(name)):
            self.fail(0, f"[{section}] has no {name}", hint)
        if found == bytes(32):
            self.fail(0, f"{name} is all zeros, which is no key")
        return found

    def addresses(self) -> tuple[Interface, ...]:
        found: dict[object, Interface] = {}
        for word in _words(self._quick["address"]):
            try:
                one = _interface(word.text)
            except ValueError:
                shown = _shown(word.text)
                self.fail(word.line, f"Address: {shown}is not an address as 10.0.0.2/32")
            six = one.version == 6
            if one.ip.is_unspecified and not six:
                continue  # Linux takes 0.0.0.0, and adds nothing
            if six and (one.ip.is_unspecified or one.ip.is_multicast or one.ip.is_loopback):
                self.fail(word.line, "Address: Linux gives such an address to no tunnel")
            # Linux has an IPv4 address once with each length, an IPv6 address once.
            if (key := one.ip if six else one) in found:
                self.fail(word.line, "Address: the same one again")
            found[key] = one
        if not found:
            self.fail(0, "[Interface] has no Address")
        return tuple(found.values())

    def dns(self, allowed: Sequence[Network]) -> tuple[tuple[Address, ...], tuple[str, ...]]:
        """Resolvers and search domains. What is neither, no resolver would heed either.

        ``allowed`` is where the tunnel leads: a resolver elsewhere is never reached.
        """
        servers: dict[Address, None] = {}
        search: dict[str, None] = {}
        for word in _words(self._quick["dns"]):
            if _NAMESERVER.fullmatch(word.text):
                try:
                    server: Address = _address(word.text)
                except ValueError:
                    pass
                else:
                    servers[server] = None
                    if not any(server in network for network in allowed):
                        self.remark(word.line, f"DNS {server} {_NO_WAY_TO_DNS}")
                    continue
            elif word.text.startswith("~"):
                # systemd-resolved's: names that are asked here. In a cell all are.
                continue
            elif _HOST_NAME.fullmatch(word.text):
                search[word.text] = None
                continue
            self.remark(word.line, "DNS has what is no address and no domain; left out")
        return tuple(servers), tuple(search)

    def allowed_ips(self) -> tuple[Network, ...]:
        every: list[Network] = self.required("Peer", "AllowedIPs", "add: AllowedIPs = 0.0.0.0/0")
        four = [one for one in every if isinstance(one, ipaddress.IPv4Network)]
        six = [one for one in every if isinstance(one, ipaddress.IPv6Network)]
        joined: tuple[Network, ...] = (
            *ipaddress.collapse_addresses(four),
            *ipaddress.collapse_addresses(six),
        )
        if len(joined) > MOST_NETWORKS:
            self.fail(
                0,
                f"AllowedIPs has {len(joined)} networks, the adjacent ones joined; allowed: at "
                f"most {MOST_NETWORKS}",
                "list larger networks that hold them, or 0.0.0.0/0",
            )
        return joined

    def mtu(self, ipv6: bool) -> int:
        value = self._last("mtu")
        if value is None or not value.text:
            return DEFAULT_MTU
        if not _C_INTEGER.fullmatch(value.text):
            self.fail(value.line, f"MTU {_shown(value.text)}is not a number")
        text = value.text.lower().lstrip("+")
        octal = text.startswith("0") and not text.startswith("0x")
        written = int(text, 8) if octal else int(text, 0)
        if written >= 1 << 31:
            self.fail(value.line, f"MTU {_shown(value.text)}is too large for any interface")
        least = MINIMUM_MTU[6 if ipv6 else 4]
        taken = min(max(written, least), DEFAULT_MTU) if written else DEFAULT_MTU
        if taken != written:
            why = {
                written == 0: "0 stands for none",
                0 < written < least: "less than a tunnel with "
                f"{'IPv6' if ipv6 else 'IPv4'} must carry",
                written > DEFAULT_MTU: "more than fits into a packet of 1500 bytes",
            }[True]
            self.remark(value.line, f"MTU {written} is {taken} here: {why}")
        return taken


def parse_vpn_config(text: str | bytes, source: str = "the VPN configuration") -> VpnConfig:
    """A wg-quick file's text as a `VpnConfig`.

    Raises `VpnConfigError`, beginning ``source:line:``, for anything wg-quick or wg refuse,
    anything that would act on this machine, and what a cell has no use for.
    """
    raw = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    # A letter a byte, as the tools have it: a comment may be in any encoding.
    reader = _Reader(raw.removeprefix(b"\xef\xbb\xbf").decode("latin-1"), source)
    reader.refuse_what_acts()
    private_key = reader.required("Interface", "PrivateKey")
    public_key = reader.required("Peer", "PublicKey")
    host, port = reader.required("Peer", "Endpoint")
    addresses, allowed = reader.addresses(), reader.allowed_ips()
    dns, search = reader.dns(allowed)
    mtu = reader.mtu(ipv6=any(one.version == 6 for one in (*addresses, *allowed)))
    if probe.choose(addresses, allowed, dns) is None:
        reader.fail(
            0,
            "AllowedIPs leads nowhere that an Address here could send to, so the tunnel could "
            "never be seen to work",
            "give AllowedIPs a network beyond your own Address, of the same family",
        )
    preshared = reader.get("PresharedKey")
    return VpnConfig(
        private_key=private_key,
        peer_public_key=public_key,
        # A key of zeros is WireGuard's word for none.
        preshared_key=preshared if preshared != bytes(32) else None,
        endpoint_host=host,
        endpoint_port=port,
        addresses=addresses,
        allowed_ips=allowed,
        dns=dns,
        search=search,
        mtu=mtu,
        keepalive=reader.get("PersistentKeepalive") or DEFAULT_KEEPALIVE,
        remarks=tuple(reader.remarks),
    )


def load_vpn_config(path: Path, beneath: Path | None = None) -> VpnConfig:
    """`parse_vpn_config` of a file, at most 256 KiB. Raises `VpnConfigError`.

    ``beneath`` is the folder that it must lie in, whoever changes links meanwhile.
    """
    try:
        with path.open("rb") if beneath is None else _opened_beneath(path, beneath) as file:
            raw = file.read(_MAXIMUM_FILE + 1)
    except OSError as error:
        raise VpnConfigError(f"{path}: {error.strerror or error}") from None
    if len(raw) > _MAXIMUM_FILE:
        raise VpnConfigError(f"{path}: larger than 256 KiB, which no wg-quick file is")
    return parse_vpn_config(raw, str(path))


def _opened_beneath(path: Path, beneath: Path) -> BinaryIO:
    return os.fdopen(opened(Input(path, beneath=beneath)), "rb")
