"""A cell, put together and run: the one place that knows how, for every program that starts one.

::

    job = api.read_job(JobOptions(command=("true",)))   # within the provider's limits
    plan = api.plan(job)                                # image, endpoint, inputs: all looked at
    with api.Cell(plan) as cell:                        # its folder, its lock, its job.json
        result = await cell.run()                       # its whole life

Nothing starts before `Cell.run`, and nothing runs on when it returns. A caller that has its own
tunnel and machine, as `wgcell.prove` and the bench do, makes a `Plan` by hand.

Sizes are bytes, durations seconds, rates bytes a second. Every error is of the tree in
`wgcell.errors`; what happens to a running cell is no error but its `Result`.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from wgcell.cell import emulation, endpoint, outputs, permissions
from wgcell.cell.events import Event
from wgcell.cell.folder import Folder, create, state_folder
from wgcell.cell.job import HostLimits, Job, JobOptions
from wgcell.cell.jobfile import job_from_options, load_job
from wgcell.cell.outputs import Landed
from wgcell.cell.provider import GatewayEngine, Provider, apply_ceilings, load_provider
from wgcell.cell.states import Outcome
from wgcell.cell.survey import Survey, take_survey
from wgcell.cell.wgquick import VpnConfig, load_vpn_config
from wgcell.errors import HostError, JobError
from wgcell.guest import scripts
from wgcell.guest.frames import Terminal
from wgcell.home import config_path
from wgcell.image import store
from wgcell.image.build import build, is_current
from wgcell.net.addresses import Address
from wgcell.vm.spec import Accelerator

if TYPE_CHECKING:
    from wgcell.cell.children import RelayProcess
    from wgcell.cell.supervisor import Supervisor

__all__ = [
    "STOCK_IMAGE",
    "Arrived",
    "Build",
    "Cell",
    "Plan",
    "Platform",
    "Result",
    "Sink",
    "plan",
    "platform",
    "read_job",
]

STOCK_IMAGE = "debian"
"""Built when it is missing, and anew when wgcell has changed."""

Build = Callable[[str, str], store.Image]
"""Builds the image of a name; the second word says why, in a sentence. Raises ImageError."""
Sink = Callable[[bytes], None]
"""Takes some of the workload's bytes."""
Vet = Callable[[], tuple[Address, ...]]
"""Resolves the tunnel's endpoint and vets its addresses. Raises EndpointError if none will do."""
VetRule = Callable[[str], str]
"""What a rule would open beyond the provider's limits, in words; empty if nothing. Raises
PolicyError for what is no rule."""
Spawn = Callable[..., Coroutine[object, None, "RelayProcess"]]
"""The type of `wgcell.cell.children.RelayProcess.spawn`; tests put another function in its
place."""


# Before a cell.


@dataclass(frozen=True, slots=True)
class Platform:
    """The parts of a VM on this machine."""

    image: store.Image
    accelerator: Accelerator
    reason: str
    """Why that accelerator; KVM's own words if it does not work."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A job and all that its cell needs of this machine; nothing has started."""

    job: Job
    platform: Platform
    tunnel: VpnConfig | None = None
    """None is the embedded gateway."""
    addresses: tuple[Address, ...] = ()
    """The endpoint's, vetted, in the order in which they are to be tried."""
    vet_again: Vet | None = None
    """Asked whenever the endpoint has to be found anew. None: it stays where it is."""
    require_walls: bool = False
    """Whether a wall of the host's that is missing here ends the cell."""
    gateway_engine: GatewayEngine = GatewayEngine.AUTO
    survey: Survey | None = None
    """The survey of the inputs; None: there was none."""
    force: bool = False
    """Whether outputs may overwrite what is there."""
    vet_rule: VetRule | None = None
    """Vets a rule that a stranger wants opened while the cell runs. None: no such wish is granted.
    """


def read_job(
    options: JobOptions,
    file: Path | None = None,
    *,
    cells: Path | None = None,
    provider: Provider | None = None,
    learn: bool = False,
) -> Job:
    """The job of a ``file`` with ``options`` over it, or of the options alone, within the limits.

    ``cells`` is the folder that the cell will be in (the user's state folder), ``provider`` this
    machine's configuration (config.toml's). ``learn`` lets the embedded gateway pass all that is
    public. Raises JobError, which names the file, the key and what is allowed.
    """
    limits = HostLimits.of_this_host(cells or state_folder())
    rules = provider or load_provider()
    job = job_from_options(options, limits) if file is None else load_job(file, limits, options)
    if job.gateway is not None:
        asked = replace(job.gateway, learn=learn, resolver=rules.resolver)
        job = replace(job, gateway=asked)
    elif learn:
        raise JobError("command line: --learn is for a cell's own gateway; this job has a vpn")
    job = apply_ceilings(job, rules)
    permissions.vet(job, rules, endpoint.host_networks)
    return job


