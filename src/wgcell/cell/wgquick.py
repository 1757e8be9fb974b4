"""Strict reading of wg-quick files.

A file may come from a stranger, so whatever wg-quick would *run* or would change on this machine
(PostUp and its kin, Table, FwMark, SaveConfig) is refused by name, and a key nobody knows is an
error and not a shrug. One peer, with an endpoint: a cell has one tunnel.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NoReturn, TypeVar

from wgcell.cell.inputs import Input, opened
from wgcell.errors import VpnConfigError
from wgcell.net.addresses import Address, Interface, Network, address, interface, network

__all__ = ["DEFAULT_KEEPALIVE", "DEFAULT_MTU", "VpnConfig", "load_vpn_config", "parse_vpn_config"]

_T = TypeVar("_T")

DEFAULT_MTU = 1420
MINIMUM_MTU = 576
DEFAULT_KEEPALIVE = 25
_MAXIMUM_FILE = 64 * 1024

_HOOKS = {
    "preup": "PreUp",
    "postup": "PostUp",
    "predown": "PreDown",
    "postdown": "PostDown",
}
_HOST_SETTINGS = {"saveconfig": "SaveConfig", "table": "Table", "fwmark": "FwMark"}
_REPEATABLE = frozenset({"address", "dns", "allowedips"})
_KEYS = {
    "interface": {
        "privatekey": "PrivateKey",
        "address": "Address",
        "dns": "DNS",
        "mtu": "MTU",
        "listenport": "ListenPort",
    },
    "peer": {
        "publickey": "PublicKey",
        "presharedkey": "PresharedKey",
        "allowedips": "AllowedIPs",
        "endpoint": "Endpoint",
        "persistentkeepalive": "PersistentKeepalive",
    },
}
_HOST_NAME = re.compile(
    r"(?=.{1,253}\Z)(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*\.?",
    re.IGNORECASE | re.ASCII,
)
_NUMBER = re.compile(r"[0-9]{1,10}", re.ASCII)


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
    preshared_key: bytes | None = field(default=None, repr=False)
    dns: tuple[Address, ...] = ()
    mtu: int = DEFAULT_MTU
    """Bytes, 576-1420."""
    keepalive: int = DEFAULT_KEEPALIVE
    """Seconds, 1-65535. An idle WireGuard is silent, so 0 and "off" become the default."""


@dataclass(frozen=True, slots=True)
class _Entry:
    line: int
    section: str
    key: str
    value: str


class _Reader:
    """The file's entries, and one way to complain about them."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.entries: list[_Entry] = []
        self.last_line = 1

    def fail(self, line: int, message: str, mend: str = "") -> NoReturn:
        raise VpnConfigError(f"{self.source}:{line}: {message}", mend=mend)

    def read(self, text: str) -> None:
        section = ""
        seen: set[tuple[str, str]] = set()
        sections: set[str] = set()
        for number, raw in enumerate(text.split("\n"), start=1):
            self.last_line = number
            line = raw.split("#", 1)[0].strip()
            if not line:
                continue
            if line.startswith("["):
                section = self._section(number, line, sections)
                continue
            self._entry(number, line, section, seen)

    def _section(self, number: int, line: str, sections: set[str]) -> str:
        name = line.removeprefix("[").removesuffix("]").strip().lower()
        if not line.endswith("]") or name not in _KEYS:
            # Only a plain word is repeated: a key may have slipped into the line.
            shown = f" {line}" if re.fullmatch(r"\[[A-Za-z ]{1,20}\]", line) else ""
            self.fail(number, f"unknown section{shown}; allowed: [Interface], [Peer]")
        if name in sections:
            what = "a second [Peer]" if name == "peer" else "a second [Interface]"
            self.fail(number, f"{what}: a cell has exactly one tunnel to one peer")
        sections.add(name)
        return name

    def _entry(self, number: int, line: str, section: str, seen: set[tuple[str, str]]) -> None:
        key, equals, value = (part.strip() for part in line.partition("="))
        lower = key.lower()
        if lower in _HOOKS:
            self.fail(
                number,
                f"{_HOOKS[lower]} runs a command on this machine, and is never run by wgcell",
                "delete the line; what the workload needs at its start goes into its command",
            )
        if lower in _HOST_SETTINGS:
            self.fail(
                number,
                f"{_HOST_SETTINGS[lower]} changes this machine's own settings",
                "delete the line: the tunnel lives inside the VM",
            )
        if not equals:
            self.fail(number, "not a section, and not KEY = VALUE")
        if not value and lower not in _KEYS.get(section, {}):
            # It may be the end of a key that was wrapped, and is not repeated.
            self.fail(number, "neither a section nor KEY = VALUE; a value stands in one line")
        if not section:
            self.fail(number, f"{key[:40]!r} stands before any [Interface] or [Peer]")
        if lower not in _KEYS[section]:
            allowed = ", ".join(_KEYS[section].values())
            self.fail(number, f"[{section.title()}] has no key {key[:40]!r}; allowed: {allowed}")
        if not value:
            self.fail(number, f"{_KEYS[section][lower]} has no value")
        if (section, lower) in seen and lower not in _REPEATABLE:
            self.fail(number, f"{_KEYS[section][lower]} is given twice")
        seen.add((section, lower))
        self.entries.append(_Entry(number, section, lower, value))

    def one(self, key: str) -> _Entry | None:
        return next((entry for entry in self.entries if entry.key == key), None)

    def required(self, section: str, key: str) -> _Entry:
        entry = self.one(key)
        if entry is None:
            name = _KEYS[section][key]
            self.fail(self.last_line, f"[{section.title()}] has no {name}")
        return entry

    def secret(self, entry: _Entry) -> bytes:
        try:
            raw = base64.b64decode(entry.value, validate=True)
        except (binascii.Error, ValueError):
            raw = b""
        if len(raw) != 32:
            name = _KEYS[entry.section][entry.key]
            # The value is not repeated: it may be a mistyped secret.
            self.fail(entry.line, f"{name} is not a WireGuard key (44 characters of base64)")
        return raw

    def number(self, entry: _Entry, low: int, high: int) -> int:
        value = int(entry.value) if _NUMBER.fullmatch(entry.value) else -1
        if not low <= value <= high:
            name = _KEYS[entry.section][entry.key]
            self.fail(entry.line, f"{name} is {entry.value[:40]!r}; allowed: {low}-{high}")
        return value

    def each(self, key: str, parse: Callable[[str], _T], what: str) -> tuple[_T, ...]:
        """Every comma-separated value of every line of ``key``."""
        found: list[_T] = []
        for entry in self.entries:
            if entry.key != key:
                continue
            for part in (piece.strip() for piece in entry.value.split(",")):
                try:
                    found.append(parse(part))
                except ValueError:
                    name = _KEYS[entry.section][key]
                    self.fail(entry.line, f"{name}: {part[:60]!r} is not {what}")
        return tuple(found)

    def endpoint(self, entry: _Entry) -> tuple[str, int]:
        host, colon, port = entry.value.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        host = host[1:-1] if bracketed else host
        number = int(port) if _NUMBER.fullmatch(port) else -1
        if not colon or not _is_host(host, bracketed) or not 0 <= number <= 65535:
            self.fail(
                entry.line,
                f"Endpoint {entry.value[:80]!r} is not HOST:PORT, ADDRESS:PORT or [V6]:PORT",
            )
        return host, number


