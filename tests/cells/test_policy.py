"""A running cell's rules, changed from outside, and a port of its own, published. One boot.

::

    host namespace                       world namespace
      wgcell run ── 198.51.100.1 ── veth ── 198.51.100.2, the way out and the name server
      127.0.0.1: a service, a client        203.0.113.7: files.example.com, and an endless stream
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support.requester import INSIDE, WGCELL, ip
from tests.support.waiting import until

pytestmark = [pytest.mark.vm, pytest.mark.timeout(400)]

THERE = "203.0.113.7"
WORLD = f"""
import http.server, socket, socketserver, threading
import dns.message, dns.rrset

class Files(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"files")
    def log_message(self, *words):
        pass

class Endless(socketserver.BaseRequestHandler):
    def handle(self):
        try:
            while True:
                self.request.sendall(bytes(1 << 14))
        except OSError:
            pass

class Names(socketserver.BaseRequestHandler):
    def handle(self):
        asked = dns.message.from_wire(self.request[0])
        (question,) = asked.question
        answer = dns.message.make_response(asked)
        if question.rdtype.name == "A":
            found = dns.rrset.from_text(question.name, 60, "IN", "A", "{THERE}")
            answer.answer.append(found)
        self.request[1].sendto(answer.to_wire(), self.client_address)

for made in (
    http.server.ThreadingHTTPServer(("{THERE}", 8080), Files),
    socketserver.ThreadingTCPServer(("{THERE}", 8081), Endless),
    socketserver.ThreadingUDPServer(("198.51.100.2", 53), Names),
):
    made.daemon_threads = True
    threading.Thread(target=made.serve_forever).start()
print("up", flush=True)
"""
SERVICE = """
import http.server
class Said(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "7")
        self.end_headers()
        self.wfile.write(b"service")
    def log_message(self, *words):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 5432), Said)
print("up", flush=True)
server.serve_forever()
"""
WORKLOAD = """
import http.server, os, socket, threading, time, urllib.request

def say(*words):
    print(*words, flush=True)

def serve():
    server = http.server.ThreadingHTTPServer(("", 8000), http.server.SimpleHTTPRequestHandler)
    server.serve_forever()

def download():
    count = 0
    with socket.create_connection(("203.0.113.7", 8081)) as stream:
        try:
            while data := stream.recv(1 << 16):
                before, count = count, count + len(data)
                if before >> 18 != count >> 18:
                    say("download", count)
        except OSError as error:
            say("cut", error.errno)
        else:
            say("ended")

open("file", "w").write("inside")
threading.Thread(target=serve, daemon=True).start()
say("db", urllib.request.urlopen("http://db.internal:5432/", timeout=60).read().decode())
say("host", socket.gethostbyname("printer.example.com"))
threading.Thread(target=download, daemon=True).start()
last = None
while True:
    try:
        found = urllib.request.urlopen("http://files.example.com:8080/", timeout=20).read().decode()
    except OSError as error:
        found = "refused"
    if found != last:
        say(found)
    last = found
    time.sleep(0.2)