def plan(
    job: Job,
    *,
    provider: Provider | None = None,
    allow_endpoints: Sequence[str] = (),
    force: bool = False,
    make: Build | None = None,
) -> Plan:
    """All that ``job`` needs, looked at: inputs, outputs, tunnel, endpoint, image, accelerator.

    ``allow_endpoints`` are networks whose addresses may be endpoints although they are not public.
    ``force`` lets outputs overwrite files. ``make`` builds the stock image where it is missing; by
    default without a word. Blocks. Raises InputError for the job's files and endpoint, HostError
    (ImageError, LaunchError) for what this machine lacks.
    """
    rules = provider or load_provider()
    if job.gateway is not None and job.gateway.publish:
        from wgcell.cell.own_gateway import check_published

        check_published(job.gateway, rules.gateway_engine)
    survey = _survey(job, force)
    with ThreadPoolExecutor(1) as other:
        # Hashing leaves the interpreter to us: the rest of the code is loaded meanwhile.
        loading = other.submit(store.load, job.image)
        import_module("wgcell.cell.supervisor")
        # The file is read once: it may be a pipe, or gone by the time the socket is renewed.
        tunnel = None if job.vpn is None else load_vpn_config(job.vpn, job.vpn_beneath)
        vet = None if tunnel is None else _vetting(tunnel, rules, allow_endpoints)
        addresses = () if vet is None else vet()
        found = platform(_image(job.image, loading, make or _build_quietly))
    if found.accelerator is Accelerator.TCG and not rules.allow_emulation:
        raise HostError(
            f"this provider does not allow emulation, and KVM does not work here: {found.reason}",
            hint=f"{emulation.remedy(found.reason)}; or set allow_emulation = true in "
            f"{config_path()}",
        )
    return Plan(
        *(job, found, tunnel, addresses, vet, rules.require_walls, rules.gateway_engine),
        *(survey, force),
        vet_rule=lambda text: permissions.vet_rule(text, rules, endpoint.host_networks),
    )


def platform(image: store.Image) -> Platform:
    """The accelerator for VMs of ``image`` here. Raises HostError if no backend is installed."""
    from wgcell.vm import backends

    probed = backends.default().probe(image.kernel, store.cache_folder().parent)
    return Platform(image, *probed)


def _survey(job: Job, force: bool) -> Survey:
    """The inputs, looked at; and whether the outputs could land. Raises InputError."""
    synced = job.landing is not None and job.landing.synced
    survey = take_survey(job.inputs, job.disk, job.excludes, remember=synced)
    if job.landing is not None:
        outputs.check(job.landing.folder, job.landing.outputs, force)
    return survey


def _vetting(vpn: VpnConfig, provider: Provider, allow: Sequence[str]) -> Vet:
    """A function that resolves the tunnel's endpoint and vets its addresses, now and at each
    renewal.

    Each call raises EndpointError; a bad ``allow`` raises at once. Only vetted addresses are ever
    used, and they are used as they are, so a name with two faces gains nothing.
    """
    networks = (*provider.allow_endpoints, *endpoint.parse_networks(allow, "--allow-endpoint"))

    def vet() -> tuple[Address, ...]:
        found = endpoint.resolve(vpn.endpoint_host, vpn.endpoint_port)
        return endpoint.vetted(found, vpn.endpoint_port, networks, endpoint.host_networks())

    return vet


def _image(name: str, loading: Future[store.Image], make: Build) -> store.Image:
    """The image, built first if it is the stock one and not there yet."""
    if name == STOCK_IMAGE and not store.exists(name):
        return make(name, f"the image {name} is not built yet; this is done once")
    image = loading.result()
    if name == STOCK_IMAGE and not is_current(image, scripts()):
        return make(name, f"the image {name} is another version's; it is made anew")
    return image


def _build_quietly(name: str, why: str) -> store.Image:
    return build(name, lambda words: None, scripts())


# A cell.


@dataclass(frozen=True, slots=True)
class Arrived:
    """The result of the outputs' unpacking in the cell's folder."""

    complete: bool = False
    refused: int = 0
    """Files that were not taken."""


@dataclass(frozen=True, slots=True)
class Result:
    """How a cell ended: what ``result.json`` holds."""

    outcome: Outcome
    exit_code: int
    """The workload's, or the outcome's own."""
    reason: str
    """In words; empty if there is nothing to say."""
    refused: Mapping[str, int]
    """Frames that the relay refused, by reason."""
    record: Mapping[str, object] = field(repr=False)
    """All of it."""

    @staticmethod
    def of(record: Mapping[str, object]) -> Result:
        """The result in a record."""
        relay = record["relay"]
        refused = relay.get("refused", {}) if isinstance(relay, dict) else {}
        return Result(
            Outcome(record["outcome"]),
            int(str(record["exit_code"])),
            str(record["reason"] or ""),
            dict(refused),
            record,
        )


