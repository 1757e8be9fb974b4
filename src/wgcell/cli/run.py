"""``wgcell run``: a job in, its output through, its exit code out."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from wgcell import api
from wgcell.cell import emulation, endpoint
from wgcell.cell.counts import shown
from wgcell.cell.environment import environment
from wgcell.cell.events import Event
from wgcell.cell.folder import check_writable, state_folder
from wgcell.cell.job import Job, JobOptions
from wgcell.cell.outputs import Landed
from wgcell.cell.provider import Provider, load_provider
from wgcell.cell.renewal import MOST_ASKED
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
from wgcell.cell.survey import Survey
from wgcell.cell.wgquick import VpnConfig
from wgcell.cli.image import build_with_progress
from wgcell.cli.lines import JsonLines
from wgcell.cli.options import After, with_settings
from wgcell.cli.terminal import (
    Narrator,
    Words,
    all_said,
    clean,
    console,
    raw_sink,
    restore,
    sink,
    speak_aside,
    warn,
)
from wgcell.display import one_line
from wgcell.errors import JobError, StateError
from wgcell.gateway.model import remarks
from wgcell.gateway.model.rules import parse_rule
from wgcell.home import expanded
from wgcell.image import store
from wgcell.net.addresses import Address
from wgcell.net.routes import has_route
from wgcell.vm.spec import Accelerator

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


def _job(
    file: Path | None, options: JobOptions, cells: Path, provider: Provider, learn: bool
) -> Job:
    def read() -> Job:
        return api.read_job(options, file, cells=cells, provider=provider, learn=learn)

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


def _show_inputs(narrator: Narrator, job: Job, survey: Survey) -> None:
    if job.inputs:
        excluded = f", {survey.excluded} excluded" if survey.excluded else ""
        narrator.line(f"inputs: {survey.files} files{excluded}", Words.ALL)
    for counted in survey.left_out:
        narrator.line(f"[yellow]input left out:[/] {clean(str(counted))}")
    for counted in survey.links_out:
        narrator.line(f"input {clean(str(counted))}")


def _announce(narrator: Narrator, cell: api.Cell) -> None:
    """What is about to run, what it may reach, and what is odd about that."""
    plan, job = cell.plan, cell.plan.job
    narrator.line(f"cell {cell.id}; {_opens(job, plan.tunnel, plan.addresses)}")
    rules = tuple(map(parse_rule, job.gateway.allow if job.gateway else ()))
    for remark in (*remarks.of_rules(rules), *remarks.without_way(rules, has_route)):
        warn(remark)
    for remark in plan.tunnel.remarks if plan.tunnel else ():
        warn(remark)
    if plan.survey is not None:
        _show_inputs(narrator, job, plan.survey)


def _agree(summary: str) -> bool:
    for line in summary.splitlines():
        console.print(clean(line))
    if not all_said():
        return False
    try:
        return typer.confirm("make these changes?", err=True)
    except typer.Abort:
        return False  # Ctrl-C, or the end of the input


class _Ended(BaseException):
    """A signal that is to end us, and is no answer to a question."""


@contextmanager
def _interruptible() -> Iterator[None]:
    """Any of `ENDINGS` raises here: the loop, which else hears of them, stands still.

    A signal that was ignored when we were started stays so. At a question Ctrl-C is an answer.
    """

    def interrupt(number: int, _: object) -> None:
        kind = KeyboardInterrupt if number == signal.SIGINT else _Ended
        raise kind(ENDINGS[signal.Signals(number)])

    before = {number: signal.getsignal(number) for number in ENDINGS}
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, interrupt)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _opens(job: Job, vpn: VpnConfig | None, addresses: Sequence[Address]) -> str:
    """What the cell can reach, for rich."""
    if vpn is not None:
        first = addresses[:MOST_ASKED]
        where = " or ".join(f"{endpoint.shown(one, vpn.endpoint_port)}" for one in first)
        return f"its only way out is the tunnel to {clean(where)}"
    asked = job.gateway
    rules = [f"allow {rule}" for rule in asked.allow] if asked else []
    rules += [f"{inside} is {outside}" for inside, outside in asked.services] if asked else []
    rules += [f"publish {one}" for one in asked.publish] if asked else []
    if asked and asked.learn:
        rules.append("everything public, to learn")
    return f"it may reach: {clean(', '.join(rules) or 'nothing (no --allow, no --service)')}"


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

    Limits that a provider sets in ~/.config/wgcell/config.toml lower the defaults.

    The exit code is the workload's; 118 an output is missing, 119 quota spent, 120 a frame
    outside the tunnel, 121 not verified, 122 tunnel lost, 123 guest fault, 124 timeout, 125 bad
    input or host fault, 130 cancelled.
    """
    cells = state_folder(state_dir and expanded(state_dir))
    check_writable(cells)
    words = Words.ERRORS if quiet or as_json else Words.ALL if verbose else Words.FEW
    variables, unset = environment(typed.words(ENV), map(expanded, env_file or ()), os.environ)
    if unset and words >= Words.FEW:
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
    )
    provider = load_provider()
    job = _job(file and expanded(file), options, cells, provider, learn)
    plan = api.plan(
        job, provider=provider, allow_endpoints=allow_endpoint or (), force=force, make=_build
    )
    if plan.platform.accelerator is Accelerator.TCG and words >= Words.FEW:
        warn(emulation.told(plan.platform.reason))
    into = None if json_file is None else raw_sink(_opened(expanded(json_file)))
    with api.Cell(plan, cells) as cell:
        raise typer.Exit(_lived(cell, words, yes=yes, as_json=as_json, into=into, file=json_file))


