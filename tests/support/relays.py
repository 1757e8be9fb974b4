"""The relay as its own process, between sockets of a test's."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
from typing import Any

from tests.support.messages import ENDPOINT, GUEST
from tests.support.waiting import GENEROUS

from wgcell.processes import namespace_holder


class Process:
    """The relay as its own process, between sockets of the test's."""

    def __init__(self) -> None:
        self.nic, nic = socket.socketpair()
        self.control, control = socket.socketpair()
        self.endpoint = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.endpoint.bind(("127.0.0.1", 0))
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.connect(self.endpoint.getsockname())
        self.guest_port = udp.getsockname()
        argv = [
            *namespace_holder(root=os.geteuid() == 0),
            sys.executable,
            "-P",
            "-m",
            "wgcell.relay",
        ]
        argv += [str(control.fileno()), ""]
        self.process = subprocess.Popen(argv, pass_fds=(control.fileno(),))
        socket.send_fds(self.control, [b"\0"], [nic.fileno(), udp.fileno()])
        for sock in (nic, udp, control):
            sock.close()
        for sock in (self.nic, self.control, self.endpoint):
            sock.settimeout(10)
        self.lines = self.control.makefile("r")
        self.tell(
            "configure",
            guest_public_key=base64.b64encode(GUEST).decode(),
            endpoint_public_key=base64.b64encode(ENDPOINT).decode(),
            mtu=1420,
        )
        assert [self.event()["event"] for _ in range(2)] == ["begun", "ready"]

    def tell(self, command: str, **fields: Any) -> None:
        self.control.sendall(json.dumps({"order": command, **fields}).encode() + b"\n")

    def renew(self, endpoint: socket.socket, *, met: bool) -> tuple[str, int]:
        """Another way out, to ``endpoint``; where it comes from."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as fresh:
            fresh.connect(endpoint.getsockname())
            words = json.dumps({"order": "renewed", "met": met}).encode() + b"\n"
            socket.send_fds(self.control, [words], [fresh.fileno()])
            return fresh.getsockname()

    def event(self, *names: str) -> dict[str, Any]:
        while True:
            event: dict[str, Any] = json.loads(self.lines.readline())
            if not names or event["event"] in names:
                return event

    def close(self) -> None:
        self.lines.close()
        for sock in (self.nic, self.control, self.endpoint):
            sock.close()
        assert self.process.wait(GENEROUS) is not None
