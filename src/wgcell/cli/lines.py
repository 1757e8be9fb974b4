"""``--json``: a cell's events, and its workload's output, as one JSON object a line.

An event's line is byte for byte the one in ``events.jsonl``: a reader can hash the chain. The
workload's output comes between, as lines of another kind, which have ``output`` and no ``event``,
``seq`` or ``prev``. They are not part of the chain; the event ``records`` has the logs' digests::

    {"cell":"…","output":"stdout","text":"…"}      or, where it is not UTF-8,
    {"cell":"…","output":"stdout","base64":"…"}

A thread writes. The supervisor's loop never waits for the reader; the workload's output does, as in
any pipe.
"""

from __future__ import annotations

import base64
import codecs
import json
import queue
import threading
from collections.abc import Callable, Sequence

from wgcell.cell.events import Event

__all__ = ["JsonLines", "following"]

_PATIENCE = 5.0
"""Seconds without a line taken, at the end, after which a reader is given up."""

_Item = tuple[bytes, "threading.Event | None"]


class JsonLines:
    """Lines to one descriptor; `close` at the end. ``write`` raises OSError when it can't.

    ``place`` is the descriptor's name in messages.
    """

    def __init__(
        self, cell: str, write: Callable[[bytes], None], place: str = "standard output"
    ) -> None:
        self._cell = cell
        self._write = write
        self._lines: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._taken = threading.Condition()
        self._decoders: dict[str, codecs.IncrementalDecoder] = {}
        self._count = 0
        self._over = False
        self.failure: OSError | None = None
        """Why a line could not be written; that line and all later ones are lost."""
        self._place = place
        threading.Thread(target=self._carry, name="json lines", daemon=True).start()

    @property
    def fault(self) -> str:
        """`failure` in words. Empty without one, and if the reader is gone: it misses no line."""
        if self.failure is None or isinstance(self.failure, BrokenPipeError):
            return ""
        return f"{self._place}: {self.failure.strerror}: events are missing in it"

    def event(self, event: Event) -> None:
        """Print an event's line; does not wait."""
        self._lines.put((event.line + b"\n", None))

    def output(self, stream: str) -> Callable[[bytes], None]:
        """A sink for the workload's ``stdout`` or ``stderr``. Waits until each part is written."""
        decoder = self._decoders[stream] = codecs.getincrementaldecoder("utf-8")()

        def take(data: bytes) -> None:
            # What the decoder holds back of a character that was cut off comes first.
            whole = decoder.getstate()[0] + data
            try:
                text = decoder.decode(data)
            except UnicodeDecodeError:
                decoder.reset()
                self._wait_for(stream, "base64", _base64(whole))
            else:
                if text:
                    self._wait_for(stream, "text", text)

        return take

    def close(self) -> None:
        """Wait until all is written, but not for a reader that does not read."""
        for stream, decoder in self._decoders.items():
            if rest := decoder.getstate()[0]:  # of a character that never became whole
                self._lines.put((self._line(stream, "base64", _base64(rest)), None))
        self._lines.put(None)
        with self._taken:
            while not self._over:
                before = self._count
                self._taken.wait(_PATIENCE)
                if not self._over and self._count == before:
                    return

    def _wait_for(self, stream: str, kind: str, text: str) -> None:
        if self.failure is not None:
            raise self.failure
        written = threading.Event()
        self._lines.put((self._line(stream, kind, text), written))
        written.wait()
        if self.failure is not None:
            raise self.failure

    def _line(self, stream: str, kind: str, text: str) -> bytes:
        entry = {"cell": self._cell, "output": stream, kind: text}
        return json.dumps(entry, separators=(",", ":")).encode() + b"\n"

    def _carry(self) -> None:
        while (item := self._lines.get()) is not None:
            line, written = item
            if self.failure is None:
                try:
                    self._write(line)
                except OSError as error:
                    self.failure = error
            if written is not None:
                written.set()
            with self._taken:
                self._count += 1
                self._taken.notify_all()
        with self._taken:
            self._over = True
            self._taken.notify_all()


def following(streams: Sequence[JsonLines], fail: Callable[[str], None]) -> Callable[[Event], None]:
    """A function that prints each event on all ``streams``.

    It calls ``fail`` with the reason, at the next event, if an event could not be printed.
    """

    def follow(event: Event) -> None:
        for stream in streams:
            if stream.fault:
                fail(stream.fault)
            stream.event(event)

    return follow


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
