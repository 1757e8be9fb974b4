"""The host's address changes under a running cell, and where its endpoint's name leads.

The workload's download goes on, over an address that was vetted as the first one was.

::

    host namespace                       server namespace
      wgcell run ── 10.77.0.1 ─┐  veth  ┌─ 10.77.0.254 ── wgcell gateway run, a slow data service
                   (10.77.0.2)─┘        └─(10.77.0.253)
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.requester import INSIDE, WGCELL, ip, requester, serving, written
from tests.support.waiting import lull, until

NAME = "gateway.example.com"
SLOW = """
import http.server
class Slow(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        import time
        self.send_response(200)
        self.send_header("Content-Length", "2000000")
        self.end_headers()
        for _ in range(200):
            self.wfile.write(bytes(10000))
            time.sleep(0.1)
http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Slow).serve_forever()
"""


@pytest.fixture
def namespaces() -> Iterator[tuple[str, str]]:
    host, server = f"wgh{os.getpid()}", f"wgs{os.getpid()}"
    for name in (host, server):
        ip("netns", "add", name)
    try:
        ip("link", "add", "v", "netns", host, "type", "veth", "peer", "name", "v", "netns", server)
        ip("-n", host, "addr", "add", "10.77.0.1/24", "dev", "v")
        ip("-n", server, "addr", "add", "10.77.0.254/24", "dev", "v")
        for name in (host, server):
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", "v", "up")
        yield host, server
    finally:
        for name in (host, server):
            ip("netns", "del", name)


@pytest.fixture
def hosts(namespaces: tuple[str, str]) -> Iterator[Path]:
    """What stands for /etc/hosts in the host's namespace (ip-netns(8))."""
    folder = Path("/etc/netns") / namespaces[0]
    folder.mkdir(parents=True)
    try:
        (folder / "hosts").write_text(f"10.77.0.254 {NAME}\n")
        yield folder / "hosts"
    finally:
        (folder / "hosts").unlink()
        folder.rmdir()


def events_of(cells: Path, event: str) -> list[dict[str, str]]:
    (folder,) = cells.iterdir()
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


@pytest.mark.vm
@pytest.mark.timeout(200)
def test_a_changed_address_of_the_host_or_the_endpoint_breaks_no_download(
    namespaces: tuple[str, str], hosts: Path, tmp_path: Path
) -> None:
    host, server = namespaces
    fetch = "import urllib.request as u; r = u.urlopen('http://10.99.0.5/', timeout=60)\n"
    fetch += "print('up', flush=True); print(len(r.read()))"
    with requester(server, tmp_path, NAME, SLOW) as vpn:
        cell = subprocess.Popen(
            [
                *(*INSIDE, host, *WGCELL, "run", "--vpn", str(vpn)),
                *("--allow-endpoint", "10.77.0.252/30", "--state-dir", str(tmp_path / "cells")),
                *("--", "python3", "-c", fetch),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert cell.stdout is not None
            assert cell.stdout.readline() == "up\n", cell.communicate()[1]
            lull(2)
            # The name leads where no cell may go: refused, as at the start; the old socket is kept.
            hosts.write_text(f"192.168.9.9 {NAME}\n")
            ip("-n", host, "addr", "del", "10.77.0.1/24", "dev", "v")
            ip("-n", host, "addr", "add", "10.77.0.2/24", "dev", "v")

            def refusals() -> list[dict[str, Any]]:
                assert cell.poll() is None
                return events_of(tmp_path / "cells", "endpoint_refused")

            refused = until(refusals)
            assert "192.168.9.9" in refused[0]["reason"]
            assert not events_of(tmp_path / "cells", "socket_renewed")
            # Then to the endpoint's own new address.
            ip("-n", server, "addr", "del", "10.77.0.254/24", "dev", "v")
            ip("-n", server, "addr", "add", "10.77.0.253/24", "dev", "v")
            hosts.write_text(f"10.77.0.253 {NAME}\n")
            stdout, stderr = cell.communicate(timeout=120)
        finally:
            cell.terminate()
            cell.communicate()
    assert cell.returncode == 0, stderr
    assert stdout == "2000000\n"
    renewed = events_of(tmp_path / "cells", "socket_renewed")
    assert renewed[0]["source"] == "10.77.0.2"
    assert renewed[0]["endpoint"] == "10.77.0.253:51820"
    (folder,) = (tmp_path / "cells").iterdir()
    assert json.loads((folder / "result.json").read_text())["relay"]["refused"] == {}


@pytest.mark.vm
@pytest.mark.timeout(200)
def test_a_guest_that_only_listens_shakes_hands_with_an_endpoint_that_has_moved(
    namespaces: tuple[str, str], hosts: Path, tmp_path: Path
) -> None:
    """The endpoint is started anew at its new address, knows no session, and stays silent."""
    host, server = namespaces
    config, vpn = written(tmp_path, NAME)
    cells = tmp_path / "cells"
    with serving(server, config, "import time; time.sleep(300)"):
        cell = subprocess.Popen(
            [
                *(*INSIDE, host, *WGCELL, "run", "--vpn", str(vpn)),
                *("--allow-endpoint", "10.77.0.252/30", "--state-dir", str(cells)),
                *("--", "sh", "-c", "echo up; sleep 200"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert cell.stdout is not None
        up = cell.stdout.readline()
    try:
        assert up == "up\n", cell.communicate()[1]
        for namespace, old, new in ((host, 1, 2), (server, 254, 253)):
            ip("-n", namespace, "addr", "del", f"10.77.0.{old}/24", "dev", "v")
            ip("-n", namespace, "addr", "add", f"10.77.0.{new}/24", "dev", "v")
        hosts.write_text(f"10.77.0.253 {NAME}\n")
        before = len(events_of(cells, "handshake"))
        with serving(server, config, "import time; time.sleep(300)"):
            until(lambda: events_of(cells, "socket_renewed"))
            # Its session lives for two minutes more: without a reason, it would keep to it.
            until(lambda: len(events_of(cells, "handshake")) > before, within=80)
            assert events_of(cells, "socket_renewed")[0]["met"]
            assert cell.poll() is None
    finally:
        cell.terminate()
        cell.communicate()
