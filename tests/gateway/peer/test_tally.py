"""The summary at the end of a run, from hostile events."""

from __future__ import annotations

import ipaddress
import json

import pytest

from wgcell.cli.flows import FlowTable, line_of
from wgcell.gateway.model.flow import Flow
from wgcell.gateway.peer.events import flow_end, flow_event
from wgcell.gateway.peer.tally import FlowCounts, Tally
from wgcell.gateway.words import EVENTS, FAILED, Event
from wgcell.net.addresses import Address

V4, V6 = ipaddress.ip_address("203.0.113.7"), ipaddress.ip_address("2001:db8::7")


def refusal(**changes: object) -> dict[str, object]:
    flow = Flow(1, "cell", "tcp", V4, 443, "cdn.example.com")
    event = flow_event(flow, "refuse", "no rule", hint="cdn.example.com:443")
    return {**EVENTS.entry(event), **changes}


def line(event: Event) -> str:
    return EVENTS.line(event).decode()


def test_the_summary_has_the_rule_that_would_allow() -> None:
    tally = Tally()
    assert [tally.add(refusal()) for _ in range(3)] == [True, False, False]
    tally.add(refusal(name="", hint=""))
    tally.add(refusal(protocol="dns", name="b.example.com", hint="b.example.com:443"))
    tally.add({"event": "flows_omitted", "refuse": 9})
    assert tally.summary() == [
        "refused 3 \u00d7 cdn.example.com:443: --allow cdn.example.com:443",
        "refused 1 \u00d7 203.0.113.7:443: no rule",
        "refused 1 \u00d7 b.example.com: --allow b.example.com:443",
        "refused 9 more, not listed one by one",
    ]


def test_what_was_learned_is_told_once_each() -> None:
    tally = Tally()
    for rule in ("b.example.com:443", "a.example.com:80", "b.example.com:443"):
        tally.add(refusal(verdict="allow", rule="learn", hint=rule))
    assert tally.learned() == ["a.example.com:80", "b.example.com:443"]
    assert tally.summary() == []


def test_a_name_that_was_not_found_is_told_once_and_at_the_end() -> None:
    tally = Tally()
    event = refusal(protocol="dns", name="a.example.com", verdict=FAILED, reason="no", hint="")
    assert [tally.add(event) for _ in range(2)] == [True, False]
    assert tally.fate(event) == "not found" and tally.fate(refusal()) != "not found"
    assert tally.summary() == ["not found: 2 \u00d7 a.example.com: no"]
    for number in range(2000):
        tally.add({**event, "name": f"n{number}.example.com"})
    assert len(tally.summary()) <= 512


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({}, "no rule allows it, and no name led there; allow its name: --allow NAME:443"),
        (
            {"protocol": "udp", "port": 53},
            "no rule allows it, and no name led there; allow its name: --allow NAME:53/udp",
        ),
        ({"protocol": "icmp"}, "no rule allows it"),
        ({"name": "_x.example.com"}, "no rule allows it"),
        ({"reason": "a private address"}, "a private address"),
    ],
)
def test_a_bare_address_is_told_with_advice_that_is_no_address(
    changes: dict[str, object], advice: str
) -> None:
    tally = Tally()
    event = refusal(**{"name": "", "hint": "", "reason": "no rule allows it", **changes})
    tally.add(event)
    assert tally.summary() == [f"refused 1 \u00d7 {tally.target(event)}: {advice}"]


@pytest.mark.parametrize("address", [V4, V6])
def test_what_could_not_be_reached_is_told_once_and_with_its_reason(address: Address) -> None:
    tally, flow = Tally(), Flow(1, "cell", "tcp", address, 443)
    begun = EVENTS.entry(flow_event(flow, "allow", "a rule allows it"))
    end = EVENTS.entry(flow_end(flow, FAILED, "target x: Network is unreachable"))
    assert [tally.add(event) for event in (begun, end, begun, end)] == [False, True, False, False]
    assert tally.fate(end) == "could not be reached"
    assert tally.summary() == [
        f"could not be reached: 2 \u00d7 {tally.target(end)}: target x: Network is unreachable"
    ]


def test_a_flow_counts_once_by_the_last_that_is_told_of_it() -> None:
    counts = FlowCounts()
    for number, verdict in ((1, "allow"), (2, "allow"), (3, "refuse"), (4, "allow"), (5, FAILED)):
        counts.begun(number, verdict)
    counts.ended(1, "allow")
    counts.ended(2, FAILED)  # a service that is dead
    counts.begun(4, "refuse")  # it asked for another host
    counts.ended(4, "refuse")
    counts.ended(3, "refuse")
    assert counts.counts == {"allow": 1, "refuse": 2, FAILED: 2}
    for number in range(6, 20_000):
        counts.begun(number, "allow")
    assert len(counts._open) == 8192


def test_a_service_is_advised_as_an_option_of_its_own() -> None:
    tally = Tally()
    tally.add(
        refusal(name="", address="10.99.0.5", port=80, hint="--service 10.99.0.5:80=HOST:PORT")
    )
    assert tally.summary() == ["refused 1 \u00d7 10.99.0.5:80: --service 10.99.0.5:80=HOST:PORT"]


def test_a_hostile_tally_is_bounded() -> None:
    tally = Tally()
    for number in range(2000):
        tally.add(refusal(name=f"n{number}.example.com", hint=""))
    assert len(tally.summary()) < 600
    assert tally.summary()[-1] == "refused 1488 more, not listed one by one"


def test_the_watched_table_gathers_and_escapes() -> None:
    from rich.console import Console

    flows = FlowTable()
    for one in ("", "x", "[]", json.dumps(refusal()), json.dumps(refusal(name="\x1b[2J"))):
        flows.add(one)
    flows.add(json.dumps({**refusal(), "verdict": "allow", "rule": "allow x"}))
    end = flow_end(
        Flow(1, "cell", "tcp", V4, 443, "cdn.example.com", bytes_in=2_000_000), "allow", ""
    )
    flows.add(line(end))
    console = Console(width=120, force_terminal=False)
    with console.capture() as capture:
        console.print(flows.table(20))
    shown = capture.get()
    assert "2 MB" in shown
    assert "\x1b" not in shown
    assert shown.count("cdn.example.com:443") == 2


def test_a_flow_whose_target_was_not_reached_stands_in_one_row() -> None:
    flows, flow = FlowTable(), Flow(7, "cell", "tcp", V4, 443)
    flows.add(line(flow_event(flow, "allow", "a rule allows it")))
    flows.add(line(flow_end(flow, FAILED, "target 203.0.113.7:443: Connection refused")))
    (row,) = flows._rows.values()
    assert (row.verdict, row.count, row.open) == (FAILED, 1, 0)
    assert row.rule == "target 203.0.113.7:443: Connection refused"
    assert (
        line_of(line(flow_end(flow, FAILED, "why")))
        == "cell  could not be reached  203.0.113.7:443  why"
    )


def test_a_refused_ping_is_listed_without_a_rule() -> None:
    tally = Tally()
    tally.add(refusal(protocol="icmp", name="", port=0, hint=""))
    assert tally.summary() == ["refused 1 \u00d7 203.0.113.7 (icmp): no rule"]
