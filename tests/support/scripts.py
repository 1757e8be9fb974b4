"""A cell's life as a script: events in, actions out, in no time at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.support.guests import BARE
from tests.support.supervisors import job

from wgcell.cell.core import Core, Terms
from wgcell.cell.core import actions as do
from wgcell.cell.core import events as seen
from wgcell.cell.states import Cause, Outcome, State
from wgcell.guest import protocol, verify
from wgcell.relay import control as relay
from wgcell.vm.spec import Accelerator

REPORTS = dict.fromkeys(protocol.REPORTS, "as asked")


QUIET = (seen.StreamFacts("stdout"), seen.StreamFacts("stderr"))


@pytest.fixture(autouse=True)
def as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports are right if they say so: what they must be is ``guest/test_protocol.py``'s."""
    monkeypatch.setattr(
        verify,
        "mismatch",
        lambda config, reports: None if reports == REPORTS else "the guest's links are wrong",
    )


class Script:
    """One core, its clock, and all that it has asked for."""

    def __init__(self, **changed: Any) -> None:
        self.core = Core(Terms.of(job(**changed), Accelerator.KVM), 0.0)
        self.now = 0.0
        self.clock = 1e9
        self.actions: list[do.Action] = []
        self.streams = {facts.name: facts for facts in QUIET}
        self.tar = (0, 0.0)

    def feed(self, *events: Any, after: float = 0.0) -> list[do.Action]:
        """Give it ``events``; what they have it ask for."""
        self.now += after
        asked: list[do.Action] = []
        for event in events:
            looked = seen.Looked(tuple(self.streams.values()), *self.tar)
            asked += self.core.handle(looked, self.now)
            asked += self.core.handle(event, self.now)
        self.actions += asked
        return asked

    def guest(self, *messages: protocol.Message, after: float = 0.0) -> list[do.Action]:
        return self.feed(*map(seen.FromGuest, messages), after=after)

    def relay(self, *messages: relay.Event, after: float = 0.0) -> list[do.Action]:
        return self.feed(*map(seen.FromRelay, messages), after=after)

    def stream(self, name: str, **changed: Any) -> list[do.Action]:
        """Something happened to a stream."""
        self.streams[name] = replace(self.streams[name], **changed)
        return self.feed(seen.Alarm())

    def seconds(self, count: float, *, heartbeat: bool = True) -> list[do.Action]:
        """Let time pass: ticks, and whatever alarm is due. The others are heard meanwhile."""
        asked: list[do.Action] = []
        until = self.now + count
        while self.now < until:
            due = [one.at for one in self.actions if isinstance(one, do.Wake) and one.at > self.now]
            step = min(1.0, until - self.now, *(at - self.now for at in due))
            if heartbeat:
                self.guest(protocol.Heartbeat(1, 0))
                self.relay(relay.Alive())
            self.clock += step
            asked += self.feed(seen.Alarm(), seen.Tick(self.clock), after=step)
        return asked

    def until(self, state: State) -> Script:
        """The ordinary life, as far as ``state``."""
        steps: list[tuple[State, Callable[[], Any]]] = [
            (State.PREPARING, lambda: self.feed(seen.Began())),
            (State.CONSENT, lambda: self.feed(seen.Caused(Cause.PREPARED))),
            (State.BOOTING, lambda: self.feed(seen.Caused(Cause.CONSENTED))),
            (State.VERIFYING, self._boot),
            (State.RUNNING, self._verify),
            (State.STOPPING, lambda: self.guest(protocol.Exited(0, 10, 0))),
        ]
        for reached, step in steps:
            step()
            assert self.core.state is reached
            if reached is state:
                return self
        raise AssertionError(f"no ordinary way to {state}")

    def _boot(self) -> None:
        self.feed(seen.Booting(BARE, 7), seen.Tick(self.clock))
        self.guest(protocol.Hello(1))

    def _verify(self) -> None:
        self.guest(protocol.Report(REPORTS), protocol.Ready())
        self.relay(relay.Verified())

    def end(self) -> Outcome | None:
        """What the supervisor does when it must end the machine; the outcome."""
        assert self.asked(do.EndMachine), "nothing ended it"
        self.feed(seen.MachineDead(100.5), seen.MachineEnded(), seen.RecordClosed())
        assert self.core.state is State.ENDED
        assert len(self.asked(do.Ended)) == 1
        return self.core.outcome

    def asked(self, kind: Any) -> list[Any]:
        return [action for action in self.actions if isinstance(action, kind)]

    def sent(self) -> list[bytes]:
        return [action.line for action in self.asked(do.SendGuest)]

    def logged(self) -> list[str]:
        return [action.event for action in self.asked(do.Log | do.LogBounded)]
