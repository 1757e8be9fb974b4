"""What is told, bounded; and the summary's lines."""

from __future__ import annotations

import ipaddress

from wgcell.gateway import words
from wgcell.gateway.model.flow import Flow
from wgcell.gateway.peer.events import MOST_REPORTED, EventLog, flow_event

V4 = ipaddress.ip_address("203.0.113.7")


def test_a_flood_is_counted() -> None:
    told: list[words.Event] = []
    log = EventLog("cell", told.append)
    flow = Flow(1, "cell", "tcp", V4, 443, "cdn.example.com")
    for _ in range(5000):
        log.add(flow_event(flow, "refuse", "no rule", hint="cdn.example.com:443"))
    log.summarise()
    log.summarise()
    assert MOST_REPORTED <= len(told) < MOST_REPORTED + 20
    summary = told[-1]
    assert isinstance(summary, words.FlowsOmitted)
    assert len(told) - 1 + summary.refuse == 5000
