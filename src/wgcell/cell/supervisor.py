"""Starts, watches and ends one cell: the loop around the core.

Whatever is heard becomes an event for `wgcell.cell.core`, whose actions are executed here, in
order. The walk through a cell's life is `Supervisor.live`, read downwards; what ends it is
``wgcell.cell.conclusion``. Sockets and clocks are here, decisions are not.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable

from wgcell.cell import followers
from wgcell.cell.children import GatewayProcess, RelayProcess
from wgcell.cell.conclusion import Conclusion
from wgcell.cell.control import words as control
from wgcell.cell.control.listener import Listener
from wgcell.cell.core import Core, Terms
from wgcell.cell.core import actions as do
from wgcell.cell.core import events as seen
from wgcell.cell.effects import Effects
from wgcell.cell.ending import EndStep, run_all, words
from wgcell.cell.events import Event, EventLog
from wgcell.cell.host import HostContext
from wgcell.cell.job import Job
from wgcell.cell.launch import AGENT, Launch, SpawnRelay, guest_config
from wgcell.cell.outlets import Outlets, copy
from wgcell.cell.result import CellResult
from wgcell.cell.roaming import Roaming
from wgcell.cell.sessions.links import Sessions
from wgcell.cell.sessions.refusal import refused
from wgcell.cell.states import Cause
from wgcell.cell.streams import Sink
from wgcell.cell.tasks import Tasks
from wgcell.cell.vouched import job_digests
from wgcell.errors import HostError, StateError
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
        self.control = Listener(host.folder, self)
        self._report = report
        self.sessions = Sessions(self._refused, self.post)
        self.outlets = Outlets(job, host, {"stdout": stdout, "stderr": stderr}, self._heard)
        self.tasks = Tasks(lambda cause, reason: self.post(seen.Caused(cause, reason)))
        self.launch = Launch(job, host, self.log, spawn_relay=spawn_relay, backend=backend)
        self.conclusion = Conclusion(
            *(job, host, self.core, self.log, self.launch, self.outlets, self.tasks),
            *(self.feed, self._kill),
        )
        self._effects = Effects(
            self.log,
            self.launch,
            self.outlets,
            wake=self._wake,
            end=self._end_soon,
            record_failed=self._record_failed,
            unpack=self._unpack,
            resume=self._resume,
        )
        self._cancelled = asyncio.Event()
        self._over = asyncio.Event()
        """The machine must be ended, or the record has failed."""
        self._ending: do.EndMachine | None = None
        self._record_error: StateError | None = None
        self._frozen = False
        self._pausing = asyncio.Lock()
        self._waiting: deque[seen.Event] = deque()
        self._feeding = False

    # What others may ask of a running cell.

    def cancel(self, reason: str) -> None:
        """End the cell in order; called again, at once. A signal's callback may call it."""
        self._cancelled.set()
        self.post(seen.CancelAsked(reason))

    def abort(self, reason: str) -> None:
        """End the cell at once: no grace period, no results."""
        self._cancelled.set()
        self.post(seen.AbortAsked(reason))

    def fail(self, reason: str) -> None:
        """End the cell in order, as an error: the program that follows it lost a part of it."""
        self.post(seen.Caused(Cause.OUTPUT_FAILED, reason))

    def stop(self, *, now: bool) -> None:
        """`abort` or `cancel`, asked for over the control socket."""
        (self.abort if now else self.cancel)("stopped")

    async def serve(
        self, transport: asyncio.Transport, first: bytes, uid: int, *, detached: bool
    ) -> None:
        """Speak frames with a client of the control socket until it is gone."""
        await self.sessions.serve(transport, first, uid, detached=detached)

    def _refused(self, subject: Subject) -> str:
        connected = self.sessions.is_connected
        return refused(subject, self.state, connected=connected, reads=self.job.stdin)

    async def pause(self, uid: int) -> None:
        """Let the machine stand still, for that user. Raises StateError with why it can't."""
        async with self._pausing:
            machine, why = self.launch.machine, self.core.no_pause
            if why or machine is None:
                raise StateError(why or "it has no machine")
            if not await machine.freeze():
                raise StateError("its machine does not answer")
            self.feed(seen.Paused(uid))

    async def unpause(self, uid: int) -> None:
        """Let the machine go on, for that user. Raises StateError with why it can't."""
        async with self._pausing:
            machine = self.launch.machine
            if machine is None or not self.core.is_paused:
                raise StateError("it is not paused")
            try:
                await machine.go()
            except HostError as error:
                raise StateError(error.message) from error
            self.feed(seen.Unpaused(uid))

    def _resume(self) -> None:
        """Let the machine go on, for it must end, or bring its results."""

        async def resumed() -> None:
            async with self._pausing:
                if self.launch.machine is not None:
                    await self.launch.machine.go()

        self.tasks.spawn(resumed(), "the machine's resumption")

    @property
    def state(self) -> str:
        """The cell's state, in a word."""
        if self._frozen:
            return "frozen"
        return "paused" if self.core.is_paused else self.core.state.value

    @property
    def end(self) -> control.Ended:
        """How the cell has ended, as far as it is known."""
        result = self.conclusion.result()
        return control.Ended(result.outcome.value, result.exit_code, result.reason)

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
            await self._end_machine()
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
        """What is done when the cell has ended."""
        return self.conclusion.steps()

    def _record(self, event: Event) -> None:
        """An event is on the disk."""
        self.control.wake()
        self._report(event)

    # Events in, actions out.

    def feed(self, event: seen.Event) -> None:
        """Give the core ``event``, and do what it asks for: all of it, whatever fails meanwhile.

        From within an action (``report`` may call `cancel`) it is fed when that event's actions
        are done. Raises the first of the failures.
        """
        self._waiting.append(event)
        if self._feeding:
            return
        failed: Exception | None = None
        self._feeding = True
        try:
            while self._waiting:
                failed = self._fed(self._waiting.popleft(), failed)
        finally:
            self._feeding = False
        if failed is not None:
            raise failed

    def _fed(self, event: seen.Event, failed: Exception | None) -> Exception | None:
        """The first failure, ``failed`` if there was one before."""
        actions: list[do.Action] = []
        for one in (self.outlets.look(), event):
            try:
                actions += self.core.handle(one, time.monotonic())
            except Exception as error:
                failed = failed or error
        for action in actions:
            if self._record_error and not isinstance(action, do.Record | do.EndMachine):
                continue  # what was not written down is not done
            try:
                self._effects.execute(action)
            except Exception as error:
                failed = failed or error
        return failed

    def post(self, event: seen.Event) -> None:
        """`feed`, for callbacks of the loop: an error there is a cause and not a traceback."""
        try:
            self.feed(event)
        except Exception as error:
            with contextlib.suppress(Exception):
                self.feed(seen.Caused(Cause.HOST_FAULTED, words(error)))

    def _heard(self) -> None:
        """A stream has changed."""
        self.post(self.outlets.look())

    def _wake(self, at: float) -> None:
        self.tasks.call_at(at, lambda: self.post(seen.Alarm()))

    def _end_soon(self, ending: do.EndMachine) -> None:
        self._ending = ending
        if self.launch.machine is not None and not ending.freeze:
            self.launch.machine.kill()  # before anything is written down
        self._over.set()

    def _record_failed(self, error: StateError) -> None:
        """A cell whose states are not on record must not live on."""
        self._record_error = self._record_error or error
        self.core.handle(seen.Crashed(str(error)), time.monotonic())
        self._over.set()

    def _unpack(self) -> None:
        unpacking = self.outlets.start_unpacking()
        if unpacking is not None:
            self.tasks.spawn(followers.follow_unpacking(unpacking, self.feed), "the outputs")

    # The walk: prepare, obtain consent, boot. What follows is driven by what is heard.

    async def live(self) -> None:
        """Start everything, in the order that is a wall: see `wgcell.cell.launch`."""
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
        """Listen to the machine: its death, and what it says of itself."""
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

    # The machine's end.

    async def _end_machine(self) -> None:
        """First the machine, then the words about it, which wait for the disk."""
        ending, machine = self._ending, self.launch.machine
        if self._record_error is not None:
            raise self._record_error
        if ending is not None and machine is not None:
            if ending.freeze and await machine.freeze():
                self.conclusion.write_evidence()  # whoever looks into the machine reads this first
                self._frozen = True
                self.log.append("frozen", reason=ending.reason)
                await followers.cancelled_or_dead(self._cancelled, machine)
                self._frozen = False
            with contextlib.suppress(HostError):  # the conclusion tries again, and says so
                await self._kill()
        self.feed(seen.MachineEnded())
        if self._record_error is not None:
            raise self._record_error

    async def _kill(self) -> None:
        """Kill the machine and wait until it is dead; more than once does no harm."""
        machine = self.launch.machine
        if machine is None:
            return
        machine.kill()
        await machine.dead()
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        self.core.handle(seen.MachineDead(now), time.monotonic())
        await machine.reap()
