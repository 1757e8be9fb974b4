"""A cell's supervisor as a process of its own: ``python -m wgcell.supervise``.

`wgcell.client.supervised` starts it, with one `wgcell.cell.start.Start` on its standard input and
three descriptors: where it reports until the tunnel is verified, its lifeline, and a pidfd of its
starter. It reads the job, makes the cell and lives its life, as ``wgcell run`` does in the
foreground. When the lifeline closes, or the starter ends, it ends the cell in order; unless it was
told to live on. Everything else is asked over the cell's control socket.
"""

from __future__ import annotations

import gc
import os
import queue
import resource
import select
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from io import FileIO

from wgcell import announcement, api, faults
from wgcell.cell.events import Event
from wgcell.cell.folder import check_writable, state_folder
from wgcell.cell.outputs import Landed
from wgcell.cell.provider import load_provider
from wgcell.cell.remark import Remark
from wgcell.cell.start import (
    KEEP,
    LONGEST_START,
    SAID,
    Fault,
    Happened,
    Made,
    Over,
    Said,
    Start,
    Verified,
    decoded,
    failed_of,
)
from wgcell.cell.states import State
from wgcell.errors import WgcellError
from wgcell.image import store
from wgcell.obedience import Interrupted, interruptible, until_its_end

__all__ = ["main", "program"]

STARTER_GONE = "the program that has started the cell has ended, or let it go"
_PATIENCE = 5.0
"""Seconds that a starter has to take the last words."""


class Report:
    """Says words to the starter. A thread does: a starter that does not read holds nobody up."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lines: queue.SimpleQueue[bytes | threading.Event | None] = queue.SimpleQueue()
        """What is to be said; an event is set when all before it was; None is the end."""
        self._thread = threading.Thread(target=self._carry, name="report", daemon=True)
        self._thread.start()
        self._closed = False

    def say(self, word: Said) -> None:
        """Say ``word``, unless the last one was said."""
        if not self._closed:
            self._lines.put(SAID.line(word))

    def deliver(self, word: Said) -> None:
        """Say ``word``, and wait until it can be read, whatever becomes of this process then.

        But not for a starter that is gone, or does not read.
        """
        self.say(word)
        said = threading.Event()
        self._lines.put(said)
        said.wait(_PATIENCE)

    def last(self, word: Said) -> None:
        """Say ``word``, and nothing after it."""
        self.say(word)
        self.close()

    def close(self) -> None:
        """Nothing more is said; the starter hears the end when it has heard the rest."""
        if not self._closed:
            self._closed = True
            self._lines.put(None)

    def finish(self) -> None:
        """Wait until the starter has taken all, but not for one that does not read."""
        self.close()
        self._thread.join(_PATIENCE)

    def _carry(self) -> None:
        is_heard = True
        with os.fdopen(self._fd, "wb", buffering=0) as file:
            while (line := self._lines.get()) is not None:
                if isinstance(line, threading.Event):
                    line.set()
                elif is_heard:
                    is_heard = _written(file, line)


def _written(file: FileIO, line: bytes) -> bool:
    """Write ``line`` whole; False: nobody is there to read."""
    view = memoryview(line)
    try:
        while view:
            view = view[file.write(view) or 0 :]
    except OSError:
        return False
    return True


class Lifeline:
    """Waits for the starter's end, in a thread; and calls the function of `on_end`."""

    def __init__(self, pipe: int, starter: int) -> None:
        self._lock = threading.Lock()
        self._gone = False
        self._end: Callable[[str], None] = _terminate
        self._pipe = pipe
        self._starter = starter
        threading.Thread(target=self._watch, name="lifeline", daemon=True).start()

    def on_end(self, end: Callable[[str], None]) -> None:
        """Have ``end`` called at the starter's end, in any thread, with a reason.

        At once if the starter has ended before.
        """
        with self._lock:
            self._end = end
            if self._gone:
                end(STARTER_GONE)

    def _watch(self) -> None:
        poll = select.poll()
        for fd in (self._pipe, self._starter):
            poll.register(fd, select.POLLIN)
        poll.poll()
        os.set_blocking(self._pipe, False)
        try:
            kept = os.read(self._pipe, 1) == KEEP
        except BlockingIOError:
            kept = False  # the starter is dead; a process that it forked off holds the pipe
        for fd in (self._pipe, self._starter):
            os.close(fd)
        if kept:
            return
        with self._lock:
            self._gone = True
            self._end(STARTER_GONE)


