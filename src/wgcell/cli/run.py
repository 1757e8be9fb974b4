"""``wgcell run``: a job in, its output through, its exit code out."""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from wgcell.cell import endpoint
from wgcell.cell.folder import check_writable, create, state_folder
from wgcell.cell.inputs import check as check_inputs
from wgcell.cell.job import HostLimits, Job, JobOptions, job_from_options, load_job
from wgcell.cell.provider import Provider, apply_ceilings, load_provider
from wgcell.cell.wgquick import VpnConfig, load_vpn_config
from wgcell.cli.image import build_with_progress
from wgcell.cli.terminal import Narrator, console, sink, warn
from wgcell.errors import HostError, JobError
from wgcell.gateway import remarks
from wgcell.gateway.policy import parse_rule
from wgcell.guest import scripts
from wgcell.image import store
from wgcell.image.build import is_current
from wgcell.machine.accelerator import choose
from wgcell.machine.argv import Accelerator

if TYPE_CHECKING:
    from wgcell.cell.supervisor import Supervisor

__all__ = ["run"]


def _pairs(option: str, given: list[str]) -> tuple[tuple[str, str], ...]:
    """``["A=B"]`` -> pairs. Raises JobError naming the option."""
    for text in given:
        if "=" not in text:
            raise JobError(f"command line: {option}: found {text!r}; allowed: LEFT=RIGHT")
    return tuple((left, right) for left, _, right in (text.partition("=") for text in given))


def _job(file: Path | None, options: JobOptions, state: Path) -> Job:
    limits = HostLimits.of_this_host(state)
    if file is None:
        return job_from_options(options, limits)
    if not file.exists() and not options.command and file.suffix != ".toml":
        raise JobError(
            f"{file}: there is no such job file",
            mend=f"a command stands behind two dashes: wgcell run -- {file} …",
        )
    return load_job(file, limits, options)


def _with_gateway(job: Job, learn: bool, provider: Provider) -> Job:
    """The job with what no job file may say of the embedded gateway. Raises JobError."""
    if job.gateway is None:
        if learn:
            raise JobError("command line: --learn is the embedded gateway's; this job has a vpn")
        return job
    return replace(job, gateway=replace(job.gateway, learn=learn, resolver=provider.resolver))


def _endpoint(job: Job, provider: Provider, allow: list[str]) -> tuple[VpnConfig | None, str, int]:
    """The job's VPN and its vetted endpoint; nothing for the embedded gateway."""
    if job.vpn is None:
        return None, "", 0
    vpn = load_vpn_config(job.vpn)
    networks = (*provider.allow_endpoints, *endpoint.parse_networks(allow, "--allow-endpoint"))
    own = endpoint.host_networks()
    # The first address is the one used, and the one vetted: a name with two faces gains nothing.
    address = endpoint.resolve(vpn.endpoint_host, vpn.endpoint_port)[0]
    endpoint.vet(address, vpn.endpoint_port, networks, own)
    return vpn, str(address), vpn.endpoint_port


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


def _show_what_opens(job: Job, vpn: VpnConfig | None, address: str, port: int) -> None:
    if vpn is not None:
        console.print(f"[dim]wgcell:[/] opens the tunnel to {escape(address)}:{port}")
        return
    asked = job.gateway
    rules = [f"allow {rule}" for rule in asked.allow] if asked else []
    rules += [f"{inside} is {outside}" for inside, outside in asked.services] if asked else []
    if asked and asked.learn:
        rules.append("everything public, to learn")
    words = ", ".join(rules) or "nothing: no --allow, no service"
    console.print(f"[dim]wgcell:[/] opens by the embedded gateway: {escape(words)}")
    for remark in remarks.of_rules(tuple(map(parse_rule, asked.allow))) if asked else ():
        warn(remark)


