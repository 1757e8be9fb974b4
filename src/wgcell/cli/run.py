"""``wgcell run``: a job in, its output through, its exit code out."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from wgcell import announcement, api
from wgcell.cell.counts import shown
from wgcell.cell.environment import environment
from wgcell.cell.events import Event
from wgcell.cell.folder import check_writable, state_folder
from wgcell.cell.job import JobOptions
from wgcell.cell.outputs import Landed
from wgcell.cell.provider import load_provider
from wgcell.cell.rows import Row, Written
from wgcell.cell.settings import (
    ALLOW,
    ENV,
    EXCLUDE,
    HOSTS,
    INPUTS,
    NAME,
    OUTPUTS,
    PUBLISH,
    SERVICES,
    SETTINGS,
    VPN,
)
from wgcell.cell.states import State
from wgcell.cli.exec import terminal_at
from wgcell.cli.image import build_with_progress
from wgcell.cli.inlet import Inlet, passes_stdin
from wgcell.cli.lines import JsonLines, following
from wgcell.cli.options import After, with_settings
from wgcell.cli.progress import EventPrinter, Verbosity, show
from wgcell.cli.raw import size
from wgcell.cli.terminal import (
    clean,
    console,
    finish_writing,
    raw_sink,
    restore,
    sink,
    warn,
    write_in_background,
)
from wgcell.display import one_line
from wgcell.errors import JobError, StateError
from wgcell.home import expanded
from wgcell.image import store
from wgcell.obedience import Interrupted, interruptible, until_its_end

__all__ = ["run"]


def _pairs(row: Row[Any], given: Sequence[str], between: str = "=") -> tuple[tuple[str, str], ...]:
    """``["A=B"]`` -> pairs. Raises JobError naming the option."""
    for text in given:
        if between not in text:
            form = row.option.metavar if row.option else ""
            raise JobError(
                f"command line: {row.flags[-1]}: found {one_line(text, 80)!r}; allowed: {form}"
            )
    return tuple((left, right) for left, _, right in (text.partition(between) for text in given))


T = TypeVar("T")


def _hinted(file: Path | None, options: JobOptions, read: Callable[[], T]) -> T:
    """What ``read`` makes of a job; a JobError of a ``file`` that may be meant for a command says
    so."""
    if file is None:
        return read()
    looks_like_one = file.suffix == ".toml" or bool(options.command)
    dashes = f"a command stands behind two dashes: wgcell run -- {file}"
    if not file.exists() and not looks_like_one:
        raise JobError(f"{file}: there is no such job file", hint=dashes)
    try:
        return read()
    except JobError as error:
        if looks_like_one:
            raise
        raise JobError(error.message, hint=error.hint or dashes) from None


def _build(name: str, why: str) -> store.Image:
    console.print(f"[dim]wgcell:[/] {why}")
    return build_with_progress(name)


def _agree(summary: str) -> bool:
    for line in summary.splitlines():
        console.print(clean(line))
    if not finish_writing():
        return False
    try:
        return typer.confirm("make these changes?", err=True)
    except typer.Abort:
        return False  # Ctrl-C, or the end of the input


def _expanded_text(text: str) -> str:
    """`expanded`, for an input: its last ``/.`` has a meaning, which a Path does not keep."""
    return str(expanded(Path(text))) + text[len(text.rstrip("/.")) :] if text[:1] == "~" else text


def _opened(path: Path) -> int:
    """A file for the events, made anew. Raises StateError."""
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateError(
            f"--json-file: {path}: {error.strerror}", hint="choose another file"
        ) from error


@with_settings
def run(
    context: typer.Context,
    file: Annotated[Path | None, typer.Argument(metavar="[JOB.toml]", show_default=False)] = None,
    *,
    typed: Written,
    learn: Annotated[
        bool,
        After(SERVICES.key),
        typer.Option("--learn", help="Let all that is public through; print what was needed."),
    ] = False,
    output_dir: Annotated[
        Path | None,
        After(OUTPUTS.key),
        typer.Option("--output-dir", metavar="DIR", help="Where all outputs go instead."),
    ] = None,
    sync: Annotated[
        Path | None,
        After(OUTPUTS.key),
        typer.Option(metavar="DIR", help="A folder whose contents go in, and changes come back."),
    ] = None,
    force: Annotated[
        bool,
        After(OUTPUTS.key),
        typer.Option("--force", help="Let outputs overwrite what is there."),
    ] = False,
    yes: Annotated[
        bool,
        After(OUTPUTS.key),
        typer.Option("--yes", help="Bring --sync's changes back without asking."),
    ] = False,
    env_file: Annotated[
        list[Path] | None,
        After(ENV.key),
        typer.Option(metavar="FILE", help="A file of such lines; # begins a comment."),
    ] = None,
    allow_endpoint: Annotated[
        list[str] | None,
        typer.Option(metavar="CIDR", help="Endpoints to accept although they are not public."),
    ] = None,
    interactive: Annotated[
        bool | None,
        typer.Option(
            "-i/ ",
            "--interactive/--no-stdin",
            help="Pass standard input on. [default: unless it is a terminal]",
            show_default=False,
        ),
    ] = None,
    tty: Annotated[
        bool, typer.Option("-t", "--tty", help="Give the command a terminal; with -i, this one.")
    ] = False,
    detach: Annotated[
        bool,
        typer.Option(
            "-d",
            "--detach",
            help="Print the cell's id once its tunnel is verified, and leave it running.",
        ),
    ] = False,
    remove: Annotated[
        bool, typer.Option("--rm", help="Delete the cell's folder, records too, at its end.")
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON object a line: the events, and the output."),
    ] = False,
    json_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the events there; the output stays as it is."),
    ] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing but errors.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Say each step.")] = False,
    state_dir: Annotated[
        Path | None,
        typer.Option(
            "--state-dir",
            help="Where the cell's folder goes. [default: ~/.local/state/wgcell/cells]",
        ),
    ] = None,
) -> None:
    """Run a job in a VM whose only way out is its tunnel.

    wgcell run --input agent.py --allow api.example.com:443 -- python3 agent.py

    wgcell run --vpn requester.conf --input train.py --output results/ -- python3 train.py

    wgcell run job.toml

    wgcell run --detach --allow api.example.com:443

    Limits that a provider sets in ~/.config/wgcell/config.toml lower the defaults.

    The exit code is the workload's; 118 an output is missing, 119 quota spent, 120 a frame
    outside the tunnel, 121 not verified, 122 tunnel lost, 123 guest fault, 124 timeout, 125 bad
    input or host fault, 130 cancelled.
    """
    cells = state_folder(state_dir and expanded(state_dir))
    check_writable(cells)
    verbosity = (
        Verbosity.QUIET if quiet or as_json else Verbosity.VERBOSE if verbose else Verbosity.NORMAL
    )
    variables, unset = environment(typed.words(ENV), map(expanded, env_file or ()), os.environ)
    if unset and verbosity >= Verbosity.NORMAL:
        warn(f"not set here, so not passed on: {', '.join(unset)}")
    vpn = typed.get(VPN)
    options = JobOptions(
        name=typed.get(NAME),
        command=tuple(context.obj or ()),
        inputs=tuple(map(_expanded_text, typed.words(INPUTS))),
        excludes=typed.words(EXCLUDE),
        outputs=typed.words(OUTPUTS),
        output_dir=output_dir and expanded(output_dir),
        sync=sync and expanded(sync),
        env=variables,
        vpn=None if vpn is None else expanded(Path(vpn)),
        allow=typed.words(ALLOW),
        services=_pairs(SERVICES, typed.words(SERVICES)),
        publish=typed.words(PUBLISH),
        hosts=_pairs(HOSTS, typed.words(HOSTS), ":"),
        settings={row.name: typed.values[row.key] for row in SETTINGS if row.key in typed.values},
        idle=detach,
        stdin=passes_stdin(interactive, tty=tty, detach=detach),
        terminal=size(1, 0) if tty else None,
    )
    if detach:
        if as_json or json_file is not None:
            raise JobError(
                "command line: --detach can't be combined with --json or --json-file",
                hint="wgcell events --follow CELL prints a cell's events",
            )
        from wgcell.cell.start import Start  # a cell in the foreground does not wait for it
        from wgcell.cli.detached import detached

        start = Start(
            options,
            None if file is None else expanded(file),
            cells,
            tuple(allow_endpoint or ()),
            learn=learn,
            force=force,
            agreed=yes,
            remove=remove,
        )
        raise typer.Exit(_hinted(start.file, options, lambda: detached(start, verbosity)))
    if tty and as_json:
        raise JobError("command line: -t can't be combined with --json")
    here = terminal_at(interactive=options.stdin, tty=tty, hint="leave out -t")
    provider = load_provider()
    job_file = None if file is None else expanded(file)
    job = _hinted(
        job_file,
        options,
        lambda: api.read_job(options, job_file, cells=cells, provider=provider, learn=learn),
    )
    plan = api.plan(
        job, provider=provider, allow_endpoints=allow_endpoint or (), force=force, make=_build
    )
    for remark in announcement.about_machine(plan):
        show(remark, verbosity)
    into = None if json_file is None else raw_sink(_opened(expanded(json_file)))
    with api.Cell(plan, cells) as cell:
        inlet = Inlet(cell, here) if options.stdin else None
        code = _lived(
            *(cell, verbosity, inlet), yes=yes, as_json=as_json, into=into, file=json_file
        )
    if remove:
        cell.folder.remove()
    raise typer.Exit(code)


def _lived(
    cell: api.Cell,
    verbosity: Verbosity,
    inlet: Inlet | None,
    *,
    yes: bool,
    as_json: bool,
    into: api.Sink | None,
    file: Path | None,
) -> int:
    """The cell's whole life on the terminal; its exit code. Raises StateError."""
    write_in_background()
    printer = EventPrinter(verbosity)
    for remark in announcement.about_cell(cell.plan, cell.id):
        show(remark, verbosity)
    files = [JsonLines(cell.id, into, f"--json-file: {file}")] if into else []
    printed = JsonLines(cell.id, raw_sink(sys.stdout.fileno())) if as_json else None
    lines = [*files, printed] if printed else files
    follow = following(lines, cell.fail)

    def happened(event: Event) -> None:
        follow(event)
        if inlet is not None and event["event"] == "state":
            if event["state"] == State.RUNNING.value:
                inlet.start()
            elif event["state"] in (State.STOPPING.value, State.ENDED.value):
                inlet.stop()
        printer(event)

    if printed:
        out, err = printed.output("stdout"), printed.output("stderr")
    elif cell.plan.job.terminal is not None:
        # What a terminal's program prints controls the terminal: that is the wish of whoever says
        # -t.
        out, err = raw_sink(1), raw_sink(2)
    else:
        out, err = sink(sys.stdout), sink(sys.stderr)
    can_ask = sys.stdin.isatty() and sys.stderr.isatty()
    agree = (lambda summary: True) if yes else _agree if can_ask else None

    def land(arrived: api.Arrived) -> Landed:
        printer.stop()
        restore()  # a question may be asked
        try:
            with interruptible():
                return cell.land(arrived, agree)
        except (KeyboardInterrupt, Interrupted) as end:
            where = f"what has not landed is in {shown(str(cell.folder.path / 'outputs'))}"
            return Landed(f"{end} while outputs landed; {where}", False, interrupted=True)

    try:
        result = until_its_end(
            cell, event=happened, stdout=out, stderr=err, land=land, passes_on=True
        )
    finally:
        if inlet is not None:
            inlet.stop()
        printer.stop()
        restore()
        for one in lines:
            one.close()
        cell.close()
    for one in lines:
        if one.fault and one.fault != result.reason:  # the last events, or an error before it
            raise StateError(one.fault)
    return result.exit_code
