"""The sections and keys of a wg-quick file, split as wg-quick and wg split them.

A line that would act on this machine is refused here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NoReturn, TypeVar

from wgcell.cell.wgquick import values
from wgcell.cell.wgquick.values import BadValue
from wgcell.errors import VpnConfigError

__all__ = ["QUICK", "WG", "Sections", "Text"]

# isspace(3) in the C locale; str.strip() removes more, some of it letters in other encodings.
_SPACE = " \t\n\v\f\r"
_NO_SPACE = dict.fromkeys(map(ord, _SPACE))
_Value = TypeVar("_Value")
_HOOKS = {
    "preup": "PreUp",
    "postup": "PostUp",
    "predown": "PreDown",
    "postdown": "PostDown",
}
QUICK: Mapping[str, str] = MappingProxyType(
    {
        "address": "Address",
        "mtu": "MTU",
        "dns": "DNS",
        "table": "Table",
        "saveconfig": "SaveConfig",
        **_HOOKS,
    }
)
"""Keys that wg-quick takes out of [Interface] before wg sees the rest, by their small letters."""
WG: Mapping[str, Mapping[str, tuple[str, Callable[[str], object]]]] = MappingProxyType(
    {
        "Interface": {
            "privatekey": ("PrivateKey", values.key),
            "listenport": ("ListenPort", values.port),
            "fwmark": ("FwMark", values.fwmark),
        },
        "Peer": {
            "publickey": ("PublicKey", values.key),
            "presharedkey": ("PresharedKey", values.key),
            "allowedips": ("AllowedIPs", values.allowed_ips),
            "endpoint": ("Endpoint", values.endpoint),
            "persistentkeepalive": ("PersistentKeepalive", values.keepalive),
        },
    }
)
"""wg's own keys by section, each with its spelling and its parser."""
_SECTIONS = {"[interface]": "Interface", "[peer]": "Peer"}
_ALLOWED = {
    "Interface": [name for name, _ in WG["Interface"].values()] + list(QUICK.values()),
    "Peer": [name for name, _ in WG["Peer"].values()],
}


@dataclass(frozen=True, slots=True)
class Text:
    """A line or a value, and the number of its line."""

    line: int
    text: str


def strip(text: str) -> tuple[dict[str, list[Text]], list[Text]]:
    """wg-quick's own values by key in small letters, and the lines that it hands to wg."""
    quick: dict[str, list[Text]] = {key: [] for key in QUICK}
    rest: list[Text] = []
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
            quick[key].append(Text(number, (value if equals else stripped).strip(_SPACE)))
        else:
            rest.append(Text(number, stripped))
    return quick, rest


class Sections:
    """One file's keys and values; every error names its line."""

    def __init__(self, text: str, source: str) -> None:
        """Raises `VpnConfigError` for a file that wg refuses."""
        self._source = source
        self._last_line = text.count("\n") + 1
        self._quick, rest = strip(text)
        self._found: dict[str, object] = {}
        self.remarks: list[str] = []
        self._setconf(rest)

    def fail(self, line: int, message: str, hint: str = "") -> NoReturn:
        """Raise `VpnConfigError`. Line 0 is the file's last: a key is missing."""
        raise VpnConfigError(f"{self._source}:{line or self._last_line}: {message}", hint=hint)

    def remark(self, line: int, message: str) -> None:
        """Note a setting that differs here from the file's."""
        self.remarks.append(f"{self._source}:{line}: {message}")

    def words(self, key: str) -> Iterator[Text]:
        """The words of all lines with a key of wg-quick's, between spaces, tabs and commas."""
        for value in self._quick[key]:
            for word in re.split(r"[ \t,]+", value.text):
                if word:
                    yield Text(value.line, word)

    def last(self, key: str) -> Text | None:
        """The last value of a key of wg-quick's."""
        return self._quick[key][-1] if self._quick[key] else None

    def get(self, name: str, kind: type[_Value]) -> _Value | None:
        """The value of a key that wg reads, by its spelling. ``kind`` is its type."""
        found = self._found.get(name)
        return found if isinstance(found, kind) else None

    def required(self, section: str, name: str, kind: type[_Value], hint: str = "") -> _Value:
        """`get`, for a key that a tunnel needs. Raises `VpnConfigError` if it is missing."""
        if not (found := self.get(name, kind)):
            self.fail(0, f"[{section}] has no {name}", hint)
        if found == bytes(32):
            self.fail(0, f"{name} is all zeros, which is no key")
        return found

    def refuse_actions(self) -> None:
        """Raise `VpnConfigError` for a line that would act on this machine.

        Of a repeated key the last line counts, but wg-quick runs every hook.
        """
        for key in _HOOKS:
            for value in self._quick[key]:
                if value.text:
                    self._hook(value.line, key)
        for value in self._quick["saveconfig"]:
            if value.text.lower() not in {"true", "false"}:
                self.fail(value.line, "SaveConfig is neither true nor false")
        inside = "the tunnel lives inside the VM: delete the line"
        if (saved := self.last("saveconfig")) and saved.text.lower() == "true":
            self.fail(saved.line, "SaveConfig = true lets wg-quick write this file", inside)
        if (table := self.last("table")) and table.text not in ("", "off", "auto"):
            what = "Table with another value than off or auto changes this machine's routes"
            self.fail(table.line, what, inside)

    def _setconf(self, lines: Sequence[Text]) -> None:
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
            self._set(section, line.line, cleaned)

    def _set(self, section: str, line: int, cleaned: str) -> None:
        key, _, value = cleaned.partition("=")
        if not value or key.lower() not in WG.get(section, {}):
            self._unrecognized(line, section, cleaned)
        name, parse = WG[section][key.lower()]
        try:
            parsed = parse(value)
        except BadValue as bad:
            self.fail(line, f"{name} {bad}")
        # Of one key the last line counts, of AllowedIPs all.
        before = self._found.get(name)
        if isinstance(before, list) and isinstance(parsed, list):
            parsed = before + parsed
        self._found[name] = parsed

    def _unrecognized(self, line: int, section: str, cleaned: str) -> NoReturn:
        """Say why wg would not know this line, without its text."""
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
        if lower in WG[section]:
            self.fail(line, f"{WG[section][lower][0]} has no value")
        for other, names in {"Interface": QUICK, "Peer": {}}.items():
            known = {**names, **{lower: name for lower, (name, _) in WG[other].items()}}
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
