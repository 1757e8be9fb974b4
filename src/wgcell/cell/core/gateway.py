"""The cell's own gateway: its messages, and the orders that change its rules. No I/O.

An order is on its way from `seen.OrderAsked` until the gateway has answered it. A change is on the
record, with the user who asked for it and until when it holds, before anybody is answered. The
gateway is wgcell's own program, but it reads what the guest sends: an answer that nothing has asked
for, or an end of a rule that has none, ends the cell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from wgcell.cell.core import actions as do
from wgcell.cell.core import events as seen
from wgcell.cell.core.pausing import Pausing
from wgcell.cell.core.terms import Terms
from wgcell.cell.states import Cause, State
from wgcell.gateway import words
from wgcell.gateway.peer.tally import FlowCounts

__all__ = ["RULES_OF_THE_GATEWAY", "Gateway"]

MOST_PUBLISHED = 64
"""Published ports that are recorded; a job has no more."""
_OPEN_TO_ORDERS = (State.CONSENT, State.BOOTING, State.VERIFYING, State.RUNNING, State.TERMINATING)


class Gateway(Pausing):
    """One cell's dealings with its own gateway, if it has one."""

    def __init__(self, terms: Terms, started: float) -> None:
        super().__init__(terms, started)
        self.flows = FlowCounts()
        self._gateway_fault = ""
        self._ordered: dict[int, int] = {}
        """Orders without their last answer, each with the number of rules listed so far."""
        self._temporary: set[tuple[str, int]] = set()
        """Rules of orders that have an end, each with its user."""
        self._published = 0

    @property
    def no_orders(self) -> str:
        """Why the gateway takes no orders now; empty: it does."""
        if self._ending is not None or self.state not in _OPEN_TO_ORDERS:
            return f"its rules can't be changed now: it is {self.state.value}"
        return ""

    def _order_asked(self, event: seen.OrderAsked) -> None:
        self._ordered[event.order.number] = 0
        self._do(do.SendGateway(event.order))

    def _from_gateway(self, event: seen.FromGateway) -> None:
        message = event.message
        self._gateway_fault = message.detail if isinstance(message, words.Fault) else ""
        match message:
            case words.Ready():
                self._unasked("said a second time that it is ready")
            case words.PolicyChanged():
                self._policy_changed(message)
            case words.OrderRefused(number):
                if self._asked(number):
                    del self._ordered[number]
                    self._do(do.AnswerOrder(message))
            case words.RulesListed():
                self._rules_listed(message)
            case words.Published():
                self._port_published(message)
            case _:
                self._reported(message)

    def _reported(self, message: words.Event) -> None:
        entry = words.EVENTS.entry(message)
        entry.pop("time", None)
        self._log_bounded(str(entry.pop("event")), **entry)
        if isinstance(message, words.Flow):
            self.flows.begun(message.flow, message.verdict)
        elif isinstance(message, words.FlowEnd):
            self.flows.ended(message.flow, message.verdict)

    def _gateway_gone(self, event: seen.GatewayGone) -> None:
        if self.state is not State.ENDED:
            why = f": {self._gateway_fault}" if self._gateway_fault else ""
            self._cause(Cause.HOST_FAULTED, f"the gateway died{why}")

    # Answers to orders.

    def _asked(self, number: int | None) -> bool:
        """Whether that order waits for an answer; if not, the cell ends."""
        if number in self._ordered:
            return True
        self._unasked("answered an order that nobody has given")
        return False

    def _unasked(self, what: str) -> None:
        self._cause(Cause.HOST_FAULTED, f"the gateway {what}")

    def _policy_changed(self, message: words.PolicyChanged) -> None:
        of = message.rule, message.who
        if message.change == "expired":
            if of not in self._temporary or message.number is not None:
                self._unasked("ended a rule that has no end")
                return
            self._temporary.discard(of)
        elif not self._asked(message.number):
            return
        elif message.until is not None:
            self._temporary.add(of)
        self._log(
            "policy_changed",
            change=message.change,
            rule=message.rule,
            by=message.who,
            until=message.until,
            cut=message.cut,
        )
        if message.number is not None:
            del self._ordered[message.number]
            self._do(do.AnswerOrder(message))

    def _rules_listed(self, message: words.RulesListed) -> None:
        if not self._asked(message.number):
            return
        self._ordered[message.number] += len(message.rules)
        if self._ordered[message.number] > words.MOST_LISTED:
            self._unasked("lists rules without end")
            return
        if not message.more:
            del self._ordered[message.number]
        self._do(do.AnswerOrder(message))

    def _port_published(self, message: words.Published) -> None:
        self._published += 1
        if self._published > MOST_PUBLISHED:
            self._unasked("publishes ports that nobody has asked for")
            return
        self._log("published", address=message.address, port=message.port, inside=message.inside)


RULES_OF_THE_GATEWAY: Mapping[type, Callable[[Any, Any], None]] = {
    seen.OrderAsked: Gateway._order_asked,
    seen.FromGateway: Gateway._from_gateway,
    seen.GatewayGone: Gateway._gateway_gone,
}
"""What each event does."""
