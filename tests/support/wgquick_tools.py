"""wg-quick and wg themselves, asked what a file means.

wg-quick's own functions run in a network namespace: they parse the file, set a WireGuard interface
by ``wg setconf`` and give it addresses. The MTU is the loopback interface's, which takes any, as
the kernel's WireGuard does. Hooks, routes and resolvconf are left out: their values are looked at
instead. Nothing of the file acts.
"""

from __future__ import annotations

import ipaddress
import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.support.networks import Net
from tests.support.waiting import until

HOSTS = {"vpn.example.com": "192.0.2.7", "six.example.com": "2001:db8:9::7"}
_INTERFACE = "wgoracle"
_MARK = "# ~~ function override insertion point ~~"
# For each file a shell of its own, so that the next one begins anew. Fields end with NUL.
_LOOP = r"""
set +e
several() { printf '%s\0' "$#" "$@"; }
while IFS= read -r file; do
    (
        ip addr flush dev "$(basename "$file" .conf)"
        set -e
        parse_options "$file"
        several "${ADDRESSES[@]}"; several "${DNS[@]}"; several "${DNS_SEARCH[@]}"
        several "${PRE_UP[@]}" "${POST_UP[@]}" "${PRE_DOWN[@]}" "${POST_DOWN[@]}"
        several "$MTU" "$TABLE" "$SAVE_CONFIG"
        set_config
        several "$(wg show "$INTERFACE" dump)"
        for i in "${ADDRESSES[@]}"; do add_addr "$i"; done
        several "$(ip -j addr show dev "$INTERFACE")"
        INTERFACE=lo
        [ -z "$MTU" ] || set_mtu_up
        several "$(ip -j link show lo)"
        several accepted
    ) 2>/dev/null
    printf 'end\0\n'
done
"""


@dataclass(frozen=True)
class Meaning:
    """What the real tools made of a file that they took."""

    private_key: str
    """In base64, clamped; empty for none."""
    peers: tuple[tuple[str, ...], ...]
    """Of each: public key, preshared key, endpoint, AllowedIPs, …, keepalive, as ``wg show``."""
    words: tuple[str, ...]
    """Address's, as written."""
    addresses: frozenset[str]
    mtu: int
    """As written; 0 for none."""
    dns: tuple[str, ...]
    search: tuple[str, ...]
    hooks: tuple[str, ...]
    table: str
    saves: bool

    @property
    def acts(self) -> bool:
        """Whether wg-quick would run something, or change this machine beyond the tunnel."""
        return any(self.hooks) or self.saves or self.table not in ("", "off", "auto")


class RealTools:
    """wg-quick's parser and wg, in a namespace of their own."""

    def __init__(self, folder: Path) -> None:
        self.net = Net()
        self._file = folder / f"{_INTERFACE}.conf"
        hosts, script = folder / "hosts", folder / "wg-quick"
        hosts.write_text("".join(f"{address} {name}\n" for name, address in HOSTS.items()))
        self.net.run("mount", "--bind", str(hosts), "/etc/hosts")
        real = Path("/usr/bin/wg-quick").read_text()
        assert _MARK in real
        script.write_text(real[: real.index(_MARK)] + _LOOP)
        empty = folder / "empty"
        empty.mkdir()
        self._daemon = self.net.start(
            "wireguard-go", "-f", _INTERFACE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        shown = f"interface: {_INTERFACE}"
        until(lambda: shown in self.net.run("wg", "show", _INTERFACE, check=False))
        self.net.run("ip", "link", "set", _INTERFACE, "up")
        self._shell = self.net.start(
            "bash",
            str(script),
            cwd=empty,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # A name that is not known is not asked for again and again.
            env={**os.environ, "WG_ENDPOINT_RESOLUTION_RETRIES": "1"},
        )

    def close(self) -> None:
        assert self._shell.stdin
        self._shell.stdin.close()
        self.net.close()

    def ask(self, raw: bytes) -> Meaning | None:
        """What the file means; None if one of the tools refuses it."""
        self._file.write_bytes(raw)
        assert self._shell.stdin
        assert self._shell.stdout
        self._shell.stdin.write(f"{self._file}\n".encode())
        self._shell.stdin.flush()
        said = b""
        while not said.endswith(b"end\0\n"):
            more = os.read(self._shell.stdout.fileno(), 65536)
            assert more, "the shell has ended"
            said += more
        fields = iter(said.decode("latin-1").split("\0"))

        def several() -> tuple[str, ...]:
            number = next(fields, "")
            return tuple(next(fields) for _ in range(int(number))) if number.isdigit() else ()

        words, dns, search, hooks = several(), several(), several(), several()
        settings, dump, shown, mtu = several(), several(), several(), several()
        if several() != ("accepted",):
            return None
        own, *peers = [line.split("\t") for line in dump[0].splitlines()]
        (link,) = json.loads(shown[0])
        return Meaning(
            private_key="" if own[0] == "(none)" else own[0],
            peers=tuple(map(tuple, peers)),
            words=words,
            addresses=frozenset(
                str(ipaddress.ip_interface(f"{one['local']}/{one['prefixlen']}"))
                for one in link["addr_info"]
                if one.get("protocol") != "kernel_ll"
            ),
            mtu=json.loads(mtu[0])[0]["mtu"] if settings[0] else 0,
            dns=dns,
            search=search,
            hooks=hooks,
            table=settings[1],
            saves=settings[2] == "1",
        )
