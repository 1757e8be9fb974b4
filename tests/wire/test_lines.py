"""What our processes say to each other: nothing but words, on either end, whatever was said."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wgcell.gateway import control as gateway
from wgcell.gateway.model import parsing
from wgcell.relay import control as relay
from wgcell.relay.session import Side
from wgcell.relay.verdict import Reason
from wgcell.wire.lines import (
    LATEST,
    MOST,
    Counts,
    Data,
    Flag,
    LineError,
    Number,
    OneOf,
    Seconds,
    Text,
    Texts,
    Vocabulary,
)

VOCABULARIES: dict[str, Vocabulary[Any]] = {
    "relay said": relay.SAID,
    "relay told": relay.TOLD,
    "gateway said": gateway.SAID,
}
WORDS = [
    pytest.param(vocabulary, word, id=f"{where}-{name}")
    for where, vocabulary in VOCABULARIES.items()
    for name, word in vocabulary.words.items()
]

plain = st.characters(exclude_categories=["Cs"])


def names(most: int) -> st.SearchStrategy[str]:
    return st.text(plain, max_size=most)


STRATEGIES: dict[type, Any] = {
    Text: lambda kind: names(kind.most),
    OneOf: lambda kind: st.sampled_from(kind.texts),
    Number: lambda kind: st.integers(0, kind.most),
    Seconds: lambda kind: st.floats(0, LATEST),
    Flag: lambda kind: st.booleans(),
    Data: lambda kind: st.binary(min_size=kind.least, max_size=kind.most),
    Counts: lambda kind: st.dictionaries(names(64), st.integers(0, MOST), max_size=kind.most),
    Texts: lambda kind: st.dictionaries(names(64), names(kind.longest), max_size=kind.most),
}
FOREIGN: dict[type, list[Any]] = {
    Text: [None, 1, True, [], {}, "\ud800"],
    OneOf: [None, 1, "another", ["guest"]],
    Number: [None, "1", True, 1.0, -1, MOST + 1, 10**400, math.inf, math.nan],
    Seconds: [None, "1", True, -1, -1e-300, math.inf, -math.inf, math.nan, 2e12, 10**400],
    Flag: [None, 0, 1, "true"],
    Data: [None, 1, "é", "YQ", "Y!Q=", []],
    Counts: [None, [], {"a": -1}, {"a": True}, {"a": "1"}, {"a": math.nan}, {"a" * 65: 1}],
    Texts: [None, [], {"a": 1}, {"a": None}, {"a" * 65: ""}, {"a": "\ud800"}],
}


def kinds(word: type) -> dict[str, Any]:
    hints = get_type_hints(word, include_extras=True)
    return {one.name: hints[one.name].__metadata__[0] for one in dataclasses.fields(word)}


def too_long(kind: Any) -> list[Any]:
    match kind:
        case Text(most):
            return ["a" * (most + 1)]
        case Number(most):
            return [most + 1]
        case Data(most, least):
            sizes = [most + 1] + ([least - 1] if least else [])
            return [base64.b64encode(bytes(size)).decode() for size in sizes]
        case Counts(most):
            return [{str(n): 1 for n in range(most + 1)}]
        case Texts(most, longest):
            return [{str(n): "" for n in range(most + 1)}, {"a": "a" * (longest + 1)}]
    return []


def example(word: type) -> Any:
    """The word with the plainest of values, and its optional fields there."""
    plainest: dict[type, Any] = {
        Text: lambda kind: "a",
        OneOf: lambda kind: kind.texts[0],
        Number: lambda kind: 1,
        Seconds: lambda kind: 1.0,
        Flag: lambda kind: True,
        Data: lambda kind: bytes(max(1, kind.least)),
        Counts: lambda kind: {"a": 1},
        Texts: lambda kind: {"a": "b"},
    }
    return word(**{name: plainest[type(kind)](kind) for name, kind in kinds(word).items()})


def line(entry: Any) -> bytes:
    return json.dumps(entry).encode() + b"\n"


@pytest.mark.parametrize(("vocabulary", "word"), WORDS)
def test_what_is_said_is_what_is_heard(vocabulary: Vocabulary[Any], word: type) -> None:
    made = {name: STRATEGIES[type(kind)](kind) for name, kind in kinds(word).items()}

    @given(st.builds(word, **made))
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
    optional = {f.name for f in dataclasses.fields(word) if f.default is not dataclasses.MISSING}
    for name, kind in kinds(word).items():
        if name not in optional:
            refused.append({key: value for key, value in entry.items() if key != name})
        refused += [{**entry, name: bad} for bad in (*FOREIGN[type(kind)], *too_long(kind))]
    for bad in refused:
        with pytest.raises(LineError):
            vocabulary.word(line(bad))
    whole = json.dumps(entry)
    for text in (whole[:-1], whole[:-1] + f', "{vocabulary.key}": "x"}}', whole + " " * (1 << 18)):
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
        relay.SAID.word(data)


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


def test_half_a_character_is_said_as_text() -> None:
    heard = relay.SAID.word(relay.SAID.line(relay.Fault("a\udcffb")))
    assert heard == relay.Fault("a\\udcffb")


def test_the_words_are_those_of_both_ends() -> None:
    assert set(kinds(relay.Handshake)["initiator"].texts) == {side.value for side in Side}
    assert all(len(reason.value) <= 64 for reason in Reason)
    assert len(Reason) <= kinds(relay.Stats)["refused"].most
    assert kinds(gateway.Ready)["peers"].most == parsing.MOST_PEERS
    assert max(v.longest for v in VOCABULARIES.values()) <= 1 << 16
