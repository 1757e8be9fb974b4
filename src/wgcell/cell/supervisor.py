"""Starts, watches and ends one cell: the loop that feeds the core.

Everything that the cell's parts report becomes an event for `wgcell.cell.core`, and the core's
actions are executed (`wgcell.cell.dispatch`). `Supervisor.live`, read downwards, is the walk
through a cell's start; `wgcell.cell.conclusion` has the steps of its end. Sockets and clocks are
here, decisions are not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from wgcell.cell import followers
from wgcell.cell.children import GatewayProcess, RelayProcess
from wgcell.cell.conclusion import Conclusion
from wgcell.cell.control.listener import Listener
from wgcell.cell.controlled import ControlledCell
from wgcell.cell.core import Core, Terms
from wgcell.cell.core import actions as do
from wgcell.cell.core import events as seen
from wgcell.cell.dispatch import Dispatcher
from wgcell.cell.effects import Effects
from wgcell.cell.ending import EndStep, run_all
from wgcell.cell.events import Event, EventLog
from wgcell.cell.host import HostContext
from wgcell.cell.job import Job
from wgcell.cell.launch import AGENT, Launch, SpawnRelay, guest_config
from wgcell.cell.machine_end import MachineEnd
from wgcell.cell.orders import Orders
from wgcell.cell.outlets import Outlets, copy
from wgcell.cell.pausing import Pauses
from wgcell.cell.result import CellResult
from wgcell.cell.roaming import Roaming
from wgcell.cell.sessions.links import Sessions
from wgcell.cell.sessions.refusal import refused
from wgcell.cell.states import Cause, State
from wgcell.cell.streams import Sink
from wgcell.cell.tasks import Tasks
from wgcell.cell.vouched import job_digests
from wgcell.guest import protocol
from wgcell.guest.frames import Subject
from wgcell.vm.machine import Backend, Machine
from wgcell.vm.spec import CONSOLE

__all__ = ["Supervisor"]


class Supervisor:
    """One cell's life.

    ``report`` is called with each event once it is on the disk; ``stdout`` and ``stderr`` receive
    the workload's bytes as they come. ``spawn_relay`` and ``backend`` differ only in controls and
    tests.
    """

    def __init__(
        self,
        job: Job,
        host: HostContext,
        *,
        report: Callable[[Event], None],
        stdout: Sink,
        stderr: Sink,
        spawn_relay: SpawnRelay = RelayProcess.spawn,
        backend: Backend | None = None,
    ) -> None:
        self.job = job
        self.host = host
        self.core = Core(Terms.of(job, host.accelerator), time.monotonic())
        self.log = EventLog(host.folder.path / "events.jsonl", self._record)
        self._report = report
        self.sessions = Sessions(self._refused, self.post)
        self.outlets = Outlets(job, host, {"stdout": stdout, "stderr": stderr}, self._heard)
        self.tasks = Tasks(lambda cause, reason: self.post(seen.Caused(cause, reason)))
        self.launch = Launch(job, host, self.log, spawn_relay=spawn_relay, backend=backend)
        self.machine_end = MachineEnd(self.core, self.launch, self.log)
        self.conclusion = Conclusion(
            *(job, host, self.core, self.log, self.launch, self.outlets, self.tasks),
            *(self.feed, self.machine_end.kill),
        )
        self._over = asyncio.Event()
        """The machine must be ended, or the record has failed."""
        self.dispatcher = Dispatcher(
            *(self.core, self.outlets.look, self._execute, self._over.set),
        )
        self.orders = Orders(self.core, self.launch, self.feed, host.vet_rule)
        self._effects = Effects(
            self.log,
            self.launch,
            self.outlets,
            wake=self._wake,
            end=self._end_soon,
            record_failed=self.dispatcher.record_failed,
            unpack=self._unpack,
            resume=self._resume,
            answer=self.orders.answered,
        )
        self._pauses = Pauses(self.core, self.launch, self.feed)
        self._controlled = ControlledCell(
            *(self.core, self.sessions, self._pauses, self.machine_end, self.conclusion),
            self.orders,
            cancel=self.cancel,
            abort=self.abort,
        )
        self.control = Listener(host.folder, self._controlled)

    # How others end a running cell.

    def cancel(self, reason: str) -> None:
        """End the cell in order; called again, at once. A signal's callback may call it."""
        self.machine_end.cancelled.set()
        self.post(seen.CancelAsked(reason))

    def abort(self, reason: str) -> None:
        """End the cell at once: no grace period, no results."""
        self.machine_end.cancelled.set()
        self.post(seen.AbortAsked(reason))

    def fail(self, reason: str) -> None:
        """End the cell in order, as an error: the program that follows it lost a part of it."""
        self.post(seen.Caused(Cause.OUTPUT_FAILED, reason))

    def signal(self, number: int) -> bool:
        """Send the workload's process group a signal; whether it is there to get it."""
        if self._controlled.state != State.RUNNING.value or not self.sessions.is_connected:
            return False
        self.sessions.signal(number)
        return True

    async def run(self) -> CellResult:
        """Live the cell's life; its result, which is also in ``result.json``.

        Never raises for what happens to the cell: that is the outcome. StateError means that the
        record itself could not be kept; the cell is dead then all the same.
        """
        try:
            if reason := await self.control.start():
                self.log.append("no_control", reason=reason)
            folder = self.host.folder.path
            if (folder / "job.json").exists():
                self.log.append("job", **job_digests(folder, self.host.image.folder))
            self.feed(seen.Began())
            self.conclusion.starting = self.tasks.spawn(self.live(), "the cell's start")
            await self._over.wait()
            self.dispatcher.require_record()
            await self.machine_end.end(self.conclusion.write_evidence)
            self.feed(seen.MachineEnded())
            self.dispatcher.require_record()
        except BaseException as error:
            # The record, or the supervisor, failed: nothing was completed.
            self.core.handle(seen.Crashed(str(error) or type(error).__name__), time.monotonic())
            raise
        finally:
            try:
                await run_all(self.steps(), self.conclusion.failed)
            finally:
                self.sessions.end(self.conclusion.result().exit_code)
                await self.control.close()
                self.sessions.close()
            if self.conclusion.unrecorded is not None:
                raise self.conclusion.unrecorded
        return self.conclusion.result()

    def steps(self) -> tuple[EndStep, ...]:
        """The steps of the cell's end."""
        return self.conclusion.steps()

    def _refused(self, subject: Subject) -> str:
        """Why no session may be opened now; empty if one may."""
        connected, state = self.sessions.is_connected, self._controlled.state
        return refused(subject, state, connected=connected, reads=self.job.stdin)

    def _record(self, event: Event) -> None:
        """An event is on the disk."""
        self.control.wake()
        self._report(event)

    # Events in, actions out.

    def feed(self, event: seen.Event) -> None:
        """See `Dispatcher.feed`."""
        self.dispatcher.feed(event)

    def post(self, event: seen.Event) -> None:
        """See `Dispatcher.post`."""
        self.dispatcher.post(event)

    def _execute(self, action: do.Action) -> None:
        self._effects.execute(action)

    def _heard(self) -> None:
        """A stream has changed."""
        self.post(self.outlets.look())

    def _wake(self, at: float) -> None:
        self.tasks.call_at(at, lambda: self.post(seen.Alarm()))

    def _end_soon(self, ending: do.EndMachine) -> None:
        self.machine_end.ask(ending)
        self._over.set()

    def _resume(self) -> None:
        self.tasks.spawn(self._pauses.resume(), "the machine's resumption")

    def _unpack(self) -> None:
        unpacking = self.outlets.start_unpacking()
        if unpacking is not None:
            self.tasks.spawn(followers.follow_unpacking(unpacking, self.feed), "the outputs")

    # The walk: prepare, obtain consent, boot. Everything behind it is driven by events.

    async def live(self) -> None:
        """Start everything, in an order that is a wall: see `wgcell.cell.launch`."""
        launch = self.launch
        vpn = await launch.prepare(self)
        self.feed(seen.Caused(Cause.PREPARED))
        way, own, mtu = await launch.obtain_consent(vpn)
        consented = "the endpoint answered a handshake with the job's key"
        self.feed(seen.Caused(Cause.CONSENTED, consented))
        relay, machine = await launch.connect(vpn, own)
        reports = followers.follow_relay(relay, self.feed)
        self.conclusion.following_relay = self.tasks.spawn(reports, "the relay's reports")
        launch.require_walls()
        config = self._effects.config = guest_config(self.job, vpn, mtu)
        self.feed(seen.Booting(config, machine.pid))
        self.tasks.drain(self.outlets.copy_console(machine.take(CONSOLE)))
        self.outlets.carry(machine.take, self.sessions.tap)
        await self.sessions.connect(machine.take(protocol.SESSIONS))
        agent = followers.follow_guest(machine.take(AGENT), self.feed, self._effects.attach)
        self.tasks.spawn(agent, "the guest's reports")
        await launch.run()
        self.tasks.spawn(self._watch(), "the watch")
        roaming = Roaming(relay, vpn, way, self.log.log_bounded, self.feed, self.host.vet_again)
        self.tasks.spawn(roaming.follow(self._unanswered), "the network's changes")

    def hear_gateway(self, gateway: GatewayProcess) -> None:
        """Listen to the cell's own gateway."""
        self.tasks.spawn(followers.follow_gateway(gateway, self.feed), "the gateway's reports")

    def hear_machine(self, machine: Machine) -> None:
        """Listen to the machine: its death, and its diagnostics."""
        if machine.diagnostics is not None:
            self.tasks.drain(copy(machine.diagnostics, self.outlets.diagnostics.write))
        death = followers.follow_machine(machine, self.launch.kill_switch, self.feed)
        self.tasks.spawn(death, "the machine's end")

    def _unanswered(self) -> int:
        return 0 if self.core.stats is None else self.core.stats.unanswered

    async def _watch(self) -> None:
        while True:
            self.feed(seen.Tick(time.time()))
            await asyncio.sleep(1)
            self.log.settle()
