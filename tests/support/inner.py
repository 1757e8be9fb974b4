"""An agent's workload and sessions on this machine: see `tests.support.inner_agent`."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.guests import CONFIG
from tests.support.openers import Opener, command
from tests.support.waiting import GENEROUS, until

from wgcell.guest import protocol
from wgcell.guest.config import GuestConfig, encode_config
from wgcell.guest.frames import Command
from wgcell.guest.walls import Wall

__all__ = ["CONFINED", "OPEN", "Inner", "config", "shell"]

CONFINED, OPEN = frozenset({Wall.PRIVILEGES}), frozenset[Wall]()

_PROGRAM = Path(__file__).with_name("inner_agent.py")
_PORTS = ("control", "stdout", "stderr", "sessions")


def config(*words: str, **changed: Any) -> GuestConfig:
    """A guest's configuration; without ``words``, it has no command."""
    given = {"walls": CONFINED, "command": words, "environment": (("A", "x y"),), **changed}
    return replace(CONFIG, **given)


def shell(text: str, **given: Any) -> Command:
    """A shell's command."""
    return command("sh", "-c", text, **given)


class Inner:
    """One, while the context lasts. ``before``: what it executes before anything is set up."""

    def __init__(self, root: Path, config: GuestConfig, before: str = "") -> None:
        ends = {name: socket.socketpair() for name in _PORTS}
        self.ports = {name: ours for name, (ours, _) in ends.items()}
        theirs = [other for _, other in ends.values()]
        # Far above those that the program wants them at.
        for number, other in enumerate(theirs):
            os.set_blocking(other.fileno(), number == 0)
        moves = " ".join(f"{at}<&{other.fileno()}" for at, other in enumerate(theirs, start=3))
        argv = [sys.executable, str(_PROGRAM), str(root)]
        self.process = subprocess.Popen(
            # In a pid namespace, which ends with it: what hangs is not left behind.
            ["unshare", "--pid", "--fork", "--kill-child", "bash", "-c",
             f'exec "$@" {moves}', "bash", *argv],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[other.fileno() for other in theirs],
        )  # fmt: skip
        for other in theirs:
            other.close()
        self.opener = Opener(self.ports["sessions"])
        self.printed = {name: bytearray() for name in protocol.STREAMS}
        self._threads = [
            threading.Thread(target=self._read, args=(name,), daemon=True)
            for name in protocol.STREAMS
        ]
        self.order(encode_config(config))
        assert self.process.stdin is not None
        self.process.stdin.write(before.encode())
        self.process.stdin.close()

    def __enter__(self) -> Inner:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.kill()
        assert self.process.stderr is not None
        said = self.process.stderr.read().decode("utf-8", "replace")
        self.process.stderr.close()
        self.process.wait()
        for thread in self._threads:
            thread.join(GENEROUS)
        for port in self.ports.values():
            port.close()
        assert not said, said

    def order(self, line: bytes) -> None:
        """Something on the control port."""
        self.ports["control"].sendall(line)

    def descriptors(self) -> int:
        """How many the agent has open."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return len(os.listdir(f"/proc/{children.split()[0]}/fd"))

    def until_printed(self, text: bytes, stream: str = "stdout") -> None:
        """Wait until the workload has printed that."""
        until(lambda: text in self.printed[stream], f"{text!r} in {self.printed}")

    def ended(self) -> protocol.Exited:
        """Wait for the workload's end, and all that it printed."""
        self.ports["control"].settimeout(GENEROUS)
        with self.ports["control"].makefile("rb") as lines:
            line = lines.readline()
        message = protocol.parse(line)
        assert isinstance(message, protocol.Exited), message
        until(lambda: len(self.printed["stdout"]) >= message.stdout, "all of stdout")
        until(lambda: len(self.printed["stderr"]) >= message.stderr, "all of stderr")
        return message

    def _read(self, name: str) -> None:
        with contextlib.suppress(OSError):
            while data := self.ports[name].recv(1 << 16):
                self.printed[name] += data