def run(
    context: typer.Context,
    file: Annotated[Path | None, typer.Argument(metavar="[JOB.toml]", show_default=False)] = None,
    name: Annotated[str | None, typer.Option(help="What the cell is called.")] = None,
    vpn: Annotated[
        Path | None, typer.Option(help="A wg-quick file: the requester's tunnel.")
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST:PORT", help="What the embedded gateway lets through."),
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
    image: Annotated[str | None, typer.Option(help="The guest's image.")] = None,
    cpus: Annotated[int | None, typer.Option(help="Virtual CPUs.")] = None,
    memory: Annotated[str | None, typer.Option(help="Memory, as 2GiB.")] = None,
    disk: Annotated[str | None, typer.Option(help="Scratch disk, as 4GiB.")] = None,
    input_: Annotated[
        list[Path] | None,
        typer.Option("--input", help="A file or folder to appear in /work."),
    ] = None,
    output: Annotated[
        list[str] | None,
        typer.Option("--output", help="A path below /work to bring home."),
    ] = None,
    env: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="For the workload.")
    ] = None,
    timeout: Annotated[str | None, typer.Option(help="Longest run, as 90s or 2h.")] = None,
    grace: Annotated[
        str | None,
        typer.Option(help="From SIGTERM to SIGKILL, when the workload must end. [default: 10s]"),
    ] = None,
    rate: Annotated[
        str | None, typer.Option(help="Most the tunnel carries each way, as 10Mbit.")
    ] = None,
    quota: Annotated[
        str | None, typer.Option(help="Bytes the tunnel carries, as 2GiB; then the cell ends.")
    ] = None,
    on_rogue: Annotated[
        str | None,
        typer.Option(help="terminate (the default), or freeze to keep the VM for inspection."),
    ] = None,
    guest_walls: Annotated[
        str | None,
        typer.Option(help="on, or off for a guest that plays compromised, to test the host."),
    ] = None,
    allow_endpoint: Annotated[
        list[str] | None,
        typer.Option(metavar="CIDR", help="Endpoints to accept although they are not public."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the events instead.")] = False,
    state_dir: Annotated[
        Path | None, typer.Option("--state-dir", help="Where the cell's folder goes.")
    ] = None,
) -> None:
    """Run a job in a VM whose only way out is its tunnel.

    wgcell run --allow api.example.com:443 -- python3 agent.py

    wgcell run --vpn requester.conf --input train.py -- python3 train.py

    wgcell run job.toml

    The exit code is the workload's; 119 quota spent, 120 a frame outside the tunnel, 121 not
    verified, 122 tunnel lost, 123 guest fault, 124 timeout, 125 bad input or host fault, 130
    cancelled.
    """
    cells = state_folder(state_dir)
    check_writable(cells)
    options = JobOptions(
        name=name,
        command=tuple(context.obj or ()),
        image=image,
        inputs=tuple(input_ or ()),
        outputs=tuple(output or ()),
        timeout=timeout,
        grace=grace,
        env=_pairs("--env", env or []),
        cpus=cpus,
        memory=memory,
        disk=disk,
        vpn=vpn,
        allow=tuple(allow or ()),
        services=_pairs("--service", service or []),
        rate=rate,
        quota=quota,
        on_rogue=on_rogue,
        guest_walls=guest_walls,
    )
    provider = load_provider()
    job = _with_gateway(_job(file, options, cells), learn, provider)
    apply_ceilings(job, provider)
    check_inputs(job.inputs)
    with ThreadPoolExecutor(1) as other:
        # Hashing leaves the interpreter to us: the rest of the code is loaded meanwhile.
        loading = other.submit(store.load, job.image)
        from wgcell.cell.supervisor import Supervisor, Surroundings
        from wgcell.machine.process import find_qemu

        tunnel, address, port = _endpoint(job, provider, allow_endpoint or [])
        qemu = find_qemu()
        guest_image = _image(job.image, loading)
    accelerator, reason = choose(qemu, guest_image.kernel, store.cache_folder().parent)
    if accelerator is Accelerator.TCG:
        if not provider.allow_emulation:
            raise HostError(
                f"this provider does not allow emulation, and KVM does not work here: {reason}",
                mend="mend KVM, or set allow_emulation = true in config.toml",
            )
        if not as_json:
            warn(f"emulated, no security boundary in QEMU's own terms (KVM: {reason})")
    folder = create(cells, job.name)
    lock = folder.hold()
    folder.write("job.json", job.public())
    around = Surroundings(
        *(folder, guest_image, accelerator, reason, tunnel, address, port),
        require_walls=provider.require_walls,
        gateway_engine=provider.gateway_engine.value,
        vet_again=None
        if tunnel is None
        else lambda: _endpoint(job, provider, allow_endpoint or [])[1],
    )
    if not as_json:
        console.print(f"[dim]wgcell:[/] cell {folder.id}")
        _show_what_opens(job, tunnel, address, port)
    narrator = Narrator(quiet=as_json)

    def tell(event: dict[str, Any]) -> None:
        if as_json:
            print(json.dumps(event), flush=True)
        narrator(event)

    def discard(data: bytes) -> None:
        """With --json the workload's output is in its logs; standard output is the events'."""

    out, err = (discard, discard) if as_json else (sink(sys.stdout), sink(sys.stderr))
    try:
        supervisor = Supervisor(job, around, tell=tell, stdout=out, stderr=err)
        result = _until_its_end(supervisor)
    finally:
        narrator.stop()
        os.close(lock)
    if not as_json:
        console.print(f"[dim]wgcell:[/] records in {escape(str(folder.path))}")
    raise typer.Exit(int(result["exit_code"]))


def _until_its_end(supervisor: Supervisor) -> dict[str, Any]:
    """The cell's whole life; what a user or the system sends us ends it.

    In order, with a grace period, at the first signal; at once at the second, or at SIGQUIT. A
    signal that was ignored when we were started stays so, as nohup has it for SIGHUP.
    """
    import asyncio
    import signal

    endings = {
        signal.SIGINT: (supervisor.cancel, "interrupted (Ctrl-C)"),
        signal.SIGTERM: (supervisor.cancel, "stopped"),
        signal.SIGHUP: (supervisor.cancel, "the terminal closed"),
        signal.SIGQUIT: (supervisor.abort, "killed"),
    }

    async def watched() -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        for number, (end, words) in endings.items():
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, end, words)
        return await supervisor.run()

    return asyncio.run(watched())
