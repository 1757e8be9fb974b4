"""wgcell's own words, on standard error: a cell's events as lines a person reads.

Everything that goes to a terminal is made fit for it here or in `wgcell.display`: a workload's
bytes pass a `TerminalFilter`, a stranger's text within our own lines is spelled out by `clean`.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import IO, Any, TextIO, cast

from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.text import Text

from wgcell.cli.escapes import RESET, TerminalFilter
from wgcell.cli.voice import Voice
from wgcell.display import one_line, paragraph
from wgcell.errors import HostError, WgcellError
from wgcell.gateway.peer.tally import Tally

__all__ = [
    "Narrator",
    "SafeConsole",
    "Words",
    "all_said",
    "as_json",
    "clean",
    "complain",
    "console",
    "out",
    "printable",
    "raw_sink",
    "restore",
    "sink",
    "speak_aside",
    "warn",
    "writer",
]

_filters: list[TerminalFilter] = []
"""Of this process's streams that are terminals, most often the one that wgcell speaks on too."""


class _OwnWords:
    """Standard error as rich writes to it: words that can't be said are no error.

    A workload may have left the terminal coloured, concealed, or in the midst of a line. So the
    first words after it begin with a reset, on a line of their own, in one write: the terminal
    puts nothing of another thread's between.
    """

    encoding = "utf-8"
    voice: Voice | None = None

    def write(self, text: str) -> int:
        if self.voice is not None:
            self.voice.say(text)
            return len(text)
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self._stream().write(_behind_others(text))
        return len(text)

    def flush(self) -> None:
        if self.voice is None:
            with contextlib.suppress(OSError, ValueError, AttributeError):
                self._stream().flush()

    @staticmethod
    def _stream() -> IO[str]:
        """Standard error itself: while a spinner stands, rich has put our own console before it."""
        stream: IO[str] = getattr(sys.stderr, "rich_proxied_file", sys.stderr)
        return stream

    def isatty(self) -> bool:
        return sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()

    def fileno(self) -> int:
        return sys.stderr.fileno()


def _behind_others(text: str) -> str:
    """``text`` as it must be said now, behind what a workload has left on the terminal."""
    dirty = [one for one in _filters if one.coloured or one.line_open]
    if dirty:
        text = RESET + ("\n" if any(one.line_open for one in dirty) else "") + text
        for one in dirty:
            one.mark_reset()
    return text


class SafeConsole(Console):
    """A console that no text moves, whoever printed it and forgot to clean it.

    Newlines pass, for they may be our own: a stranger's text goes through `clean` before.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        """What `Console.render_str` makes of ``text``, its unsafe characters spelled out."""
        return super().render_str(paragraph(text), **options)


_own_words = _OwnWords()
console = SafeConsole(file=cast(IO[str], _own_words), highlight=False, soft_wrap=True)


def speak_aside() -> None:
    """From now on a thread says our words: nobody waits for whoever reads standard error."""
    try:
        write, encoding = raw_sink(sys.stderr.fileno()), sys.stderr.encoding
    except (OSError, ValueError, AttributeError):
        return  # there is none
    sys.stderr.flush()
    _own_words.voice = Voice(
        lambda text: write(_behind_others(text).encode(encoding, "backslashreplace"))
    )


def all_said() -> bool:
    """Wait until our words are said, if somebody listens; whether they are."""
    return _own_words.voice is None or _own_words.voice.finish()


def printable(data: bytes) -> bytes:
    r"""``data`` with control characters spelled out (``\x1b``); tab and newline stay."""
    return paragraph(data.decode("utf-8", "surrogateescape").replace("\r\n", "\n")).encode()


def clean(value: object, most: int = 0) -> str:
    """A stranger's text on one line, for rich."""
    return escape(one_line(value, most))


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


def sink(stream: TextIO) -> Callable[[bytes], None]:
    """Where a workload's bytes go: filtered on a terminal, untouched in a pipe or a file."""
    write = raw_sink(stream.fileno())
    if not stream.isatty():
        return write
    terminal = TerminalFilter()
    _filters.append(terminal)
    return lambda data: write(terminal.feed(data))