"""


@pytest.fixture
def namespaces() -> Iterator[tuple[str, str]]:
    host, world = f"wgph{os.getpid()}", f"wgpw{os.getpid()}"
    etc = Path("/etc/netns") / host
    for name in (host, world):
        ip("netns", "add", name)
    try:
        ip("link", "add", "v", "netns", host, "type", "veth", "peer", "name", "v", "netns", world)
        for name in (host, world):
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", "v", "up")
        ip("-n", host, "addr", "add", "198.51.100.1/24", "dev", "v")
        ip("-n", world, "addr", "add", "198.51.100.2/24", "dev", "v")
        ip("-n", world, "addr", "add", f"{THERE}/32", "dev", "lo")
        ip("-n", host, "route", "add", "default", "via", "198.51.100.2")
        etc.mkdir(parents=True)
        # What stands for the files of /etc in the host's namespace (ip-netns(8)).
        (etc / "resolv.conf").write_text("nameserver 198.51.100.2\n")
        yield host, world
    finally:
        for name in (host, world):
            ip("netns", "del", name)
        (etc / "resolv.conf").unlink(missing_ok=True)
        if etc.is_dir():
            etc.rmdir()


@contextmanager
def running(namespace: str, program: str) -> Iterator[None]:
    argv = [*INSIDE, namespace, sys.executable, "-c", program]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
        yield
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


class Typing:
    """wgcell in the host's namespace, as a person types it."""

    def __init__(self, namespace: str, cells: Path) -> None:
        self._argv = [*INSIDE, namespace]
        self._env = {**os.environ, "WGCELL_STATE_DIR": str(cells)}

    def __call__(self, *words: str, program: tuple[str, ...] = WGCELL) -> str:
        done = subprocess.run(
            [*self._argv, *program, *words],
            env=self._env,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def fetched(self, place: str) -> str:
        """What a client on the host gets there."""
        fetch = f"import urllib.request as u; print(u.urlopen('http://{place}', timeout=60).read())"
        return self("-c", fetch, program=(sys.executable,))


def test_rules_change_while_it_runs_and_a_port_is_published(
    namespaces: tuple[str, str], tmp_path: Path
) -> None:
    host, world = namespaces
    typed = Typing(host, tmp_path / "cells")
    with ExitStack() as ending:
        ending.enter_context(running(world, WORLD))
        ending.enter_context(running(host, SERVICE))
        options = ["--publish", "0:8000", "--service", "db=127.0.0.1:5432"]
        options += ["--add-host", "printer.example.com:192.0.2.9", "--allow", f"{THERE}:8081"]
        command = ["python3", "-c", WORKLOAD]
        cell = typed("run", "--detach", "--name", "t", *options, "--", *command).strip()
        ending.callback(typed, "stop", "--now", cell)

        def lines(*begin: str) -> list[str]:
            return [line for line in typed("logs", cell).splitlines() if line.startswith(begin)]

        def comes(happened: Callable[[], object], what: str) -> None:
            try:
                until(happened, what, within=120, every=0.5)
            except AssertionError as error:
                raise AssertionError(f"{error}\n{typed('logs', cell)}") from None

        # A service has a name, and /etc/hosts a line.
        comes(lambda: lines("db service"), "a service by its name")
        comes(lambda: lines("host 192.0.2.9"), "a line of /etc/hosts")
        # The name is refused; it is open once it is allowed, and refused again behind its time.
        comes(lambda: len(lines("refused")) == 1, "a name that no rule allows")
        answer = typed("allow", cell, "files.example.com:8080", "--for", "20s")
        assert answer.startswith(f"{cell}: allow files.example.com:8080 until ")
        comes(lambda: lines("files"), "the control: it is open meanwhile")
        assert "allow files.example.com:8080" in typed("policy", cell)
        comes(lambda: len(lines("refused")) == 2, "its time is over")
        assert "allow files.example.com:8080" not in typed("policy", cell)
        # The download runs; a deny cuts it.
        counted = len(lines("download"))
        comes(lambda: len(lines("download")) > counted, "the control: the download goes on")
        assert not lines("cut", "ended")
        assert "1 open flows cut" in typed("deny", cell, f"{THERE}:8081")
        comes(lambda: lines("cut", "ended"), "a download that a deny cuts")
        # A port of the guest's, from this host.
        place = typed("port", cell, "8000").strip()
        assert place.startswith("127.0.0.1:")
        assert typed.fetched(f"{place}/file") == "b'inside'\n"
        assert typed("port", cell) == f"8000 -> {place}\n"
    _as_recorded(tmp_path / "cells" / cell)


def _as_recorded(folder: Path) -> None:
    lines = (folder / "events.jsonl").read_text().splitlines()
    events: list[dict[str, Any]] = list(map(json.loads, lines))
    changes = [event for event in events if event["event"] == "policy_changed"]
    assert [(one["change"], one["rule"], one["by"]) for one in changes] == [
        ("allow", "allow files.example.com:8080", os.getuid()),
        ("expired", "allow files.example.com:8080", os.getuid()),
        ("deny", f"deny {THERE}:8081", os.getuid()),
    ]
    assert changes[0]["until"] is not None
    flows = [event for event in events if event["event"] == "flow"]
    (published,) = (flow for flow in flows if flow["rule"].startswith("publish "))
    assert (published["verdict"], published["port"]) == ("allow", 8000)
    result = json.loads((folder / "result.json").read_text())
    assert (result["outcome"], result["relay"]["refused"]) == ("cancelled", {})