class Cell:
    """One cell: its folder and lock from the beginning, its life in `run`.

    A context manager: at its end the lock is let go, and the folder stays, with all records.
    """

    def __init__(self, plan: Plan, cells: Path | None = None) -> None:
        """Make the cell's folder in ``cells`` (the user's state folder). Raises StateError."""
        self.plan = plan
        self.folder: Folder = create(cells or state_folder(), plan.job.name)
        self._supervisor: Supervisor | None = None
        self._lock: int | None = self.folder.hold()
        try:
            self.folder.write("job.json", plan.job.public())
        except BaseException:
            self.close()
            raise

    @property
    def id(self) -> str:
        """The cell's id, as `wgcell ps` has it."""
        return self.folder.id

    def __enter__(self) -> Cell:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let the lock go: for everybody else, the cell is over."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def run(
        self,
        *,
        event: Callable[[Event], None] = lambda event: None,
        stdout: Sink = lambda data: None,
        stderr: Sink = lambda data: None,
        land: Callable[[Arrived], Awaitable[Landed]] | None = None,
        spawn_relay: Spawn | None = None,
    ) -> Result:
        """Live the cell's life, once.

        ``event`` gets each event, ``stdout`` and ``stderr`` the workload's bytes as they come: none
        of them may block. ``land`` moves the outputs to their place when the machine is dead; by
        default `land` does, in a thread, and asks no questions. ``spawn_relay`` starts another
        relay, which only the controls of `wgcell.prove` and the bench do.

        Never raises for what happens to the cell: that is the result. Raises StateError if its
        record could not be kept; the cell is dead then all the same.
        """
        from wgcell.cell.children import RelayProcess
        from wgcell.cell.ending import in_thread
        from wgcell.cell.host import HostContext
        from wgcell.cell.supervisor import Supervisor

        plan = self.plan

        async def arrived(came: Mapping[str, object]) -> Landed:
            refused = came.get("refused_count")
            count = refused if isinstance(refused, int) else 0
            what = Arrived(bool(came.get("complete")), count)
            return await (land(what) if land else in_thread(lambda: self.land(what)))

        host = HostContext(
            *(self.folder, plan.platform.image, plan.platform.accelerator, plan.platform.reason),
            *(plan.tunnel, plan.addresses),
            require_walls=plan.require_walls,
            gateway_engine=plan.gateway_engine.value,
            land=arrived,
            known_links=frozenset() if plan.survey is None else plan.survey.links,
            vet_again=plan.vet_again,
            vet_rule=plan.vet_rule,
        )
        self._supervisor = Supervisor(
            plan.job,
            host,
            report=event,
            stdout=stdout,
            stderr=stderr,
            spawn_relay=spawn_relay or RelayProcess.spawn,
        )
        return Result.of((await self._supervisor.run()).as_json())

    # The workload's terminal and input; all of these in the loop that runs the cell.

    def signal(self, number: int) -> bool:
        """Send the running workload's process group a signal; whether there is one to be sent."""
        return self._supervisor is not None and self._supervisor.signal(number)

    def resize(self, terminal: Terminal) -> None:
        """The workload's terminal has another size."""
        if self._supervisor is not None:
            self._supervisor.sessions.resize(terminal)

    def hold_stdin(self, credited: Callable[[int], None]) -> str:
        """Have the running workload's standard input, a window of bytes at first; or why not.

        ``credited`` is called with how many bytes more may be written then.
        """
        if self._supervisor is None:
            return "there is no workload"
        return self._supervisor.sessions.hold_stdin(credited)

    def write_stdin(self, credited: Callable[[int], None], data: bytes) -> None:
        """More for the standard input, of whoever holds it; no data is its end."""
        if self._supervisor is not None:
            self._supervisor.sessions.write_stdin(credited, data)

    # Its end.

    def cancel(self, reason: str) -> None:
        """End the running cell in order, with its grace period; called again, at once.

        From the loop that runs it, as a signal's callback may be.
        """
        if self._supervisor is not None:
            self._supervisor.cancel(reason)

    def fail(self, reason: str) -> None:
        """End the running cell in order, with the outcome ``error``; again does no harm.

        For a caller that could not keep a part of the cell's events or output. From the loop that
        runs it.
        """
        if self._supervisor is not None:
            self._supervisor.fail(reason)

    def abort(self, reason: str) -> None:
        """End the running cell at once: no grace period, no results."""
        if self._supervisor is not None:
            self._supervisor.abort(reason)

    def land(self, arrived: Arrived, agree: Callable[[str], bool] | None = None) -> Landed:
        """The outputs, from the cell's folder to where they were asked from. Raises StateError.

        ``agree`` is shown the changes to a folder in sync, and says whether to make them; None:
        nobody can be asked.
        """
        unpacked, job, survey = self.folder.path / "outputs", self.plan.job, self.plan.survey
        landing = job.landing
        if not unpacked.is_dir():
            return Landed("no outputs came", False)
        if landing is None or (landing.synced and survey is None):
            return outputs.keep(unpacked)
        if not arrived.complete:
            return Landed(f"outputs did not come whole, and stay in {unpacked}", False)
        if not landing.synced or survey is None:
            return outputs.land(unpacked, landing.folder, self.plan.force, landing.outputs)
        return outputs.sync(
            *(unpacked, landing.folder, self.plan.force, survey.seen, agree),
            kept_here=survey.kept_here,
            others=[one.path.name for one in job.inputs if not one.contents],
            whole=not arrived.refused,
        )
