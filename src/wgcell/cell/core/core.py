"""The cause of each event in a cell's life, and the actions. No I/O.

One rule divides the guest's reports from the host's observations: the host never believes the guest
that all is well, and always believes it that something is wrong. So ``running`` needs the relay,
which has *seen* the guest's handshake and transport both ways; for ``tampered`` the guest's report
is enough.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping

from wgcell.cell.core import actions as do
from wgcell.cell.core import events as seen
from wgcell.cell.core.gateway import RULES_OF_THE_GATEWAY
from wgcell.cell.core.life import RULES_OF_LIFE
from wgcell.cell.core.pausing import RULES_OF_PAUSES
from wgcell.cell.core.relay import RULES_OF_THE_RELAY, Relay
from wgcell.cell.core.results import LAST_BYTES, MOST_IN_FLIGHT, STOPPED, Results, how_it_exited
from wgcell.cell.core.terms import Terms
from wgcell.cell.core.verification import Verification
from wgcell.cell.states import Cause, Outcome, State
from wgcell.guest import protocol

__all__ = ["Core"]

_LOOK = 0.25
"""Seconds between two looks at a workload that was killed."""
_SHOWN = 16 * 1024
"""Characters of each of a guest's wrong reports that are kept."""
_LONGEST_COMMAND = 1000
_LONGEST_REASON = 200
"""Characters of a session's command, and of the guest's words about its end, that are recorded."""


