"""``wgcell prove``: the leak battery against this machine's own relay and cells."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from wgcell.cell.states import EXIT_CODES, Outcome
from wgcell.cli.image import build_with_progress
from wgcell.cli.terminal import SafeConsole, clean, console, out
from wgcell.errors import InputError, StateError
from wgcell.home import expanded
from wgcell.image import store
from wgcell.prove import run
from wgcell.prove.battery import pcap
from wgcell.prove.report.content import Report
from wgcell.prove.report.formats import as_json, as_junit
from wgcell.prove.report.page import as_html
from wgcell.prove.request import Mode, Request, steps
from wgcell.prove.runners import boots
from wgcell.prove.testbed.base import Testbed
from wgcell.prove.testbed.prepare import prepare
from wgcell.prove.verdict import Result, Status

__all__ = ["prove"]

MOST_BOOTS = 400
_CLEAN_UP = 5
"""Seconds for cleaning up after Ctrl-C."""
_LINE_INTERVAL = 10.0
"""Seconds between two lines of progress, where no terminal shows a bar."""
_COLOUR = {
    Status.HELD: "green",
    Status.LEAKED: "bold red",
    Status.WRONG: "red",
    Status.NOT_PROVEN: "yellow",
    Status.NOT_PLAYED: "dim",
}


def prove(
    quick: Annotated[
        bool, typer.Option("--quick", help="No VM: frames straight into the relay's process.")
    ] = False,
    long: Annotated[
        bool, typer.Option("--long", help="Every case in every phase, and a storm of frames.")
    ] = False,
    frames: Annotated[
        Path | None,
        typer.Option("--frames", metavar="FILE.pcap", help="Send your own frames instead."),
    ] = None,
    case: Annotated[
        list[str] | None, typer.Option("--case", metavar="NAME", help="Only this case.")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Name every case and stop.")] = False,
    times: Annotated[int, typer.Option(min=1, help="With --long: how often each case.")] = 1,
    storm: Annotated[
        int, typer.Option(min=0, help="With --long: rogue frames in the storm.")
    ] = 1_000_000,
    everything: Annotated[bool, typer.Option("--all", help="Show each case, held or not.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    junit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the report as JUnit XML.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the report as one HTML page.")
    ] = None,
) -> None:
    """Run the leak battery: what a hostile guest tries, watched from outside.

    wgcell prove --quick

    wgcell prove --html report.html

    wgcell prove --long --quick

    wgcell prove --frames attack.pcap

    Exits 0 only if nothing leaked, every verdict was right, and with the wall down every probe
    was seen; else 1.
    """
    if list_:
        _list()
        return
    if frames is None:
        asked = _cases_request(case or (), quick=quick, long=long, times=times, storm=storm)
    elif quick or long or case:
        raise InputError("--frames sends your frames alone: leave --quick, --long and --case out")
    else:
        asked = Request(Mode.FRAMES, frames=pcap.load(frames))
    request = replace(asked, command=shlex.join(["wgcell", *sys.argv[1:]]))
    relays = len(steps(request)) + MOST_BOOTS
    files = _report_files(junit, html)
    report = _run(request, relays, quiet=json)
    if json:
        out(as_json(report))
    else:
        _show(report, everything or bool(request.only) or request.mode is Mode.FRAMES)
    for form, file in files:
        _write(file, form(report))
    # The threads of the endpoint's runtime may crash in the interpreter's own clean-up.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0 if report.passed else 1)


def _list() -> None:
    for case in boots.all_cases():
        out(f"{case.name:<26} {case.verdict.value:<5} {case.group}: {case.does}")


def _cases_request(
    cases: Sequence[str], *, quick: bool, long: bool, times: int, storm: int
) -> Request:
    """A request for the battery's own cases."""
    return Request(
        Mode.LONG if long else Mode.QUICK if quick else Mode.DEFAULT,
        only=tuple(cases),
        times=times,
        storm=storm,
        machines=None if quick else _machines(every=long),
    )


def _machines(*, every: bool) -> boots.Machines:
    """The VMs' image and accelerator; an image that is missing is built first."""
    if not store.exists("debian"):
        console.print("[dim]wgcell:[/] the image debian is not built yet; this is done once")
        build_with_progress("debian")
    return boots.find(every=every)


def _run(request: Request, relays: int, *, quiet: bool) -> Report:
    """Run the request on a testbed for ``relays`` relays. Ctrl-C ends this process."""
    # The endpoint's library logs the junk that the battery sends it.
    logging.getLogger().addHandler(logging.NullHandler())
    # Before any thread starts: a process with several can't enter a user namespace.
    testbed = prepare(relays)
    # asyncio's own handler cancels one task, and only once; this one ends the loop.
    signal.signal(signal.SIGINT, _interrupt)
    try:
        return _run_with_progress(request, testbed, quiet=quiet)
    except KeyboardInterrupt:
        os._exit(EXIT_CODES[Outcome.CANCELLED])


