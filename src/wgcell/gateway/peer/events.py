"""The events of one peer's flows, bounded in number.

Events are `gateway.words`: a `words.Flow` when a flow is decided, before a byte moves; a
`words.FlowEnd` when an allowed flow ends, with its bytes and duration, and whether its target could
be reached. A hostile guest opens flows by the thousand, so only so many events of a peer are
reported; `words.FlowsOmitted` counts the rest.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from wgcell.gateway import words
from wgcell.gateway.model.flow import Flow
from wgcell.net.bucket import TokenBucket

__all__ = ["MOST_REPORTED", "SUMMARY_EVERY", "EventLog", "Report", "flow_end", "flow_event"]

Report = Callable[[words.Event], None]
"""Takes one event. It must have left this process when the call returns."""

MOST_REPORTED = 256
"""Events of one peer reported at once."""
REPORTED_PER_SECOND = 4.0
"""Events of one peer reported in the long run: about 100 MB a day, if it floods all day."""
SUMMARY_EVERY = 5.0
"""Seconds between two `words.FlowsOmitted`."""


def flow_event(
    flow: Flow, verdict: str, reason: str, *, hint: str = "", host: str | None = None
) -> words.Flow:
    """``flow`` as an event, with the hint for it, and the host that it asked for."""
    return words.Flow(
        time=round(time.time(), 3),
        flow=flow.number,
        peer=flow.peer,
        protocol=flow.protocol,
        address=str(flow.address),
        port=flow.port,
        name=flow.name,
        verdict=verdict,
        rule=flow.rule,
        reason=reason,
        hint=hint,
        host=host,
    )


def flow_end(flow: Flow, verdict: str, reason: str) -> words.FlowEnd:
    """The last event of ``flow``."""
    return words.FlowEnd(
        time=round(time.time(), 3),
        flow=flow.number,
        peer=flow.peer,
        protocol=flow.protocol,
        address=str(flow.address),
        port=flow.port,
        name=flow.name,
        verdict=verdict,
        rule=flow.rule,
        reason=reason,
        bytes_out=flow.bytes_out,
        bytes_in=flow.bytes_in,
        duration=round(time.monotonic() - flow.started, 3),
    )


class EventLog:
    """Reports the events of one peer, or counts them."""

    def __init__(self, peer: str, report: Report) -> None:
        self._peer = peer
        self._report = report
        self._bucket = TokenBucket(REPORTED_PER_SECOND, MOST_REPORTED)
        self._omitted: Counter[str] = Counter()

    def add(self, event: words.Flow | words.FlowEnd) -> None:
        """Report one event, or count it."""
        if self._bucket.take(time.monotonic()):
            self._report(event)
            return
        self._omitted["ended" if isinstance(event, words.FlowEnd) else event.verdict] += 1

    def summarise(self) -> None:
        """Report the counts since the last summary, if there are any."""
        if self._omitted:
            counted, self._omitted = self._omitted, Counter()
            summary = words.FlowsOmitted(
                time=round(time.time(), 3),
                peer=self._peer,
                allow=counted["allow"],
                refuse=counted["refuse"],
                ended=counted["ended"],
                fail=counted[words.FAILED],
            )
            self._report(summary)
