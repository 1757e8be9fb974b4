"""Files whose networks are unusual, as an honest guest takes them: none of them is a fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.support.cells import Cell
from tests.support.gateways import Gateway
from tests.support.vpnfiles import vpn_file

from wgcell.gateway.model.keys import generate_private_key, public_key

pytestmark = [pytest.mark.vm, pytest.mark.timeout(400)]

SAY = """
import urllib.request as u
print(len(u.urlopen('http://10.99.0.5/data.csv', timeout=30).read()))
print(open('/etc/resolv.conf').read().split())
print(open('/sys/class/net/wg0/mtu').read().strip())
"""
MANY = ",".join(
    [f"2001:db8:{number:x}::/48" for number in range(0, 1000, 2)]
    + [f"203.{number >> 7}.{(number & 127) * 2}.0/24" for number in range(523)]
)


@pytest.mark.parametrize(
    ("head", "allowed", "mtu"),
    [
        # A split tunnel: neither the resolver nor the gateway lies in it; nor is it IPv6's alone.
        ("MTU = 9000\nDNS = 192.0.2.53, corp.example.com", "10.99.0.5/32", "1420"),
        # The same again, IPv4 in IPv6, and less than IPv6 needs.
        (
            "MTU = 900\nDNS = corp.example.com",
            "::ffff:192.0.2.0/120,::/0,10.99.0.0/16,10.99.0.5/16,10.99.0.0/17",
            "1280",
        ),
        ("", f"10.99.0.5/32,{MANY}", "1420"),
    ],
    ids=["split", "again", "many"],
)
def test_an_honest_guest_takes_it(
    cell: Cell, service: str, tmp_path: Path, head: str, allowed: str, mtu: str
) -> None:
    ours, theirs = generate_private_key(), generate_private_key()
    config: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "private_key": theirs,
        "services": dict([service.split("=")]),
        "peers": {"cell": {"public_key": public_key(ours), "address": "10.99.0.2"}},
    }
    gateway = Gateway(config)
    vpn = tmp_path / "vpn.conf"
    endpoint = f"127.0.0.1:{gateway.first['port']}"
    keys = {"private": ours, "public": public_key(theirs)}
    given = {"address": "10.99.0.2/32", "allowed": allowed, "endpoint": endpoint}
    vpn.write_text(vpn_file(**keys, **given, interface=head))
    try:
        asked = ["--vpn", str(vpn), "--allow-endpoint", "127.0.0.1/32"]
        ended = cell(*asked, command=["python3", "-c", SAY])
    finally:
        gateway.close()
    assert ended.code == 0, ended.stdout + ended.stderr
    fetched, resolver, width = ended.stdout.splitlines()
    assert (fetched, width) == ("15", mtu)
    assert ("'search', 'corp.example.com'" in resolver) is ("corp" in head)
    assert (f"is {mtu} here" in ended.stderr) is ("MTU" in head)