def writer(stream: TextIO) -> Callable[[bytes], None]:
    """`sink`, for a verb whose output it is: what can't be written is an error with a name."""
    write = sink(stream)
    name = "standard error" if stream is sys.stderr else "standard output"

    def named(data: bytes) -> None:
        try:
            write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise HostError(
                f"{name}: {error.strerror}", hint="what was to be printed is lost, in part or whole"
            ) from error

    return named


def restore() -> None:
    """Take a workload's colours off the terminal; at a run's end."""
    if any(one.coloured for one in _filters):
        for one in _filters:
            one.mark_reset()
        _own_words.write(RESET)


def out(text: str = "", *, end: str = "\n", flush: bool = False) -> None:
    """One or more lines of a verb's result, on standard output. Raises OSError if it can't be."""
    print(paragraph(text), end=end, flush=flush)


def as_json(value: object, indent: int | None = None) -> str:
    """JSON in plain ASCII: nothing in it moves a terminal."""
    return json.dumps(value, indent=indent, default=str)


def warn(text: str) -> None:
    """One line of warning."""
    console.print(f"[yellow]wgcell:[/] {clean(text)}")


def complain(error: WgcellError | str, *more: str) -> None:
    """An error: its first line behind our name, the others indented.

    Text of strangers within it can't begin a line that looks like wgcell's own.
    """
    first, *rest = map(paragraph, str(error).split("\n"))
    console.print(f"[red]wgcell:[/] {escape(first)}")
    for line in (*rest, *map(one_line, more)):
        console.print(escape(line if line.startswith("  ") else f"  {line}"))


class Words(IntEnum):
    """How much a run says of itself."""

    ERRORS = 0
    """``-q``: only an ending that is an error."""
    FEW = 1
    """How it begins, what warns, how it ends."""
    ALL = 2
    """``-v``: each step."""


STATES = {
    "preparing": "preparing the cell",
    "consent": "asking the endpoint for consent",
    "booting": "booting the machine",
    "verifying": "verifying the tunnel from outside",
    "running": "tunnel verified, the workload runs",
    "terminating": "the workload is asked to end, and has its grace period",
    "stopping": "bringing the results home",
}

_COLOURS = {"completed": "green", **dict.fromkeys(("cancelled", "timeout", "incomplete"), "yellow")}


_MOST_REFUSALS = 20
_LONGEST_REASON = 1000
"""Characters; a guest's fault may be 24,000."""


def _table(found: object) -> Mapping[object, object]:
    """``found`` if it is a table, as it is in a record of ours; else none."""
    return found if isinstance(found, dict) else {}


def _listed(found: object) -> Sequence[object]:
    """``found`` if it is a list; else none."""
    return found if isinstance(found, list | tuple) else ()


