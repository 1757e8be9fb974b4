"""A cell's own gateway: its reports, and orders to it. Scripts of events, as in test_core.py."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.scripts import Script, as_asked  # noqa: F401

from wgcell.cell.core import actions as do
from wgcell.cell.core import events as seen
from wgcell.cell.core.gateway import MOST_PUBLISHED
from wgcell.cell.states import Outcome, State
from wgcell.gateway import words

ALLOW = words.Allow(1, "api.example.com:443", 1000, 600.0)
RULE = "allow api.example.com:443"
CHANGED = words.PolicyChanged(5.0, "allow", RULE, 1000, 2, 1, 605.0)
EXPIRED = words.PolicyChanged(605.0, "expired", RULE, 1000, 1)
ONE = words.RuleInForce(RULE, "order", 1000, 605.0)


def heard(one: Script, *messages: words.Event) -> list[do.Action]:
    return one.feed(*map(seen.FromGateway, messages))


def recorded(one: Script) -> list[dict[str, Any]]:
    logs = one.asked(do.Log)
    return [dict(log.fields) for log in logs if log.event == "policy_changed"]


def test_an_order_is_sent_recorded_and_answered_in_this_order() -> None:
    one = Script().until(State.RUNNING)
    assert one.feed(seen.OrderAsked(ALLOW)) == [do.SendGateway(ALLOW)]
    log, answer = heard(one, CHANGED)
    assert isinstance(log, do.Log) and log.event == "policy_changed"
    assert answer == do.AnswerOrder(CHANGED)
    fields = {"change": "allow", "rule": RULE, "by": 1000, "until": 605.0, "cut": 2}
    assert recorded(one) == [fields]
    # Its end is recorded, too, and nobody waits for an answer.
    (log,) = heard(one, EXPIRED)
    assert isinstance(log, do.Log) and not one.asked(do.EndMachine)
    assert recorded(one)[1] == {**fields, "change": "expired", "until": None, "cut": 1}


def test_a_refusal_is_answered_and_is_no_change() -> None:
    one = Script().until(State.RUNNING)
    one.feed(seen.OrderAsked(ALLOW))
    refused = words.OrderRefused(1, "nft: no")
    assert heard(one, refused) == [do.AnswerOrder(refused)]
    assert not recorded(one)


def test_a_list_comes_in_parts() -> None:
    one = Script().until(State.RUNNING)
    one.feed(seen.OrderAsked(words.ListRules(4)))
    parts = [words.RulesListed(4, (ONE,), more) for more in (True, True, False)]
    assert heard(one, *parts) == [do.AnswerOrder(part) for part in parts]
    assert not one.asked(do.EndMachine)


UNASKED: dict[str, list[words.Event]] = {
    "a change": [CHANGED],
    "a change of another number": [words.PolicyChanged(5.0, "deny", RULE, 0, 0, 9)],
    "a change without a number": [words.PolicyChanged(5.0, "deny", RULE, 0, 0)],
    "a refusal": [words.OrderRefused(1, "no")],
    "a list": [words.RulesListed(1, (), False)],
    "an end": [EXPIRED],
    "another ready": [words.Ready("127.0.0.1", 1, {}, "embedded", "")],
}


@pytest.mark.parametrize("what", UNASKED)
def test_what_nobody_has_asked_for_ends_the_cell(what: str) -> None:
    one = Script().until(State.RUNNING)
    heard(one, *UNASKED[what])
    assert one.end() is Outcome.ERROR and one.core.reason.startswith("the gateway ")
    assert not recorded(one) and not one.asked(do.AnswerOrder)


@pytest.mark.parametrize(
    "again",
    [
        CHANGED,
        words.OrderRefused(1, "no"),
        words.RulesListed(1, (ONE,), False),
        # It has an end, and a number: of nobody's.
        words.PolicyChanged(605.0, "expired", RULE, 1000, 1, 1),
    ],
)
def test_an_order_is_answered_once(again: words.Event) -> None:
    one = Script().until(State.RUNNING)
    one.feed(seen.OrderAsked(ALLOW))
    heard(one, CHANGED, again)
    assert one.end() is Outcome.ERROR and len(one.asked(do.AnswerOrder)) == 1


def test_a_rule_without_an_end_does_not_end_and_another_ends_once() -> None:
    for first, ends in ((words.PolicyChanged(5.0, "allow", RULE, 1000, 0, 1), 1), (CHANGED, 2)):
        one = Script().until(State.RUNNING)
        one.feed(seen.OrderAsked(ALLOW))
        heard(one, first, *[EXPIRED] * ends)
        assert one.end() is Outcome.ERROR and "ended a rule that has no end" in one.core.reason
        assert len(recorded(one)) == ends


def test_a_list_has_an_end() -> None:
    one = Script().until(State.RUNNING)
    one.feed(seen.OrderAsked(words.ListRules(4)))
    part = words.RulesListed(4, (ONE,) * words.RULES_AT_ONCE, True)
    most = words.MOST_LISTED // words.RULES_AT_ONCE
    heard(one, *[part] * most)
    assert not one.asked(do.EndMachine)
    heard(one, part)
    assert one.end() is Outcome.ERROR and len(one.asked(do.AnswerOrder)) == most


def test_published_ports_are_recorded_and_bounded() -> None:
    one = Script().until(State.CONSENT)
    port = words.Published("cell", "127.0.0.1", 49152, 80)
    heard(one, *[port] * MOST_PUBLISHED)
    logs = [log for log in one.asked(do.Log) if log.event == "published"]
    assert len(logs) == MOST_PUBLISHED and not one.asked(do.EndMachine)
    assert dict(logs[0].fields) == {"address": "127.0.0.1", "port": 49152, "inside": 80}
    heard(one, port)
    assert one.end() is Outcome.ERROR


@pytest.mark.parametrize(
    ("state", "taken"),
    [
        (State.PREPARING, False),
        (State.CONSENT, True),
        (State.VERIFYING, True),
        (State.RUNNING, True),
        (State.STOPPING, False),
    ],
)
def test_when_orders_are_taken(state: State, taken: bool) -> None:
    one = Script().until(state)
    assert bool(one.core.no_orders) is not taken
    assert taken or state.value in one.core.no_orders


def test_a_cell_that_is_ending_takes_none() -> None:
    one = Script().until(State.RUNNING)
    one.feed(seen.AbortAsked("stopped"))
    assert one.core.no_orders
