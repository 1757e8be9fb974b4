"""Cells of real virtual machines, through the command line, as a user starts them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from tests.support.cells import WGCELL, Cell, Ended


@pytest.fixture
def wgcell() -> str:
    """The command under test."""
    return WGCELL


@pytest.fixture
def cell(tmp_path: Path) -> Cell:
    """Run one cell to its end: ``cell(*options, command=[...])``."""

    def run(*options: str, command: list[str], timeout: float = 170) -> Ended:
        state = tmp_path / "cells"
        done = subprocess.run(
            [WGCELL, "run", "--name", "t", "--state-dir", str(state), *options, "--", *command],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        folders = sorted(state.glob("t-*"), key=lambda path: path.stat().st_mtime)
        assert folders, done.stderr
        return Ended(done.returncode, done.stdout, done.stderr, folders[-1])

    return run


class _Data(BaseHTTPRequestHandler):
    """``/data.csv``; ``/zeros/N`` of so many bytes; anything else has two million."""

    def do_GET(self) -> None:
        _, _, size = self.path.rpartition("/")
        body = (
            b"name,value\na,1\n"
            if size == "data.csv"
            else bytes(int(size) if size.isdecimal() else 2_000_000)
        )
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def service() -> Iterator[str]:
    """A data service on loopback, as ``--service`` takes it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Data)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"10.99.0.5:80=127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()