def _lived(
    cell: api.Cell,
    words: Words,
    *,
    yes: bool,
    as_json: bool,
    into: api.Sink | None,
    file: Path | None,
) -> int:
    """The cell's whole life on the terminal; its exit code. Raises StateError."""
    speak_aside()
    narrator = Narrator(words)
    _announce(narrator, cell)
    files = [JsonLines(cell.id, into)] if into else []
    printed = JsonLines(cell.id, raw_sink(sys.stdout.fileno())) if as_json else None
    lines = [*files, printed] if printed else files

    def tell(event: Event) -> None:
        for one in lines:
            one.event(event)
        narrator(event)

    if printed:
        out, err = printed.output("stdout"), printed.output("stderr")
    else:
        out, err = sink(sys.stdout), sink(sys.stderr)
    can_ask = sys.stdin.isatty() and sys.stderr.isatty()
    agree = (lambda summary: True) if yes else _agree if can_ask else None

    def land(arrived: api.Arrived) -> Landed:
        narrator.stop()
        restore()  # a question may be asked
        try:
            with _interruptible():
                return cell.land(arrived, agree)
        except (KeyboardInterrupt, _Ended) as end:
            where = f"what has not landed is in {shown(str(cell.folder.path / 'outputs'))}"
            return Landed(f"{end} while outputs landed; {where}", False, interrupted=True)

    try:
        result = _until_its_end(cell, event=tell, stdout=out, stderr=err, land=land)
    finally:
        narrator.stop()
        restore()
        for one in lines:
            one.close()
        cell.close()
    for one in lines:
        if one.failure is not None and not isinstance(one.failure, BrokenPipeError):
            place = "standard output" if one is printed else f"--json-file: {file}"
            raise StateError(f"{place}: {one.failure.strerror}: events are missing in it")
    return result.exit_code


ENDINGS = {
    signal.SIGINT: "interrupted (Ctrl-C)",
    signal.SIGTERM: "stopped",
    signal.SIGHUP: "the terminal closed",
    signal.SIGQUIT: "killed",
}
"""What a user or the system sends us to end the cell, and the cell's reason."""


def _until_its_end(
    cell: api.Cell,
    *,
    event: Callable[[Event], None],
    stdout: api.Sink,
    stderr: api.Sink,
    land: Callable[[api.Arrived], Landed],
) -> api.Result:
    """The cell's whole life; what a user or the system sends us ends it.

    In order, with a grace period, at the first signal; at once at the second, or at SIGQUIT. A
    signal that was ignored when we were started stays so, as nohup has it for SIGHUP.
    """
    import asyncio

    async def watched() -> api.Result:
        loop = asyncio.get_running_loop()
        for number, words in ENDINGS.items():
            if signal.getsignal(number) is not signal.SIG_IGN:
                end = cell.abort if number is signal.SIGQUIT else cell.cancel
                loop.add_signal_handler(number, end, words)
        return await cell.run(event=event, stdout=stdout, stderr=stderr, land=land)

    return asyncio.run(watched())
