"""What is told, bounded; and the summary's lines."""

from __future__ import annotations

import ipaddress

from wgcell.gateway.model.flow import Flow
from wgcell.gateway.peer.events import MOST_REPORTED, EventLog, flow_event

V4, V6 = ipaddress.ip_address("203.0.113.7"), ipaddress.ip_address("2001:db8::7")


def refusal(**changes: object) -> dict[str, object]:
    event = flow_event(
        Flow(1, "cell", "tcp", V4, 443, "cdn.example.com"), "flow", "refuse", "no rule"
    )
    return {**event, "mend": "cdn.example.com:443", **changes}


def test_a_flood_is_counted() -> None:
    told: list[dict[str, object]] = []
    log = EventLog("cell", told.append)
    for _ in range(5000):
        log.add(refusal())
    log.summarise()
    log.summarise()
    assert MOST_REPORTED <= len(told) < MOST_REPORTED + 20
    assert told[-1]["event"] == "flows_omitted"
    assert len(told) - 1 + int(str(told[-1]["refuse"])) == 5000
