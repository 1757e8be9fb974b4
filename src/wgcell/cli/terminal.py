"""The terminal: wgcell's own lines on standard error, a verb's result on standard output.

Everything for a terminal is made safe here or in `wgcell.display`: a workload's bytes pass a
`TerminalFilter`, and `clean` escapes a stranger's text within a line of wgcell's.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
from collections.abc import Callable
from typing import IO, Any, TextIO, cast

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from wgcell.cli.background import BackgroundWriter
from wgcell.cli.escapes import RESET, TerminalFilter
from wgcell.display import one_line, paragraph
from wgcell.errors import HostError, WgcellError

__all__ = [
    "SafeConsole",
    "as_json",
    "clean",
    "complain",
    "console",
    "finish_writing",
    "is_raw",
    "out",
    "printable",
    "raw_sink",
    "restore",
    "shown",
    "sink",
    "warn",
    "write_in_background",
    "writer",
]

_filters: list[TerminalFilter] = []
"""The filters of this process's streams that are terminals. wgcell's own lines go there too."""


class _StandardError:
    """Standard error, for rich: a line that can't be written is no error.

    A workload may have left the terminal coloured, concealed, or within a line. So the first line
    behind its output begins with a reset, and a newline if needed. Both go in one write with the
    line, so that no other thread writes between them.
    """

    encoding = "utf-8"
    background: BackgroundWriter | None = None
    raw = False
    """The terminal is a program's in a cell: a newline alone does not begin a line."""

    def write(self, text: str) -> int:
        if self.background is not None:
            self.background.write(text)
            return len(text)
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self._stream().write(_reset_before(text))
        return len(text)

    def flush(self) -> None:
        if self.background is None:
            with contextlib.suppress(OSError, ValueError, AttributeError):
                self._stream().flush()

    @staticmethod
    def _stream() -> IO[str]:
        """Standard error itself: while a spinner is shown, rich has a proxy in its place."""
        stream: IO[str] = getattr(sys.stderr, "rich_proxied_file", sys.stderr)
        return stream

    def isatty(self) -> bool:
        return sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()

    def fileno(self) -> int:
        return sys.stderr.fileno()


def _reset_before(text: str) -> str:
    """``text`` behind a reset, if a workload has left the terminal coloured or within a line."""
    if _standard_error.raw:
        return f"{RESET}\r\n" + text.replace("\n", "\r\n")
    dirty = [one for one in _filters if one.coloured or one.line_open]
    if dirty:
        text = RESET + ("\n" if any(one.line_open for one in dirty) else "") + text
        for one in dirty:
            one.mark_reset()
    return text


class SafeConsole(Console):
    """A console on which no text controls the terminal, even if its caller did not `clean` it.

    Newlines pass, because they may be wgcell's own; `clean` escapes those of a stranger.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        """As `Console.render_str`, with the unsafe characters of ``text`` escaped."""
        return super().render_str(paragraph(text), **options)


_standard_error = _StandardError()
console = SafeConsole(file=cast(IO[str], _standard_error), highlight=False, soft_wrap=True)


def write_in_background() -> None:
    """Let a thread write the lines: a reader of standard error that stops blocks nothing else."""
    try:
        write, encoding = raw_sink(sys.stderr.fileno()), sys.stderr.encoding
    except (OSError, ValueError, AttributeError):
        return  # there is no standard error
    sys.stderr.flush()
    _standard_error.background = BackgroundWriter(
        lambda text: write(_reset_before(text).encode(encoding, "backslashreplace"))
    )


def finish_writing() -> bool:
    """Wait until all lines are written, if they are read at all; whether they are written."""
    return _standard_error.background is None or _standard_error.background.finish()


def is_raw(*, on: bool) -> None:
    """From now on the terminal is a program's in a cell; or it is so no more."""
    _standard_error.raw = on


def printable(data: bytes) -> bytes:
    r"""``data`` with its control characters escaped (``\x1b``), but for tab and newline."""
    return paragraph(data.decode("utf-8", "surrogateescape").replace("\r\n", "\n")).encode()


def clean(value: object, most: int = 0) -> str:
    """A stranger's text as one line, escaped for rich; ``most`` characters, if not 0."""
    return escape(one_line(value, most))


def raw_sink(fd: int) -> Callable[[bytes], None]:
    """A function that writes all of its data to ``fd``, and blocks meanwhile. Raises OSError."""

    def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(fd, view) :]
            except BlockingIOError:
                # Another process has made this open file non-blocking.
                select.select((), (fd,), ())

    return write


def shown(stream: TextIO) -> Callable[[bytes], bytes]:
    """The bytes of a workload that are written to ``stream``: filtered for a terminal, else all."""
    if not stream.isatty():
        return bytes
    terminal = TerminalFilter()
    _filters.append(terminal)
    return terminal.feed


def sink(stream: TextIO) -> Callable[[bytes], None]:
    """A function for a workload's bytes: filtered on a terminal, unchanged in a pipe or a file."""
    write, passed = raw_sink(stream.fileno()), shown(stream)
    return lambda data: write(passed(data))


def writer(stream: TextIO) -> Callable[[bytes], None]:
    """A `sink` for a verb that prints records. Raises HostError, which names the stream."""
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
    """Reset the colours that a workload has left on the terminal."""
    if any(one.coloured for one in _filters):
        for one in _filters:
            one.mark_reset()
        _standard_error.write(RESET)


def out(text: str = "", *, end: str = "\n", flush: bool = False) -> None:
    """Print lines of a verb's result on standard output. Raises OSError."""
    print(paragraph(text), end=end, flush=flush)


def as_json(value: object, indent: int | None = None) -> str:
    """JSON in plain ASCII, which can't control a terminal."""
    return json.dumps(value, indent=indent, default=str)


def warn(text: str) -> None:
    """Print a warning, as one line."""
    console.print(f"[yellow]wgcell:[/] {clean(text)}")


def complain(error: WgcellError | str, *more: str) -> None:
    """Print an error: its first line behind wgcell's name, the others indented.

    So a stranger's text in it can't forge a line of wgcell's.
    """
    first, *rest = map(paragraph, str(error).split("\n"))
    console.print(f"[red]wgcell:[/] {escape(first)}")
    for line in (*rest, *map(one_line, more)):
        console.print(escape(line if line.startswith("  ") else f"  {line}"))
