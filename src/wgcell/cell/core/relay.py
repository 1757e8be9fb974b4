"""The messages of a cell's relay, and its death. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from wgcell.cell.core import events as seen
from wgcell.cell.core.gateway import Gateway
from wgcell.cell.core.terms import Terms
from wgcell.cell.core.watch import Watch
from wgcell.cell.states import Cause, State
from wgcell.relay import control as relay
from wgcell.relay.evidence import CapturedFrame

__all__ = ["RULES_OF_THE_RELAY", "Relay"]

MOST_FRAMES = 64
"""Rogue frames that are kept as evidence."""


class Relay(Gateway):
    """One cell's dealings with its relay."""

    def __init__(self, terms: Terms, started: float) -> None:
        super().__init__(terms, started)
        self.stats: relay.Stats | None = None
        self.frames: list[CapturedFrame] = []
        self._watch = Watch()

    def _seen_by_relay(self) -> None:
        """The relay has seen the guest's handshake and transport both ways."""

    def _from_relay(self, event: seen.FromRelay) -> None:
        match event.message:
            case relay.Verified():
                self._seen_by_relay()
            case relay.Alive():
                self._watch.last_valid = self._now
            case relay.Handshake(initiator):
                self._watch.last_valid = self._now
                self._log_bounded("handshake", initiator=initiator)
            case relay.Stats() as stats:
                self.stats = stats
            case relay.Rogue() as rogue:
                self._rogue(rogue)
            case relay.Quota(spent):
                reason = f"the tunnel has carried {spent} bytes of {self._terms.quota}"
                self._cause(Cause.QUOTA_SPENT, reason)
            case relay.OutOfStep(reason):
                self._log_bounded("out_of_step", reason=reason)
            case relay.Fault(detail):
                self._cause(Cause.HOST_FAULTED, f"the relay: {detail}")
            case relay.Begun() | relay.Ready():
                reason = "the relay said a second time that it is ready"
                self._cause(Cause.HOST_FAULTED, reason)

    def _rogue(self, rogue: relay.Rogue) -> None:
        self._rogue_at = self._rogue_at or rogue.boottime
        if len(self.frames) < MOST_FRAMES:
            comment = f"{rogue.reason}: {rogue.detail}"
            self.frames.append(CapturedFrame(rogue.frame, rogue.time, comment))
        self._cause(Cause.ROGUE_FRAME, f"{rogue.reason}: {rogue.detail}".rstrip(": "))

    def _relay_gone(self, event: seen.RelayGone) -> None:
        if self.state is not State.ENDED:
            self._cause(Cause.HOST_FAULTED, "the relay died")


RULES_OF_THE_RELAY: Mapping[type, Callable[..., None]] = {
    seen.FromRelay: Relay._from_relay,
    seen.RelayGone: Relay._relay_gone,
}
"""The rule for each event."""
