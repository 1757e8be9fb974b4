"""A path narrower than the tunnel thinks: the guest learns of it by itself, and loses nothing.

::

    host namespace              router namespace            server namespace
      wgcell run ── 1500 ── veth ── forwards ── veth ── narrow ── wgcell gateway run, a service

The router answers what is too long with ICMP's "fragmentation needed", or says nothing at all.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.requester import INSIDE, WGCELL, ip, requester

pytestmark = [pytest.mark.vm, pytest.mark.namespaces, pytest.mark.timeout(200)]
SIZE = 1_000_000
TAKES = """
import http.server
class Takes(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        got = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(got)))
        self.end_headers()
        self.wfile.write(got)
http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Takes).serve_forever()
"""
ASKS = f"""
import os, time, urllib.request
for _ in range(2):
    data = os.urandom({SIZE})
    assert urllib.request.urlopen("http://10.99.0.5/", data, timeout=60).read() == data
    time.sleep(3)
print(open("/sys/class/net/wg0/mtu").read(), end="")
"""


@pytest.fixture
def namespaces() -> Iterator[tuple[str, str, str]]:
    names = tuple(f"wg{letter}{os.getpid()}" for letter in "hrs")
    host, router, server = names
    for name in names:
        ip("netns", "add", name)
    try:
        for card, one, other in (("near", host, router), ("far", router, server)):
            peer = ("peer", "name", card, "netns", other)
            ip("link", "add", card, "netns", one, "type", "veth", *peer)
        for name, card, address in (
            *((host, "near", "10.77.1.1/24"), (router, "near", "10.77.1.254/24")),
            *((router, "far", "10.77.2.254/24"), (server, "far", "10.77.2.1/24")),
        ):
            ip("-n", name, "addr", "add", address, "dev", card)
            ip("-n", name, "link", "set", card, "up")
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", host, "route", "add", "default", "via", "10.77.1.254")
        ip("-n", server, "route", "add", "default", "via", "10.77.2.254")
        forward = "echo 1 > /proc/sys/net/ipv4/ip_forward"
        ip("netns", "exec", router, "sh", "-c", forward)
        yield host, router, server
    finally:
        for name in names:
            ip("netns", "del", name)


@pytest.mark.parametrize(("narrow", "tunnel"), [(1280, 1220), (1400, 1340)])
def test_a_narrow_path_makes_the_tunnel_narrower_and_loses_nothing(
    namespaces: tuple[str, str, str], tmp_path: Path, narrow: int, tunnel: int
) -> None:
    assert bulk(namespaces, tmp_path, narrow) == (f"{tunnel}\n", [(narrow, tunnel)])


def test_a_router_that_says_nothing_makes_no_black_hole(
    namespaces: tuple[str, str, str], tmp_path: Path
) -> None:
    mute = "add table ip mute\nadd chain ip mute out { type filter hook output priority 0; }\n"
    mute += "add rule ip mute out ip protocol icmp drop\n"
    subprocess.run(
        ["ip", "netns", "exec", namespaces[1], "nft", "-f", "-"], input=mute.encode(), check=True
    )
    assert bulk(namespaces, tmp_path, 1280) == ("1420\n", [])


def bulk(
    namespaces: tuple[str, str, str], tmp_path: Path, narrow: int
) -> tuple[str, list[tuple[int, int]]]:
    """Two megabytes there and back; the tunnel's MTU in the guest then, and what was told."""
    host, router, server = namespaces
    for name in (router, server):
        ip("-n", name, "link", "set", "far", "mtu", str(narrow))
    # The file says 1420, which is wrong for this path.
    with requester(server, tmp_path, "10.77.2.1", TAKES) as vpn:
        done = subprocess.run(
            [
                *(*INSIDE, host, *WGCELL, "run", "--vpn", str(vpn)),
                *("--allow-endpoint", "10.77.2.0/24", "--state-dir", str(tmp_path / "cells")),
                *("--", "python3", "-c", ASKS),
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=150,
        )
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "cells").iterdir()
    assert json.loads((folder / "result.json").read_text())["relay"]["refused"] == {}
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    told = [event for event in events if event["event"] == "path_mtu"]
    return done.stdout, [(event["path"], event["tunnel"]) for event in told]