def _is_host(host: str, bracketed: bool) -> bool:
    try:
        version = address(host).version
    except ValueError:
        return not bracketed and _HOST_NAME.fullmatch(host) is not None
    return (version == 6) == bracketed


def parse_vpn_config(text: str, source: str = "the VPN configuration") -> VpnConfig:
    """A wg-quick file's text as a `VpnConfig`.

    Raises `VpnConfigError`, beginning ``source:line:``, for anything wg-quick's format does not
    have, anything that would act on this machine, and values out of range.
    """
    reader = _Reader(source)
    reader.read(text)
    private = reader.secret(reader.required("interface", "privatekey"))
    public = reader.secret(reader.required("peer", "publickey"))
    host, port = reader.endpoint(reader.required("peer", "endpoint"))
    reader.required("interface", "address")
    preshared = reader.one("presharedkey")
    mtu = reader.one("mtu")
    listen = reader.one("listenport")
    if listen is not None:
        # Read so that nonsense is not accepted; the link inside the VM pins its own port.
        reader.number(listen, 0, 65535)
    addresses = reader.each("address", interface, "an address like 10.0.0.2/32")
    allowed = reader.each("allowedips", lambda part: network(part, strict=False), "a network")
    if not allowed:
        reader.fail(reader.last_line, "[Peer] has no AllowedIPs", "add: AllowedIPs = 0.0.0.0/0")
    return VpnConfig(
        private_key=private,
        peer_public_key=public,
        preshared_key=reader.secret(preshared) if preshared else None,
        endpoint_host=host,
        endpoint_port=port,
        addresses=addresses,
        allowed_ips=allowed,
        dns=reader.each("dns", address, "an IP address"),
        mtu=reader.number(mtu, MINIMUM_MTU, DEFAULT_MTU) if mtu else DEFAULT_MTU,
        keepalive=_keepalive(reader),
    )


def _keepalive(reader: _Reader) -> int:
    entry = reader.one("persistentkeepalive")
    if entry is None or entry.value.lower() == "off":
        return DEFAULT_KEEPALIVE
    return reader.number(entry, 0, 65535) or DEFAULT_KEEPALIVE


def load_vpn_config(path: Path, beneath: Path | None = None) -> VpnConfig:
    """`parse_vpn_config` of a file, at most 64 KiB. Raises `VpnConfigError`.

    ``beneath`` is the folder that it must lie in, whoever changes links meanwhile.
    """
    try:
        with path.open("rb") if beneath is None else _opened_beneath(path, beneath) as file:
            raw = file.read(_MAXIMUM_FILE + 1)
    except OSError as error:
        raise VpnConfigError(f"{path}: {error.strerror or error}") from None
    if len(raw) > _MAXIMUM_FILE:
        raise VpnConfigError(f"{path}: larger than 64 KiB, which no wg-quick file is")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise VpnConfigError(f"{path}:{line}: not UTF-8 text") from None
    return parse_vpn_config(text, str(path))


def _opened_beneath(path: Path, beneath: Path) -> BinaryIO:
    return os.fdopen(opened(Input(path, beneath=beneath)), "rb")
