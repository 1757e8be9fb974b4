"""wgcell's own words, on standard error: a cell's events as lines a person reads.

Bytes of the guest's never reach a terminal as they are: control characters could rewrite what the
user sees, or make the terminal answer.
"""

from __future__ import annotations

import os
import re
import select
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from wgcell.gateway.flows import Tally

__all__ = ["Narrator", "printable", "raw_sink", "sink", "warn"]

_CONTROL = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]")
_C1 = re.compile("[\x80-\x9f\u202a-\u202e\u2066-\u2069]")

console = Console(stderr=True, highlight=False, soft_wrap=True)


def printable(data: bytes) -> bytes:
    r"""``data`` with control characters spelled out (``\x1b``); tab and newline stay."""
    plain = (
        _CONTROL.sub(lambda match: b"\r" if match[0] == b"\r" else b"\\x%02x" % match[0][0], data)
        .replace(b"\r\n", b"\n")
        .replace(b"\r", b"\\x0d")
    )
    text = plain.decode("utf-8", "backslashreplace")
    return _C1.sub(lambda match: f"\\u{ord(match[0]):04x}", text).encode()


def raw_sink(fd: int) -> Callable[[bytes], None]:
    """Write to ``fd`` as it comes, all of it, however long that takes. Raises OSError."""

    def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(fd, view) :]
            except BlockingIOError:
                # Somebody else made this open file non-blocking.
                select.select((), (fd,), ())

    return write


def sink(stream: Any) -> Callable[[bytes], None]:
    """Where a workload's bytes go: escaped on a terminal, untouched in a pipe or a file."""
    write = raw_sink(stream.fileno())
    if not stream.isatty():
        return write
    return lambda data: write(printable(data))


def warn(text: str) -> None:
    """One line of warning."""
    console.print(f"[yellow]wgcell:[/] {escape(text)}")


def _clean(value: Any) -> str:
    return escape(printable(str(value).encode("utf-8", "replace")).decode())


STATES = {
    "preparing": "preparing the cell",
    "consent": "asking the endpoint for consent",
    "booting": "booting the machine",
    "verifying": "verifying the tunnel from outside",
    "running": "tunnel verified, the workload runs",
    "terminating": "the workload is asked to end, and has its grace period",
}

_COLOURS = {"completed": "green", **dict.fromkeys(("cancelled", "timeout", "incomplete"), "yellow")}


_MOST_REFUSALS = 20


class Narrator:
    """Tells a cell's events, one line each; a spinner stands while nothing else is said."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._status: Status | None = None
        self._tally = Tally()
        if console.is_terminal and not quiet:
            self._status = console.status("preparing the cell")
            self._status.start()

    def line(self, text: str) -> None:
        """One line, already escaped for rich."""
        if not self._quiet:
            console.print(f"[dim]wgcell:[/] {text}")

    def __call__(self, event: dict[str, Any]) -> None:
        """Tell one event."""
        match event["event"]:
            case "state" if event["state"] in STATES:
                words = STATES[event["state"]]
                if self._status is not None:
                    self._status.update(words)
                    if event["state"] == "running":
                        self._status.stop()  # from here on the workload's output has the screen
                self.line(words)
            case "gateway" if event.get("reason"):
                self.line(
                    "[yellow]what is refused will end late or in silence:[/] "
                    f"{_clean(event['reason'])}; wgcell doctor names the mend"
                )
            case "flow" | "flows_omitted":
                if self._tally.add(event):
                    why = event.get("reason") or "no rule allows it"
                    what = _clean(self._tally.what(event))
                    self.line(f"[yellow]{self._tally.told(event)}[/] {what} ({_clean(why)})")
            case "walls" if not (event["seal"] and event["jail"]):
                for wall, why in event["missing"].items():
                    self.line(f"[red]not up:[/] {_clean(wall)}: {_clean(why)}")
            case "frozen":
                self.line("the machine is frozen and kept; end it with [bold]wgcell stop[/]")
            case "path_mtu":
                self.line(
                    f"the path carries {event['path']} bytes: the tunnel's MTU is now "
                    f"{event['tunnel']}, and was {event['before']}"
                )
            case "exited":
                self.line(f"the workload has ended with {event['exit_code']}")
            case "reader_stopped":
                self.line(
                    f"[red]cut off:[/] {_clean(event['stream'])} after {event['delivered']} bytes: "
                    "its reader did not read on"
                )
            case "changed":
                self.line(f"[red]the guest's {_clean(event.get('what'))} changed[/]")
            case "outputs":
                for refused in event.get("refused", ()):
                    self.line(f"[red]refused from the guest's files[/] {_clean(refused)}")
                if "files" in event:
                    self.line(f"{event['files']} files home, {event['bytes']} bytes")
            case "ended":
                self.stop()
                for refusal in self._tally.refusals()[:_MOST_REFUSALS]:
                    self.line(_clean(refusal))
                if learned := self._tally.learned():
                    self.line("learned; this would have sufficed:")
                    self.line(_clean(" ".join(f"--allow {rule}" for rule in learned)))
                colour = _COLOURS.get(event["outcome"], "red")
                reason = f": {_clean(event['reason'])}" if event["reason"] else ""
                self.line(
                    f"[{colour}]{event['outcome']}[/]{reason} (exit code {event['exit_code']})"
                )

    def stop(self) -> None:
        """Take the spinner off the screen."""
        if self._status is not None:
            self._status.stop()
