"""``wgcell prove``: the leak battery against this machine's own relay and cells."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
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
from wgcell.prove import report, run
from wgcell.prove.battery import pcap
from wgcell.prove.runners import boots
from wgcell.prove.testbed.base import Testbed
from wgcell.prove.testbed.prepare import prepare
from wgcell.prove.verdict import Result, Status

__all__ = ["prove"]

MOST_BOOTS = 400
_CLEAN_UP = 5
"""Seconds that Ctrl-C leaves for it."""
_LINE_EVERY = 10.0
"""Seconds between two lines of progress where there is no terminal for a bar."""
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
    frames_: Annotated[
        Path | None,
        typer.Option("--frames", metavar="FILE.pcap", help="Injection your own frames instead."),
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
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    junit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the report as JUnit XML.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the report as one HTML page.")
    ] = None,
) -> None:
    """Injection the leak battery: what a hostile guest tries, watched from outside.

    wgcell prove --quick

    wgcell prove --html report.html

    wgcell prove --long --quick

    wgcell prove --frames attack.pcap

    Exits 0 only if nothing leaked, every verdict was right, and with the wall down every probe
    was seen; else 1.
    """
    if list_:
        for one in boots.all_cases():
            out(f"{one.name:<26} {one.verdict.value:<5} {one.group}: {one.does}")
        return
    if frames_ is not None and (quick or long or case):
        raise InputError("--frames plays your frames alone: leave --quick, --long and --case out")
    mode = run.Mode.DEFAULT
    if frames_ is not None:
        mode = run.Mode.FRAMES
    elif long:
        mode = run.Mode.LONG
    elif quick:
        mode = run.Mode.QUICK
    with_machines = frames_ is None and not quick
    asked = run.Asked(
        mode,
        only=tuple(case or ()),
        own=pcap.load(frames_) if frames_ is not None else (),
        times=times,
        storm=storm,
        machines=_machines(every=long) if with_machines else None,
        command=shlex.join(["wgcell", *sys.argv[1:]]),
    )
    relays = len(run.plan(asked)) + MOST_BOOTS
    junit, html = junit and expanded(junit), html and expanded(html)
    for path in (junit, html):
        if path is not None:
            _check_writable(path)
    # What the endpoint's library logs of junk that reaches it is the battery's own doing.
    logging.getLogger().addHandler(logging.NullHandler())
    # Before any thread is started: a process of many can't enter a user namespace.
    testbed = prepare(relays)
    # asyncio's own handler cancels one task, and once; this one ends the loop.
    signal.signal(signal.SIGINT, _interrupt)
    try:
        done = _conduct(asked, testbed, quiet=as_json)
    except KeyboardInterrupt:
        os._exit(EXIT_CODES[Outcome.CANCELLED])
    if as_json:
        out(report.as_json(done))
    else:
        _show(done, everything or bool(asked.only) or mode is run.Mode.FRAMES)
    for path, text in ((junit, report.as_junit(done)), (html, report.as_html(done))):
        if path is not None:
            _write(path, text)
    # The threads of the endpoint's runtime do not outlive the interpreter in peace.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0 if done.passed else 1)


def _interrupt(number: int, frame: object) -> None:
    """Ctrl-C: clean up and end, or just end.

    The exception hits whatever the main thread is at. If that was a lock of logging's, it stays
    locked, the endpoint's own threads wait for it, and the clean-up for them (seen once). Whatever
    was started ends with this process.
    """
    signal.signal(signal.SIGALRM, lambda *_: os._exit(EXIT_CODES[Outcome.CANCELLED]))
    signal.alarm(signal.alarm(0) or _CLEAN_UP)
    raise KeyboardInterrupt


def _machines(*, every: bool) -> boots.Machines:
    """What VMs are made of, the image built first if it is not there yet."""
    if not store.exists("debian"):
        console.print("[dim]wgcell:[/] the image debian is not built yet; this is done once")
        build_with_progress("debian")
    return boots.find(every=every)


def _conduct(asked: run.Asked, testbed: Testbed, *, quiet: bool) -> report.Run:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, TimeElapsedColumn(), console=console, disable=quiet, transient=True
    ) as bar:
        task = bar.add_task("preparing", total=None)

        lines = _Lines(console.is_terminal or quiet)

        def told(what: str, done: int, total: int) -> None:
            bar.update(task, description=f"{what[:44]:<44}", completed=done, total=total)
            lines.told(what, done, total)

        return asyncio.run(run.conduct(asked, testbed, told))


class _Lines:
    """Progress without a terminal: a line at the beginning, every few seconds, and at the end."""

    def __init__(self, silent: bool) -> None:
        self._silent = silent
        self._last = -_LINE_EVERY

    def told(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if not self._silent and (now - self._last >= _LINE_EVERY or done == total):
            self._last = now
            console.print(f"[dim]wgcell:[/] {done} of {total} played: {clean(what)}")


def _show(done: report.Run, everything: bool) -> None:
    out = SafeConsole(highlight=False)
    if not out.is_terminal:
        out = SafeConsole(highlight=False, width=160)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for head in ("cases", "wall", "held"):
        table.add_column(head)
    for group, wall in dict.fromkeys((r.group, r.wall) for r in done.results):
        mine = [r for r in done.results if (r.group, r.wall) == (group, wall)]
        held = sum(r.status is Status.HELD for r in mine)
        colour = "green" if held == len(mine) else "red"
        table.add_row(group, wall, f"[{colour}]{held} of {len(mine)}[/]")
    out.print(table)
    shown = [r for r in done.results if everything or r.status is not Status.HELD]
    if shown:
        out.print()
        out.print(_cases(shown))
    out.print()
    for sentence in done.not_shown:
        out.print(f"[dim]· {escape(sentence)}[/]")
    for sentence in (done.played, f"The oracle: {done.sees}.", done.controls_in_words):
        out.print(f"[dim]{escape(sentence)}[/]")
    if done.bound_in_words:
        out.print(f"[dim]{escape(done.bound_in_words)}[/]")
    colour = "green" if done.passed else "red"
    counts = ", ".join(f"{done.counts[s]} {s.value}" for s in Status if done.counts[s])
    out.print(f"[{colour}]{done.headline}[/]; {counts}; {done.seconds:.0f} s")


def _cases(results: Sequence[Result]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for head in ("case", "wall", "phase", "due", "the capture says", "the relay said"):
        table.add_column(head, overflow="fold")
    for result in results:
        words = f"[{_COLOUR[result.status]}]{result.status.value}[/]: {escape(result.why)}"
        said = escape(result.observation.said) or "-"
        due = result.expected.value
        table.add_row(result.case, result.wall, result.phase.value, due, words, said)
    return table


def _check_writable(path: Path) -> None:
    """Before nine minutes of playing. Raises StateError."""
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
