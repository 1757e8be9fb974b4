"""The messages of a cell's relay and of its gateway, and their deaths. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from wgcell.cell.core import events as seen
from wgcell.cell.core.pausing import Pausing
from wgcell.cell.core.terms import Terms
from wgcell.cell.core.watch import Watch
from wgcell.cell.states import Cause, State
from wgcell.gateway import words as gateway
from wgcell.gateway.peer.tally import FlowCounts
from wgcell.relay import control as relay
from wgcell.relay.evidence import CapturedFrame

__all__ = ["RULES_OF_CHILDREN", "Children"]

MOST_FRAMES = 64
"""Rogue frames that are kept as evidence."""


class Children(Pausing):
    """One cell's two processes that carry its traffic."""

    def __init__(self, terms: Terms, started: float) -> None:
        super().__init__(terms, started)
        self.stats: relay.Stats | None = None
        self.flows = FlowCounts()
        self.frames: list[CapturedFrame] = []
        self._watch = Watch()
        self._gateway_fault = ""

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

    # The gateway's messages.

    def _from_gateway(self, event: seen.FromGateway) -> None:
        message = event.message
        self._gateway_fault = message.detail if isinstance(message, gateway.Fault) else ""
        if isinstance(message, gateway.Ready):
            reason = "the gateway said a second time that it is ready"
            self._cause(Cause.HOST_FAULTED, reason)
            return
        entry = gateway.EVENTS.entry(message)
        entry.pop("time", None)
        self._log_bounded(str(entry.pop("event")), **entry)
        if isinstance(message, gateway.Flow):
            self.flows.begun(message.flow, message.verdict)
        elif isinstance(message, gateway.FlowEnd):
            self.flows.ended(message.flow, message.verdict)

    def _gateway_gone(self, event: seen.GatewayGone) -> None:
        if self.state is not State.ENDED:
            why = f": {self._gateway_fault}" if self._gateway_fault else ""
            self._cause(Cause.HOST_FAULTED, f"the gateway died{why}")


RULES_OF_CHILDREN: Mapping[type, Callable[..., None]] = {
    seen.FromRelay: Children._from_relay,
    seen.FromGateway: Children._from_gateway,
    seen.RelayGone: Children._relay_gone,
    seen.GatewayGone: Children._gateway_gone,
}
"""The rule for each event."""
