"""A machine whose only IPv4 is loopback's: whole cells, by a requester's tunnel and by a gateway
of their own.

::

    host namespace                      server namespace
      wgcell run ── 2001:db8:7::1 ── veth ── 2001:db8:7::fe, the way out
                                             2a00:db8::fe: gateway, name server, web server
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support.requester import INSIDE, WGCELL, ip, requester

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]

NAME = "gateway.example.com"
THERE = "2a00:db8::fe"
NOWHERE = "45.0.0.7"
"""Out on the Internet, to which there is no way by IPv4."""
SERVICE = """
import http.server
class Said(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"here")
    def log_message(self, *words):
        pass
"""
LOOPBACK = SERVICE + 'http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Said).serve_forever()'
WEB = SERVICE + (
    "import socket\n"
    "class Six(http.server.ThreadingHTTPServer):\n"
    "    address_family = socket.AF_INET6\n"
    f'Six(("{THERE}", 8080), Said).serve_forever()'
)
NAMES = f"""
import socket
import dns.message, dns.rrset
sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
sock.bind(("{THERE}", 53))
while True:
    data, address = sock.recvfrom(4096)
    asked = dns.message.from_wire(data)
    (question,) = asked.question
    kind = question.rdtype.name
    answer = dns.message.make_response(asked)
    found = dict(AAAA="{THERE}", A="{NOWHERE}").get(kind)
    if found:
        answer.answer.append(dns.rrset.from_text(question.name, 60, "IN", kind, found))
    sock.sendto(answer.to_wire(), address)
"""


@pytest.fixture
def namespaces() -> Iterator[tuple[str, str]]:
    host, server = f"wg6h{os.getpid()}", f"wg6s{os.getpid()}"
    etc = Path("/etc/netns") / host
    for name in (host, server):
        ip("netns", "add", name)
    try:
        ip("link", "add", "v", "netns", host, "type", "veth", "peer", "name", "v", "netns", server)
        for name in (host, server):
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", "v", "up")
        ip("-n", host, "addr", "add", "2001:db8:7::1/64", "dev", "v", "nodad")
        ip("-n", server, "addr", "add", "2001:db8:7::fe/64", "dev", "v", "nodad")
        ip("-n", server, "addr", "add", f"{THERE}/128", "dev", "lo", "nodad")
        ip("-n", host, "route", "add", "default", "via", "2001:db8:7::fe")
        etc.mkdir(parents=True)
        # What stands for the files of /etc in the host's namespace (ip-netns(8)).
        (etc / "hosts").write_text(f"{NOWHERE} {NAME}\n{THERE} {NAME}\n")
        (etc / "resolv.conf").write_text(f"nameserver {THERE}\n")
        yield host, server
    finally:
        for name in (host, server):
            ip("netns", "del", name)
        for path in (etc / "hosts", etc / "resolv.conf"):
            path.unlink(missing_ok=True)
        if etc.is_dir():
            etc.rmdir()


def cell(namespace: str, cells: Path, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [*INSIDE, namespace, *WGCELL, "run", "--state-dir", str(cells), *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=250, check=False)


def result(cells: Path) -> dict[str, Any]:
    (folder,) = cells.iterdir()
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


def test_a_requesters_tunnel_by_the_names_aaaa(namespaces: tuple[str, str], tmp_path: Path) -> None:
    host, server = namespaces
    fetch = "import urllib.request as u; print(u.urlopen('http://10.99.0.5/', timeout=60).read())"
    with requester(server, tmp_path, NAME, LOOPBACK, listen=f"[{THERE}]") as vpn:
        done = cell(host, tmp_path / "cells", "--vpn", str(vpn), "--", "python3", "-c", fetch)
    assert (done.returncode, done.stdout) == (0, "b'here'\n"), done.stderr
    # Vetted both, and both could have been asked: in the order of RFC 6724.
    assert f"the tunnel to [{THERE}]:51820 or {NOWHERE}:51820" in done.stderr
    assert result(tmp_path / "cells")["relay"]["refused"] == {}


@contextmanager
def running(namespace: str, program: str) -> Iterator[None]:
    process = subprocess.Popen([*INSIDE, namespace, sys.executable, "-c", program])
    try:
        yield
    finally:
        process.kill()
        process.wait()


TRY = f"""
import urllib.request as u
for place in ('[{THERE}]', 'web.example.net'):
    try:
        print(u.urlopen(f'http://{{place}}:8080/', timeout=60).read().decode())
    except OSError as error:
        print(place, error)
"""


@pytest.mark.parametrize("engine", ["namespace", "embedded"])
def test_a_gateway_of_its_own(
    namespaces: tuple[str, str], tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an address, and by a name that has an address of each family."""
    (tmp_path / "config/wgcell").mkdir(parents=True)
    (tmp_path / "config/wgcell/config.toml").write_text(f'gateway_engine = "{engine}"\n')
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    host, server = namespaces
    rules = ("--allow", f"[{THERE}]:8080", "--allow", "web.example.net:8080")
    with running(server, WEB), running(server, NAMES):
        done = cell(host, tmp_path / "cells", *rules, "--", "python3", "-c", TRY)
    assert (done.returncode, done.stdout.split()) == (0, ["here", "here"]), (
        done.stdout + done.stderr
    )
    assert "opens nothing" not in done.stderr
    assert result(tmp_path / "cells")["relay"]["refused"] == {}