class Narrator:
    """Tells a cell's events, one line each; a spinner stands while nothing else is said."""

    def __init__(self, words: Words = Words.FEW) -> None:
        self._words = words
        self._status: Status | None = None
        self._tally = Tally()
        self._folder = ""
        self._verdict = ""
        """What is missing of the outputs; the reason of an outcome that is not about that."""
        self._left = ""
        """Why outputs did not land."""
        if console.is_terminal and words >= Words.FEW:
            self._status = console.status("preparing the cell")
            self._status.start()

    def line(self, text: str, words: Words = Words.FEW) -> None:
        """One line, already escaped for rich, if so many ``words`` are wanted."""
        if words <= self._words:
            console.print(f"[dim]wgcell:[/] {text}")

    def __call__(self, event: dict[str, object]) -> None:
        """Tell one event."""
        if "folder" in event:
            self._folder = str(event["folder"])
        match event["event"]:
            case "state" if event["state"] in STATES:
                words = STATES[event["state"]]
                if self._status is not None:
                    self._status.update(words)
                    if event["state"] == "running":
                        self._status.stop()  # from here on the workload's output has the screen
                self.line(words, Words.ALL)
            case "gateway":
                self.line(f"the gateway's engine: {clean(event['engine'])}", Words.ALL)
                if event.get("reason"):
                    self.line(
                        "[yellow]refused connections fail slowly or hang:[/] "
                        f"{clean(event['reason'])}; wgcell doctor names the fix",
                        Words.ALL,
                    )
            case "flow" | "flow_end" | "flows_omitted":
                if self._tally.add(event):
                    why = event.get("reason") or "no rule allows it"
                    what, how = clean(self._tally.what(event)), self._tally.told(event)
                    self.line(f"[yellow]{how}[/] {what} ({clean(why)})", Words.ALL)
            case "walls" if not (event["seal"] and event["jail"]):
                for wall, why in _table(event["missing"]).items():
                    self.line(f"[red]not up:[/] {clean(wall)}: {clean(why)}")
            case "frozen":
                self.line("the machine is frozen and waits; [bold]wgcell ps[/] says how to look in")
            case "path_mtu":
                self.line(
                    f"the path carries {clean(event['path'])} bytes: the tunnel's MTU is now "
                    f"{clean(event['tunnel'])}, and was {clean(event['before'])}",
                    Words.ALL,
                )
            case "out_of_memory":
                victim = clean(event["victim"] or "a process")
                self.line(
                    "[yellow]the guest's memory was used up:[/] its kernel "
                    f"killed {victim}; --memory gives it more"
                )
            case "exited":
                self.line(f"the workload has ended with {clean(event['exit_code'])}", Words.ALL)
            case "reader_stopped":
                self.line(
                    f"[red]cut off:[/] {clean(event['stream'])} after {clean(event['delivered'])} "
                    "bytes: its reader did not read on"
                )
            case "changed":
                self.line(f"[red]the guest's {clean(event.get('what'))} changed[/]")
            case "outputs":
                for left_out in _listed(event.get("left_out")):
                    self.line(f"[yellow]output left out:[/] {clean(left_out)}")
                self._verdict = str(event.get("verdict") or event.get("reason") or "")
                if "files" in event:
                    files, size = clean(event["files"]), clean(event["bytes"])
                    self.line(f"{files} files home, {size} bytes", Words.ALL)
            case "landed":
                if event["whole"]:
                    self.line(clean(event["sentence"]))
                else:
                    self._left = str(event["sentence"])
            case "ended":
                self._ended(event)

    def _ended(self, event: dict[str, object]) -> None:
        self.stop()
        for refusal in self._tally.summary()[:_MOST_REFUSALS]:
            self.line(clean(refusal))
        if learned := self._tally.learned():
            self.line("learned; this would have sufficed:")
            self.line(clean(" ".join(f"--allow {rule}" for rule in learned)))
        outcome = str(event["outcome"])
        if self._verdict and outcome != "incomplete":
            self.line(f"[yellow]{clean(self._verdict)}[/]")
        if self._left and self._left != event["reason"]:
            self.line(f"[yellow]{clean(self._left)}[/]", Words.ERRORS)
        colour = _COLOURS.get(outcome, "red")
        told = event["reason"] and outcome != "completed"
        reason = f": {clean(event['reason'], _LONGEST_REASON)}" if told else ""
        kept = f"; records in {clean(self._folder)}" if self._folder else ""
        if outcome == "rogue":
            place = f"{self._folder}/rogue.pcapng" if self._folder else "rogue.pcapng"
            kept = f"; the frame is in {clean(place)}, which Wireshark opens"
        self.line(
            f"[{colour}]{clean(outcome)}[/]{reason} (exit code {clean(event['exit_code'])}){kept}",
            Words.FEW if outcome == "completed" else Words.ERRORS,
        )

    def stop(self) -> None:
        """Take the spinner off the screen."""
        if self._status is not None:
            self._status.stop()
