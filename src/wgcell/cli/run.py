"""``wgcell run``: a job in, its output through, its exit code out."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wgcell.cell import endpoint, outputs, permissions
from wgcell.cell.counts import shown
from wgcell.cell.events import Event
from wgcell.cell.folder import Folder, check_writable, create, state_folder
from wgcell.cell.inputs import Survey
from wgcell.cell.inputs import check as check_inputs
from wgcell.cell.job import (
    DEFAULT_CPUS,
    DEFAULT_DISK,
    DEFAULT_GRACE,
    DEFAULT_IMAGE,
    DEFAULT_MEMORY,
    HostLimits,
    Job,
    JobOptions,
    environment,
    job_from_options,
    load_job,
)
from wgcell.cell.provider import Provider, apply_ceilings, load_provider
from wgcell.cell.renewal import MOST_ASKED
from wgcell.cell.wgquick import VpnConfig, load_vpn_config
from wgcell.cli import completion, emulation
from wgcell.cli.image import build_with_progress
from wgcell.cli.lines import JsonLines
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
from wgcell.errors import HostError, JobError, StateError
from wgcell.gateway import remarks
from wgcell.gateway.policy import parse_rule
from wgcell.gateway.way import has_way
from wgcell.guest import scripts
from wgcell.home import config_path, expanded
from wgcell.image import store
from wgcell.image.build import is_current
from wgcell.net.addresses import Address
from wgcell.vm.qemu.accelerator import choose
from wgcell.vm.spec import Accelerator

if TYPE_CHECKING:
    from wgcell.cell.result import CellResult
    from wgcell.cell.supervisor import Supervisor

__all__ = ["run"]


def _pairs(option: str, given: list[str]) -> tuple[tuple[str, str], ...]:
    """``["A=B"]`` -> pairs. Raises JobError naming the option."""
    form = "INSIDE=OUTSIDE" if option == "--service" else "NAME=VALUE"
    for text in given:
        if "=" not in text:
            raise JobError(f"command line: {option}: found {text!r}; allowed: {form}")
    return tuple((left, right) for left, _, right in (text.partition("=") for text in given))


def _job(file: Path | None, options: JobOptions, state: Path) -> Job:
    limits = HostLimits.of_this_host(state)
    if file is None:
        return job_from_options(options, limits)
    looks_like_one = file.suffix == ".toml" or bool(options.command)
    dashes = f"a command stands behind two dashes: wgcell run -- {file}"
    if not file.exists() and not looks_like_one:
        raise JobError(f"{file}: there is no such job file", mend=dashes)
    try:
        return load_job(file, limits, options)
    except JobError as error:
        if looks_like_one:
            raise
        raise JobError(error.message, mend=error.mend or dashes) from None


def _with_gateway(job: Job, learn: bool, provider: Provider) -> Job:
    """The job with what no job file may say of the embedded gateway. Raises JobError."""
    if job.gateway is None:
        if learn:
            raise JobError("command line: --learn is for a cell's own gateway; this job has a vpn")
        return job
    return replace(job, gateway=replace(job.gateway, learn=learn, resolver=provider.resolver))


def _vetting(
    vpn: VpnConfig, provider: Provider, allow: list[str]
) -> Callable[[], tuple[Address, ...]]:
    """What resolves the tunnel's endpoint and vets its addresses, now and whenever it is renewed.

    Each raises EndpointError; a bad ``allow`` at once. Only vetted addresses are ever used, and
    they are used as they are, so a name with two faces gains nothing.
    """
    networks = (*provider.allow_endpoints, *endpoint.parse_networks(allow, "--allow-endpoint"))

    def vet() -> tuple[Address, ...]:
        found = endpoint.resolve(vpn.endpoint_host, vpn.endpoint_port)
        return endpoint.vetted(found, vpn.endpoint_port, networks, endpoint.host_networks())

    return vet


def _image(name: str, loading: Future[store.Image]) -> store.Image:
    """The image, built first if it is the stock one and not there yet."""
    if name == "debian" and not store.exists(name):
        console.print("[dim]wgcell:[/] the image debian is not built yet; this is done once")
        return build_with_progress(name)
    image = loading.result()
    if name == "debian" and not is_current(image, scripts()):
        console.print("[dim]wgcell:[/] the image debian is another version's; it is made anew")
        return build_with_progress(name)
    return image


def _survey(job: Job, force: bool) -> Survey:
    """The inputs, looked at; and whether the outputs could land. Raises InputError."""
    synced = job.landing is not None and job.landing.synced
    survey = check_inputs(job.inputs, job.disk, job.excludes, remember=synced)
    if job.landing is not None:
        outputs.check(job.landing.folder, job.landing.outputs, force)
    return survey


def _show_inputs(narrator: Narrator, job: Job, survey: Survey) -> None:
    if job.inputs:
        excluded = f", {survey.excluded} excluded" if survey.excluded else ""
        narrator.line(f"inputs: {survey.files} files{excluded}", Words.ALL)
    for counted in survey.left_out:
        narrator.line(f"[yellow]input left out:[/] {clean(str(counted))}")
    for counted in survey.links_out:
        narrator.line(f"input {clean(str(counted))}")


def _agree(summary: str) -> bool:
    for line in summary.splitlines():
        console.print(clean(line))
    if not all_said():
        return False
    try:
        return typer.confirm("make these changes?", err=True)
    except typer.Abort:
        return False  # Ctrl-C, or the end of the input


def _bring_home(
    job: Job, survey: Survey, folder: Folder, came: Mapping[str, Any], force: bool, yes: bool
) -> outputs.Landed:
    """The outputs, from the cell's folder to where they were asked from. Raises StateError.

    ``came`` is the event that tells of their unpacking; empty if there was none.
    """
    unpacked = folder.path / "outputs"
    landing = job.landing
    if not unpacked.is_dir():
        return outputs.Landed("no outputs came", False)
    if landing is None:
        return outputs.keep(unpacked)
    if not came.get("complete"):
        return outputs.Landed(f"outputs did not come whole, and stay in {unpacked}", False)
    if not landing.synced:
        return outputs.land(unpacked, landing.folder, force, landing.outputs)
    can_ask = sys.stdin.isatty() and sys.stderr.isatty()
    return outputs.sync(
        *(unpacked, landing.folder, force, survey.seen),
        (lambda summary: True) if yes else _agree if can_ask else None,
        kept_here=survey.kept_here,
        others=[one.path.name for one in job.inputs if not one.contents],
        whole=not came.get("refused_count"),
    )


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
            f"--json-file: {path}: {error.strerror}", mend="choose another file"
        ) from error


def run(
    context: typer.Context,
    file: Annotated[Path | None, typer.Argument(metavar="[JOB.toml]", show_default=False)] = None,
    name: Annotated[str | None, typer.Option(help="What the cell is called.")] = None,
    vpn: Annotated[
        Path | None, typer.Option(help="A wg-quick file: the requester's tunnel.")
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST:PORT", help="What the cell may reach, by its own gateway."),
    ] = None,
    service: Annotated[
        list[str] | None,
        typer.Option(
            metavar="INSIDE=OUTSIDE",
            help="A service in the tunnel: 10.99.0.5:80=127.0.0.1:8000.",
        ),
    ] = None,
    learn: Annotated[
        bool,
        typer.Option("--learn", help="Let all that is public through; print what was needed."),
    ] = False,
    image: Annotated[
        str | None,
        typer.Option(
            help=f"The guest's image. [default: {DEFAULT_IMAGE}]",
            autocompletion=completion.images,
        ),
    ] = None,
    cpus: Annotated[
        int | None, typer.Option(help=f"Virtual CPUs. [default: {DEFAULT_CPUS}]")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help=f"Memory, as 2GiB or 2G. [default: {DEFAULT_MEMORY}]")
    ] = None,
    disk: Annotated[
        str | None, typer.Option(help=f"Scratch disk, as 4GiB. [default: {DEFAULT_DISK}]")
    ] = None,
    input_: Annotated[
        list[str] | None,
        typer.Option(
            "--input", help="A file or folder to appear in /work; of . or DIR/. its contents."
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Inputs to leave out, in .gitignore's syntax."),
    ] = None,
    output: Annotated[
        list[str] | None,
        typer.Option("--output", help="A path below /work to bring to the current folder."),
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option("--output-dir", metavar="DIR", help="Where all outputs go instead."),
    ] = None,
    sync: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A folder whose contents go in, and changes come back."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Let outputs overwrite what is there.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Bring --sync's changes back without asking.")
    ] = False,
    env: Annotated[
        list[str] | None,
        typer.Option(
            "-e",
            "--env",
            metavar="NAME[=VALUE]",
            help="For the workload; without a value, the one that NAME has here.",
        ),
    ] = None,
    env_file: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A file of such lines; # begins a comment."),
    ] = None,
    timeout: Annotated[
        str | None, typer.Option(help="Longest run, as 90s or 1.5h. [default: no limit]")
    ] = None,
    grace: Annotated[
        str | None,
        typer.Option(
            help="From SIGTERM to SIGKILL, when the workload must end. "
            f"[default: {DEFAULT_GRACE:g}s]"
        ),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(help="Most the tunnel carries each way, as 10Mbit. [default: no limit]"),
    ] = None,
    quota: Annotated[
        str | None,
        typer.Option(
            help="Bytes the tunnel carries, as 2GiB; then the cell ends. [default: no limit]"
        ),
    ] = None,
    on_rogue: Annotated[
        str | None,
        typer.Option(help="terminate, or freeze to keep the VM to look into. [default: terminate]"),
    ] = None,
    guest_walls: Annotated[
        str | None,
        typer.Option(help="on, or off for a guest that plays compromised: a test. [default: on]"),
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
    variables, unset = environment(env or (), map(expanded, env_file or ()), os.environ)
    if unset and words >= Words.FEW:
        warn(f"not set here, so not passed on: {', '.join(unset)}")
    options = JobOptions(
        name=name,
        command=tuple(context.obj or ()),
        image=image,
        inputs=tuple(map(_expanded_text, input_ or ())),
        excludes=tuple(exclude or ()),
        outputs=tuple(output or ()),
        output_dir=output_dir and expanded(output_dir),
        sync=sync and expanded(sync),
        timeout=timeout,
        grace=grace,
        env=variables,
        cpus=cpus,
        memory=memory,
        disk=disk,
        vpn=vpn and expanded(vpn),
        allow=tuple(allow or ()),
        services=_pairs("--service", service or []),
        rate=rate,
        quota=quota,
        on_rogue=on_rogue,
        guest_walls=guest_walls,
    )
    provider = load_provider()
    job = _with_gateway(_job(file and expanded(file), options, cells), learn, provider)
    job = apply_ceilings(job, provider)
    permissions.vet(job, provider, endpoint.host_networks)
    survey = _survey(job, force)
    with ThreadPoolExecutor(1) as other:
        # Hashing leaves the interpreter to us: the rest of the code is loaded meanwhile.
        loading = other.submit(store.load, job.image)
        from wgcell.cell.host import HostContext
        from wgcell.cell.supervisor import Supervisor
        from wgcell.vm.qemu.process import find_qemu

        # The file is read once: it may be a pipe, or gone by the time the socket is renewed.
        tunnel = None if job.vpn is None else load_vpn_config(job.vpn, job.vpn_beneath)
        vet = None if tunnel is None else _vetting(tunnel, provider, allow_endpoint or [])
        addresses = () if vet is None else vet()
        qemu = find_qemu()
        guest_image = _image(job.image, loading)
    accelerator, reason = choose(qemu, guest_image.kernel, store.cache_folder().parent)
    if accelerator is Accelerator.TCG:
        if not provider.allow_emulation:
            raise HostError(
                f"this provider does not allow emulation, and KVM does not work here: {reason}",
                mend=f"{emulation.remedy(reason)}; or set allow_emulation = true in "
                f"{config_path()}",
            )
        if words >= Words.FEW:
            warn(emulation.told(reason))
    into = None if json_file is None else raw_sink(_opened(expanded(json_file)))
    folder = create(cells, job.name)
    lock = folder.hold()
    folder.write("job.json", job.public())

    def land(came: Mapping[str, Any]) -> outputs.Landed:
        narrator.stop()
        restore()  # a question may be asked
        try:
            with _interruptible():
                return _bring_home(job, survey, folder, came, force, yes)
        except (KeyboardInterrupt, _Ended) as end:
            where = f"what has not landed is in {shown(str(folder.path / 'outputs'))}"
            return outputs.Landed(f"{end} while outputs landed; {where}", False, interrupted=True)

    host = HostContext(
        *(folder, guest_image, accelerator, reason, tunnel, addresses),
        require_walls=provider.require_walls,
        gateway_engine=provider.gateway_engine.value,
        land=land,
        known_links=survey.links,
        vet_again=vet,
    )
    speak_aside()
    narrator = Narrator(words)
    narrator.line(f"cell {folder.id}; {_opens(job, tunnel, addresses)}")
    rules = tuple(map(parse_rule, job.gateway.allow if job.gateway else ()))
    for remark in (*remarks.of_rules(rules), *remarks.without_way(rules, has_way)):
        warn(remark)
    for remark in tunnel.remarks if tunnel else ():
        warn(remark)
    _show_inputs(narrator, job, survey)
    files = [JsonLines(folder.id, into)] if into else []
    printed = JsonLines(folder.id, raw_sink(sys.stdout.fileno())) if as_json else None
    lines = [*files, printed] if printed else files

    def report(event: Event) -> None:
        for one in lines:
            one.event(event)
        narrator(event)

    if printed:
        out, err = printed.output("stdout"), printed.output("stderr")
    else:
        out, err = sink(sys.stdout), sink(sys.stderr)
    try:
        supervisor = Supervisor(job, host, report=report, stdout=out, stderr=err)
        result = _until_its_end(supervisor)
    finally:
        narrator.stop()
        restore()
        for one in lines:
            one.close()
        os.close(lock)
    for one in lines:
        if one.failure is not None and not isinstance(one.failure, BrokenPipeError):
            place = "standard output" if one is printed else f"--json-file: {json_file}"
            raise StateError(f"{place}: {one.failure.strerror}: events are missing in it")
    raise typer.Exit(int(result.exit_code))


ENDINGS = {
    signal.SIGINT: "interrupted (Ctrl-C)",
    signal.SIGTERM: "stopped",
    signal.SIGHUP: "the terminal closed",
    signal.SIGQUIT: "killed",
}
"""What a user or the system sends us to end the cell, and the cell's reason."""


def _until_its_end(supervisor: Supervisor) -> CellResult:
    """The cell's whole life; what a user or the system sends us ends it.

    In order, with a grace period, at the first signal; at once at the second, or at SIGQUIT. A
    signal that was ignored when we were started stays so, as nohup has it for SIGHUP.
    """
    import asyncio

    async def watched() -> CellResult:
        loop = asyncio.get_running_loop()
        for number, words in ENDINGS.items():
            if signal.getsignal(number) is not signal.SIG_IGN:
                end = supervisor.abort if number is signal.SIGQUIT else supervisor.cancel
                loop.add_signal_handler(number, end, words)
        return await supervisor.run()

    return asyncio.run(watched())