class Core(Relay):
    """One cell's decisions. ``started`` is when the supervisor began, by the clock of `handle`."""

    def __init__(self, terms: Terms, started: float) -> None:
        super().__init__(terms, started)
        self.exit_code: int | None = None
        self.drops = 0
        self.results = Results(terms.outputs, terms.disk)
        self._verification = Verification()
        self._mtu = 0
        """The tunnel's, as it was last sent to the guest."""
        self._out_of_memory: protocol.OutOfMemory | None = None
        self._exit_logged = False
        # Of the grace period.
        self._killed_most = 0
        self._silent = 0.0

    def handle(self, event: seen.Event, now: float) -> list[do.Action]:
        """The actions that ``event``, at ``now``, makes necessary, in order."""
        self._now, self._actions = now, []
        _RULES[type(event)](self, event)
        return self._actions

    def _entered(self, state: State) -> None:
        super()._entered(state)
        match state:
            case State.RUNNING:
                self._release()
            case State.TERMINATING:
                self._do(do.SendGuest(protocol.TERMINATE))
                self._wake(self._terms.grace, self._kill_workload)
            case State.STOPPING:
                self.results.began(self._now)
                if self._terms.outputs:
                    self._do(do.StartUnpacking())
                self._check_results()

    # From the boot to the release.

    def _booting(self, event: seen.Booting) -> None:
        self._verification.config, self._mtu = event.config, event.config.mtu
        self._log("booting", accelerator=self._terms.accelerator.value, pid=event.pid)
        self._wake(self._terms.verify_timeout, self._not_verified)

    def _not_verified(self) -> None:
        patience = self._terms.verify_timeout
        self._cause(Cause.NOT_VERIFIED, f"the tunnel was not verified within {patience:g} s")

    def _seen_by_relay(self) -> None:
        self._verification.relay_verified = True
        self._check_verified()

    def _check_verified(self) -> None:
        wrong = self._verification.verdict()
        if wrong is None:
            return
        if wrong:
            reports = self._verification.reports
            self._log_bounded("reports", **{k: v[:_SHOWN] for k, v in reports.items()})
            self._cause(Cause.TAMPERED, wrong)
            return
        self._cause(Cause.VERIFIED, "the relay saw the guest's handshake and transport both ways")

    def _release(self) -> None:
        self._watch.began(self._now)
        self._do(do.SendGuest(protocol.RELEASE))
        if self._terms.timeout is not None:
            self._wake(self._terms.timeout, self._time_is_up)

    def _time_is_up(self) -> None:
        # It means nothing once the workload has ended, however slowly its output is read.
        reason = f"the workload ran longer than {self._terms.timeout:g} s"
        self._cause(Cause.TIME_IS_UP, reason)

    # The guest's messages: hostile, one rule each.

    def _from_guest(self, event: seen.FromGuest) -> None:
        self._watch.last_heartbeat = self._now
        _GUEST_RULES[type(event.message)](self, event.message)

    def _fault(self, how: str) -> None:
        self._cause(Cause.GUEST_FAULTED, how)

    def _hello(self, message: protocol.Hello) -> None:
        if self._verification.greeted:
            self._fault("the guest said hello twice")
            return
        self._verification.greeted = True
        self._do(do.FreeBootFiles())
        self._do(do.SendConfiguration())
        self._cause(Cause.GUEST_READY)

    def _report(self, message: protocol.Report) -> None:
        self._verification.reports.update(message.texts)

    def _ready(self, message: protocol.Ready) -> None:
        if self._verification.guest_ready:
            self._fault("the guest said ready twice")
            return
        self._verification.guest_ready = True
        self._check_verified()

    def _heartbeat(self, message: protocol.Heartbeat) -> None:
        if message.drops > self.drops:
            self._log_bounded("guest_drops", count=message.drops)
        self.drops = message.drops

    def _changed(self, message: protocol.Changed) -> None:
        watched = self.state in (State.VERIFYING, State.RUNNING)
        if self._terms.every_wall and watched and not self._verification.tampered:
            self._verification.tampered = True
            self._log("changed", what=message.what, seen=message.text[:4096])
            self._cause(Cause.TAMPERED, f"the guest's {message.what} changed")

    def _guest_fault(self, message: protocol.Fault) -> None:
        how = "the guest's agent failed" if self.was_released else "the guest could not start"
        self._fault(f"{how}: {message.text}")

    def _oom(self, message: protocol.OutOfMemory) -> None:
        if self._out_of_memory is None:
            self._out_of_memory = message
            self._log("out_of_memory", count=message.count, victim=message.victim)

    def _exited(self, message: protocol.Exited) -> None:
        if self.state not in (State.RUNNING, State.TERMINATING) or self.exit_code is not None:
            return
        absurd = self.results.state(message)
        if absurd is not None:
            self._fault(f"the guest owes more of {absurd} than a port can hold")
            return
        self.exit_code = message.code
        how = how_it_exited(message.code, self._out_of_memory, self._terms.memory)
        self._cause(Cause.WORKLOAD_EXITED, how)

    def _outputs(self, message: protocol.Outputs) -> None:
        if self.state is not State.STOPPING and self.exit_code is None:
            self._fault("the guest sent outputs before the workload's end")
            return
        if self.results.sent is None and self._terms.outputs:
            self.results.sent = message
            self._log("outputs_sent", bytes=message.size, sha256=message.sha256)
            self._do(do.ExpectOutputs(message.size, message.sha256))
            self._check_results()

    # The results, until all of them have arrived.

    def _looked(self, event: seen.Looked) -> None:
        self.results.look(event)
        for name, account in self.results.streams.items():
            facts = account.facts
            if account.closed or not (facts.reader_gone or facts.failure is not None):
                continue
            account.closed = True
            if facts.failure is None:
                self._log("reader_gone", stream=name)
                self._close_stream(name)
                continue
            self._log("output_failed", stream=name, reason=facts.failure)
            self._close_stream(name)
            why = f"what the workload wrote to {name} could not be written: {facts.failure}"
            self._cause(Cause.OUTPUT_FAILED, why)
        self._check_results()

    def _close_stream(self, name: str) -> None:
        """Tell the guest that nobody reads it; a workload that has ended need not know."""
        if self.exit_code is None:
            self._do(do.SendGuest(protocol.closed(name)))

    def _unpacking_ended(self, event: seen.UnpackingEnded) -> None:
        self.results.unpacked = event.unpacked
        self._check_results()

    def _check_results(self) -> None:
        """If the workload has ended and nothing is owed any more, say so, once."""
        results = self.results
        if self.state is not State.STOPPING or results.settled:
            return
        short = results.short()
        if short is not None:
            results.settled = True
            self._cause(Cause.RESULTS_LOST, short)
        elif results.arrived:
            if not self._exit_logged:
                self._exit_logged = True
                self._log("exited", exit_code=self.exit_code)
            verdict = results.tar_verdict()
            if verdict is not None:
                results.settled = True
                self._cause(*verdict)

    def _give_up(self, name: str) -> None:
        account = self.results.streams[name]
        account.given_up = True
        self._do(do.GiveUpReader(name))
        self._log("reader_stopped", stream=name, delivered=account.facts.delivered)
        self._close_stream(name)
        self._check_results()

    def _give_up_readers(self, patience: float) -> None:
        """Nobody waits for good for a reader that stands still."""
        for name, account in self.results.streams.items():
            if account.stands_still(self._now, patience):
                self._give_up(name)

    # A workload that must end: SIGTERM was sent, then a grace period, then SIGKILL.

    def _kill_workload(self) -> None:
        if self.state is not State.TERMINATING:
            return
        self._do(do.SendGuest(protocol.KILL))
        self._killed_most = self.results.delivered + MOST_IN_FLIGHT
        self._wake(_LOOK, self._look_at_the_killed)

    def _look_at_the_killed(self) -> None:
        """The workload is dead soon. A slow reader gets all that it wrote; one that stands still
        does not. A guest that writes on, or never reports the end, is ended."""
        if self.state is not State.TERMINATING:
            return
        waited = self.results.reader_waited_for
        self._give_up_readers(LAST_BYTES)
        self._silent += 0.0 if waited else _LOOK
        over = self._silent > self._terms.kill_patience
        if over or self.results.delivered > self._killed_most:
            self._cause(Cause.GRACE_IS_OVER)
        else:
            self._wake(_LOOK, self._look_at_the_killed)

    # The watch.

    def _tick(self, event: seen.Tick) -> None:
        passed = self._watch.tick(self._now, event.clock, stands_still=self.is_paused)
        if passed is None:
            return
        if self.state is State.STOPPING:
            self._watch_results(passed)
        elif self.state is State.RUNNING and not self.is_paused:
            if self._watch.must_set_clock(self._now, event.clock, passed):
                self._do(do.SetGuestClock())
            silent = self._watch.silence(self._now, self._terms)
            if silent is not None:
                self._cause(*silent)

    def _watch_results(self, passed: float) -> None:
        late = self.results.late(self._now, passed)
        if late is not None:
            self._cause(Cause.RESULTS_LOST, late)
        elif passed <= STOPPED and self.outcome is not Outcome.COMPLETED:
            # A cell that was to end does not wait for good.
            self._give_up_readers(max(self._terms.grace, LAST_BYTES))

    # The network.

    def _path_seen(self, event: seen.PathSeen) -> None:
        """Tell the guest of a narrower path; until then the kernel fragments. A wider path counts
        only on another way: otherwise the kernel has merely forgotten what a router reported."""
        if self.state is not State.RUNNING or not event.path:
            return
        if event.fits < self._mtu or (event.may_grow and event.fits > self._mtu):
            self._log_bounded("path_mtu", path=event.path, tunnel=event.fits, before=self._mtu)
            self._mtu = event.fits
            self._do(do.SendGuest(protocol.tunnel_mtu(event.fits)))

    def _address_met(self, event: seen.AddressMet) -> None:
        # A responder ignores an initiation older than the last of the same key, and the last was
        # the supervisor's, by this host's clock.
        self._do(do.SetGuestClock())
        self._do(do.SendGuest(protocol.RECONNECT))

    # The sessions: recorded, and nothing else.

    def _session_opened(self, event: seen.SessionOpened) -> None:
        fields = {"session": event.session, "kind": event.kind, "uid": event.uid}
        command = shlex.join(event.words)[:_LONGEST_COMMAND]
        self._log_bounded("session_opened", **fields, command=command, terminal=event.terminal)

    def _session_exited(self, event: seen.SessionExited) -> None:
        fields = {"session": event.session, "exit_code": event.exit_code}
        self._log_bounded("session_exited", **fields, reason=event.reason[:_LONGEST_REASON])


_RULES: Mapping[type, Callable[..., None]] = {
    **RULES_OF_LIFE,
    **RULES_OF_PAUSES,
    **RULES_OF_THE_GATEWAY,
    **RULES_OF_THE_RELAY,
    seen.Booting: Core._booting,
    seen.FromGuest: Core._from_guest,
    seen.Looked: Core._looked,
    seen.UnpackingEnded: Core._unpacking_ended,
    seen.PathSeen: Core._path_seen,
    seen.AddressMet: Core._address_met,
    seen.SessionOpened: Core._session_opened,
    seen.SessionExited: Core._session_exited,
    seen.Tick: Core._tick,
}
_GUEST_RULES: dict[type, Callable[..., None]] = {
    protocol.Hello: Core._hello,
    protocol.Report: Core._report,
    protocol.Ready: Core._ready,
    protocol.Heartbeat: Core._heartbeat,
    protocol.Changed: Core._changed,
    protocol.Fault: Core._guest_fault,
    protocol.OutOfMemory: Core._oom,
    protocol.Exited: Core._exited,
    protocol.Outputs: Core._outputs,
}