def _interrupt(number: int, frame: object) -> None:
    """Ctrl-C: clean up and end; end anyway after `_CLEAN_UP` seconds.

    The exception may hit the main thread within logging's lock, which then stays locked: the
    endpoint's threads wait for it, and the clean-up for them (seen once). All processes that were
    started end with this one.
    """
    signal.signal(signal.SIGALRM, lambda *_: os._exit(EXIT_CODES[Outcome.CANCELLED]))
    signal.alarm(signal.alarm(0) or _CLEAN_UP)
    raise KeyboardInterrupt


def _run_with_progress(request: Request, testbed: Testbed, *, quiet: bool) -> Report:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, TimeElapsedColumn(), console=console, disable=quiet, transient=True
    ) as bar:
        task = bar.add_task("preparing", total=None)
        lines = ProgressLines(silent=console.is_terminal or quiet)

        def progress(step: str, done: int, total: int) -> None:
            bar.update(task, description=f"{step[:44]:<44}", completed=done, total=total)
            lines.add(step, done, total)

        return asyncio.run(run.run(request, testbed, progress))


class ProgressLines:
    """Progress without a terminal: a line for the first step, every ten seconds, and at the end."""

    def __init__(self, *, silent: bool) -> None:
        self._silent = silent
        self._last = -_LINE_INTERVAL

    def add(self, step: str, done: int, total: int) -> None:
        """Print ``step`` if a line is due."""
        now = time.monotonic()
        if not self._silent and (now - self._last >= _LINE_INTERVAL or done == total):
            self._last = now
            console.print(f"[dim]wgcell:[/] {done} of {total} done: {clean(step)}")


def _show(report: Report, everything: bool) -> None:
    """Print the report on standard output; without ``everything``, not each case that has held."""
    out = SafeConsole(highlight=False)
    if not out.is_terminal:
        out = SafeConsole(highlight=False, width=160)
    out.print(_groups(report.results))
    shown = [r for r in report.results if everything or r.status is not Status.HELD]
    if shown:
        out.print()
        out.print(_cases(shown))
    out.print()
    oracle = f"The oracle: {report.oracle}."
    words = (report.description, oracle, report.controls_in_words, report.bound_in_words)
    for sentence in (*(f"· {gap}" for gap in report.not_shown), *filter(None, words)):
        out.print(f"[dim]{escape(sentence)}[/]")
    colour = "green" if report.passed else "red"
    counts = ", ".join(f"{report.counts[s]} {s.value}" for s in Status if report.counts[s])
    out.print(f"[{colour}]{report.headline}[/]; {counts}; {report.seconds:.0f} s")


def _groups(results: Sequence[Result]) -> Table:
    """How many cases of each group have held at each wall."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for head in ("cases", "wall", "held"):
        table.add_column(head)
    for group, wall in dict.fromkeys((r.group, r.wall) for r in results):
        mine = [r for r in results if (r.group, r.wall) == (group, wall)]
        held = sum(r.status is Status.HELD for r in mine)
        colour = "green" if held == len(mine) else "red"
        table.add_row(group, wall, f"[{colour}]{held} of {len(mine)}[/]")
    return table


def _cases(results: Sequence[Result]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for head in ("case", "wall", "phase", "due", "the capture says", "the relay said"):
        table.add_column(head, overflow="fold")
    for result in results:
        status = f"[{_COLOUR[result.status]}]{result.status.value}[/]: {escape(result.why)}"
        reasons = escape(result.observation.said) or "-"
        due = result.expected.value
        table.add_row(result.case, result.wall, result.phase.value, due, status, reasons)
    return table


_Format = Callable[[Report], str]


def _report_files(junit: Path | None, html: Path | None) -> list[tuple[_Format, Path]]:
    """Each report's format and its file, which must be writable. Raises StateError."""
    asked: tuple[tuple[_Format, Path | None], ...] = ((as_junit, junit), (as_html, html))
    files = [(form, expanded(file)) for form, file in asked if file is not None]
    for _, file in files:
        _check_writable(file)
    return files


def _check_writable(path: Path) -> None:
    """Refuse a file that can't be written, before the minutes of the run. Raises StateError."""
    try:
        with path.open("a", encoding="utf-8"):
            pass
    except OSError as error:
        raise StateError(f"{path}: {error.strerror}", hint="choose another file") from error


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StateError(f"{path}: {error.strerror}", hint="choose another file") from error
    console.print(f"written: {clean(path)}")
