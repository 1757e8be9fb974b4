"""The events of one peer's flows, bounded in number.

Events are JSON objects, one a line (see `gateway.control`): ``flow`` when a flow is decided, before
a byte moves; ``flow_end`` when an allowed flow ends, with its bytes and duration, and whether its
target could be reached. A hostile guest
opens flows by the thousand, so only so many events of a peer are reported; ``flows_omitted`` counts
the rest.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from wgcell.gateway.model.flow import Flow
from wgcell.gateway.model.ratelimit import TokenBucket

__all__ = ["MOST_REPORTED", "SUMMARY_EVERY", "EventLog", "Report", "flow_end", "flow_event"]

Report = Callable[[dict[str, object]], None]
"""Takes one event. It must have left this process when the call returns."""

MOST_REPORTED = 256
"""Events of one peer reported at once."""
REPORTED_PER_SECOND = 4.0
"""Events of one peer reported in the long run: about 100 MB a day, if it floods all day."""
SUMMARY_EVERY = 5.0
"""Seconds between two ``flows_omitted``."""


def flow_event(flow: Flow, kind: str, verdict: str, reason: str) -> dict[str, object]:
    """``flow`` as an event."""
    return {
        "event": kind,
        "time": round(time.time(), 3),
        "flow": flow.number,
        "peer": flow.peer,
        "protocol": flow.protocol,
        "address": str(flow.address),
        "port": flow.port,
        "name": flow.name,
        "verdict": verdict,
        "rule": flow.rule,
        "reason": reason,
    }


def flow_end(flow: Flow, verdict: str, reason: str) -> dict[str, object]:
    """The last event of ``flow``."""
    return {
        **flow_event(flow, "flow_end", verdict, reason),
        "bytes_out": flow.bytes_out,
        "bytes_in": flow.bytes_in,
        "duration": round(time.monotonic() - flow.started, 3),
    }


class EventLog:
    """Reports the events of one peer, or counts them."""

    def __init__(self, peer: str, report: Report) -> None:
        self._peer = peer
        self._report = report
        self._bucket = TokenBucket(REPORTED_PER_SECOND, MOST_REPORTED)
        self._omitted: dict[str, int] = {}

    def add(self, event: dict[str, object]) -> None:
        """Report one event, or count it."""
        if self._bucket.take(time.monotonic()):
            self._report(event)
            return
        kind = "ended" if event["event"] == "flow_end" else str(event["verdict"])
        self._omitted[kind] = self._omitted.get(kind, 0) + 1

    def summarise(self) -> None:
        """Report the counts since the last summary, if there are any."""
        if self._omitted:
            counts = {"allow": 0, "refuse": 0, "ended": 0, **self._omitted}
            self._omitted = {}
            about = {"time": round(time.time(), 3), "peer": self._peer}
            self._report({"event": "flows_omitted", **about, **counts})
