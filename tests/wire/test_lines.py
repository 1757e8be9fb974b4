"""What our processes say to each other: nothing but words, on either end, whatever was said."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import os
from typing import Any, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wgcell.cell import unpacking_words
from wgcell.gateway import words as gateway
from wgcell.gateway.model.policy import Limits
from wgcell.gateway.model.rules import Action
from wgcell.relay import control as relay
from wgcell.relay.session import Side
from wgcell.relay.verdict import Reason
from wgcell.wire.lines import (
    LATEST,
    MOST,
    Data,
    Exact,
    Flag,
    LineError,
    Native,
    Number,
    OneOf,
    Record,
    Seconds,
    Several,
    Table,
    Text,
    Vocabulary,
)

VOCABULARIES: dict[str, Vocabulary[Any]] = {
    "relay events": relay.EVENTS,
    "relay orders": relay.ORDERS,
    "gateway's events": gateway.EVENTS,
    "gateway's orders": gateway.ORDERS,
    "unpacker's task": unpacking_words.TASKS,
    "unpacker's statements": unpacking_words.STATEMENTS,
}
WORDS = [
    pytest.param(vocabulary, word, id=f"{where}-{name}")
    for where, vocabulary in VOCABULARIES.items()
    for name, word in vocabulary.words.items()
]

plain = st.characters(exclude_categories=["Cs"])
FEW = 8
"""Of what there may be thousands of."""


def names(most: int) -> st.SearchStrategy[str]:
    return st.text(plain, max_size=most)


def values(kind: Any) -> st.SearchStrategy[Any]:
    return STRATEGIES[type(kind)](kind)


def records(word: type) -> st.SearchStrategy[Any]:
    made = {name: values(kind) for name, kind in kinds(word).items()}
    may_lack = {
        one.name: made[one.name] | st.just(one.default)
        for one in dataclasses.fields(word)
        if one.default is not dataclasses.MISSING
    }
    return st.builds(word, **{**made, **may_lack})


STRATEGIES: dict[type, Any] = {
    Text: lambda kind: names(kind.most),
    Exact: lambda kind: names(kind.most),
    Native: lambda kind: st.binary(max_size=300).map(os.fsdecode),
    OneOf: lambda kind: st.sampled_from(kind.texts),
    Number: lambda kind: st.integers(0, kind.most),
    Seconds: lambda kind: st.floats(0, LATEST),
    Flag: lambda kind: st.booleans(),
    Data: lambda kind: st.binary(min_size=kind.least, max_size=kind.most),
    Several: lambda kind: st.lists(values(kind.kind), max_size=min(FEW, kind.most)).map(tuple),
    Table: lambda kind: st.dictionaries(names(64), values(kind.kind), max_size=min(FEW, kind.most)),
    Record: lambda kind: records(kind.word),
}
FOREIGN: dict[type, list[Any]] = {
    Text: [None, 1, True, [], {}, "\ud800"],
    Exact: [None, 1, True, [], {}, "\ud800"],
    Native: [None, 1, True, [], {}, "\ud800"],
    OneOf: [None, 1, "another", ["guest"]],
    Number: [None, "1", True, 1.0, -1, MOST + 1, 10**400, math.inf, math.nan],
    Seconds: [None, "1", True, -1, -1e-300, math.inf, -math.inf, math.nan, 2e12, 10**400],
    Flag: [None, 0, 1, "true"],
    Data: [None, 1, "é", "YQ", "Y!Q=", []],
    Several: [None, {}, "a", 1, [[]], [None], [1.5]],
    Table: [None, [], {"a": -1}, {"a": True}, {"a": math.nan}, {"a": None}, {"a": "\ud800"}],
    Record: [None, [], 1, {"another": 1}],
}


def kinds(word: type) -> dict[str, Any]:
    hints = get_type_hints(word, include_extras=True)
    return {one.name: hints[one.name].__metadata__[0] for one in dataclasses.fields(word)}


def too_long(kind: Any) -> list[Any]:
    match kind:
        case Text(most) | Exact(most) | Native(most):
            return ["a" * (most + 1)]
        case Number(most):
            return [most + 1]
        case Data(most, least):
            sizes = [most + 1] + ([least - 1] if least else [])
            return [base64.b64encode(bytes(size)).decode() for size in sizes]
        case Several(most, inner):
            return [[plainest_entry(inner)] * (most + 1), *([one] for one in too_long(inner))]
        case Table(most, inner):
            full = {str(n): plainest_entry(inner) for n in range(most + 1)}
            return [full, {"a" * 65: plainest_entry(inner)}, *({"a": a} for a in too_long(inner))]
        case Record(word):
            return [
                {**plainest_entry(kind), name: bad}
                for name, field in kinds(word).items()
                for bad in (*FOREIGN[type(field)], *too_long(field))
            ]
    return []


PLAINEST: dict[type, Any] = {
    Text: lambda kind: "a",
    Exact: lambda kind: "a",
    Native: lambda kind: "a",
    OneOf: lambda kind: kind.texts[-1],
    Number: lambda kind: 1,
    Seconds: lambda kind: 1.0,
    Flag: lambda kind: True,
    Data: lambda kind: bytes(max(1, kind.least)),
    Several: lambda kind: (plainest(kind.kind),),
    Table: lambda kind: {"a": plainest(kind.kind)},
    Record: lambda kind: example(kind.word),
}


def plainest(kind: Any) -> Any:
    return PLAINEST[type(kind)](kind)


def plainest_entry(kind: Any) -> Any:
    return kind.encoded(plainest(kind))


def example(word: type) -> Any:
    """The word with the plainest of values, and its optional fields there."""
    return word(**{name: plainest(kind) for name, kind in kinds(word).items()})


def line(entry: Any) -> bytes:
    return json.dumps(entry).encode() + b"\n"


@pytest.mark.parametrize(("vocabulary", "word"), WORDS)
def test_what_is_said_is_what_is_heard(vocabulary: Vocabulary[Any], word: type) -> None:
    @settings(deadline=None)
    @given(records(word))
    def holds(one: Any) -> None:
        try:
            told = vocabulary.line(one)
        except LineError as error:
            # Letters that JSON writes as six: said by nobody, and never cut in the middle.
            assert "bytes" in str(error)
            return
        assert vocabulary.word(told) == one
        assert told.count(b"\n") == 1 and len(told) <= vocabulary.longest

    holds()


@pytest.mark.parametrize(("vocabulary", "word"), WORDS)
def test_nothing_else_is_heard(vocabulary: Vocabulary[Any], word: type) -> None:
    entry = vocabulary.entry(example(word))
    assert vocabulary.word(line(entry)) == example(word)  # the control
    refused: list[Any] = [{**entry, "more": 1}, {**entry, vocabulary.key: "another"}]
    needed = {
        one.name
        for one in dataclasses.fields(word)
        if one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
    }
    for name, kind in kinds(word).items():
        if name in needed:
            refused.append({key: value for key, value in entry.items() if key != name})
        refused += [{**entry, name: bad} for bad in (*FOREIGN[type(kind)], *too_long(kind))]
    for bad in refused:
        with pytest.raises(LineError):
            vocabulary.word(line(bad))
    whole = json.dumps(entry)
    longer = whole + " " * (min(vocabulary.longest, 1 << 20))
    for text in (whole[:-1], whole[:-1] + f', "{vocabulary.key}": "x"}}', longer):
        if text is longer and len(text) < vocabulary.longest:
            continue  # its bound is this machine's memory's: only wgcell's own words are that long
        with pytest.raises(LineError):
            vocabulary.word(text.encode() + b"\n")


@pytest.mark.parametrize("where", VOCABULARIES)
@given(
    data=st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ).map(line)
)
def test_any_bytes_are_a_word_or_a_line_error(where: str, data: bytes) -> None:
    with pytest.raises(LineError):
        VOCABULARIES[where].word(data)


@pytest.mark.parametrize("data", [b"", b"\n", b"[" * 9000, b'{"a":' * 2000, b"1" * 9000, b"\xff"])
def test_what_breaks_a_json_reader_is_a_line_error(data: bytes) -> None:
    with pytest.raises(LineError):
        relay.EVENTS.word(data)


@pytest.mark.parametrize(("vocabulary", "word"), WORDS)
def test_what_is_too_long_is_cut_not_refused_by_who_says_it(
    vocabulary: Vocabulary[Any], word: type
) -> None:
    long: dict[str, Any] = {}
    for name, kind in kinds(word).items():
        if isinstance(kind, Text):
            long[name] = "a" * 100_000
        if isinstance(kind, Data):
            long[name] = bytes(100_000)
    told = vocabulary.line(dataclasses.replace(example(word), **long))
    assert vocabulary.word(told) and len(told) <= vocabulary.longest


@pytest.mark.parametrize(("vocabulary", "word"), WORDS)
def test_nothing_else_is_said(vocabulary: Vocabulary[Any], word: type) -> None:
    """What a program acts on is said whole or not at all, and nothing of another type is."""
    foreign: dict[type, list[Any]] = {
        Exact: [b"a", 1],
        Data: ["a", None],
        Several: [["a"], "a"],
        Table: [("a",), {1: 1}],
        Record: [{}, None, word],
    }
    for name, kind in kinds(word).items():
        bad = foreign.get(type(kind), [])
        match kind:
            case Exact(most):
                bad = [*bad, "a" * (most + 1)]
            case Several(most, inner):
                bad = [*bad, (plainest(inner),) * (most + 1)]
            case Table(most, inner):
                bad = [*bad, {str(n): plainest(inner) for n in range(most + 1)}]
        for value in bad:
            with pytest.raises(LineError):
                vocabulary.line(dataclasses.replace(example(word), **{name: value}))


def test_half_a_character_is_said_as_text() -> None:
    heard = relay.EVENTS.word(relay.EVENTS.line(relay.Fault("a\udcffb")))
    assert heard == relay.Fault("a\\udcffb")


def test_an_order_is_never_cut_to_a_line() -> None:
    """Half a list of rules is another policy."""
    rules = tuple(f"allow h{number}.{'a' * 60}.example.com:443" for number in range(16_000))
    with pytest.raises(LineError, match="a line of"):
        gateway.ORDERS.line(gateway.Configure("key", rules=rules))


def test_the_words_are_those_of_both_ends() -> None:
    assert set(kinds(relay.Handshake)["initiator"].texts) == {side.value for side in Side}
    assert all(len(reason.value) <= 64 for reason in Reason)
    assert len(Reason) <= kinds(relay.Stats)["refused"].most
    verdicts = {*(action.value for action in Action), gateway.FAILED}
    assert set(kinds(gateway.Flow)["verdict"].texts) == verdicts
    assert set(kinds(gateway.Limits)) == {one.name for one in dataclasses.fields(Limits)}
    from_us = (relay.EVENTS, relay.ORDERS, gateway.EVENTS)
    assert max(vocabulary.longest for vocabulary in from_us) <= 1 << 16