def _terminate(reason: str) -> None:
    """While there is no cell yet: as a signal to end would."""
    os.kill(os.getpid(), signal.SIGTERM)


def _let_go_of_stdio() -> None:
    """Nobody reads us there, and nobody writes to us."""
    for fd, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        void = os.open(os.devnull, mode | os.O_CLOEXEC)
        os.dup2(void, fd)
        os.close(void)


def _build(report: Report) -> api.Build:
    """A function that makes an image, and reports each step."""

    def make(name: str, why: str) -> store.Image:
        from wgcell.guest import scripts
        from wgcell.image import build as builder

        report.say(Remark("normal", False, why))

        def progress(words: str) -> None:
            report.say(Remark("normal", False, words))

        return builder.build(name, progress, scripts(), builder.mirrors())

    return make


def supervise(start: Start, report: Report, lifeline: Lifeline) -> None:
    """One cell, from what starts it to its end. Raises WgcellError, Interrupted."""
    provider = load_provider()
    cells = state_folder(start.cells)
    check_writable(cells)
    with interruptible():
        job = api.read_job(
            start.options, start.file, cells=cells, provider=provider, learn=start.learn
        )
        plan = api.plan(
            job,
            provider=provider,
            allow_endpoints=start.allow_endpoints,
            force=start.force,
            make=_build(report),
        )
        for remark in announcement.about_machine(plan):
            report.say(remark)
        # A cell that has a folder also has a record of its end, however soon it comes.
        lifeline.on_end(lambda reason: None)
        cell = api.Cell(plan, cells)
    os.chdir("/")  # every path is absolute by now, and no file system is held busy
    with cell:
        # Before anything of the cell's runs: a starter must know what died, if this process does.
        report.deliver(Made(cell.id, str(cell.folder.path)))
        for remark in announcement.about_cell(plan, cell.id):
            report.say(remark)
        result = _lived(cell, start, report, lifeline)
        report.last(Over(result.outcome.value, result.exit_code, result.reason))
    if start.remove:
        report.finish()
        cell.folder.remove()


def _lived(cell: api.Cell, start: Start, report: Report, lifeline: Lifeline) -> api.Result:
    def happened(event: Event) -> None:
        report.say(Happened(event.line))
        if event["event"] == "state" and event["state"] == State.RUNNING.value:
            report.last(Verified())

    def land(arrived: api.Arrived) -> Landed:
        try:
            with interruptible():
                return cell.land(arrived, (lambda summary: True) if start.agreed else None)
        except (KeyboardInterrupt, Interrupted) as end:
            where = f"what has not landed is in {cell.folder.path / 'outputs'}"
            return Landed(f"{end} while outputs landed; {where}", False, interrupted=True)

    def nowhere(data: bytes) -> None:
        """It is in the cell's log."""

    return until_its_end(
        cell, event=happened, stdout=nowhere, stderr=nowhere, land=land, began=lifeline.on_end
    )


def main(descriptors: Sequence[int]) -> int:
    """Supervise the cell that standard input asks for; what this process exits with.

    ``descriptors`` are those of the report, the lifeline and the starter.
    """
    said, pipe, starter = descriptors
    report, lifeline = Report(said), Lifeline(pipe, starter)
    try:
        start = decoded(sys.stdin.buffer.read(LONGEST_START + 1))
        _let_go_of_stdio()
        supervise(start, report, lifeline)
    except WgcellError as error:
        report.last(failed_of(error))
    except (Interrupted, KeyboardInterrupt):
        pass  # the report breaks off, which says the same
    except Exception as error:
        report.last(Fault(f"{type(error).__name__}: {error}", _kept(error)))
    else:
        return 0
    finally:
        report.finish()
    return 1


def _kept(error: Exception) -> str:
    try:
        return str(faults.keep(error, ["supervise"]))
    except (OSError, WgcellError):
        return ""


def program() -> None:
    """The process: quick to start and quick to be gone."""
    gc.freeze()
    # A private key in memory belongs in no core dump: this process's, nor any that it starts.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os._exit(main([int(word) for word in sys.argv[1:4]]))


if __name__ == "__main__":
    program()
