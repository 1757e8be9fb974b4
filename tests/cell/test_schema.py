"""Whatever is wrong with a table is said in wgcell's own words, one sentence a key."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from wgcell.cell import jobfile, provider
from wgcell.cell.jobfile import load_job
from wgcell.cell.provider import load_provider
from wgcell.cell.schema import EXPECTED, Invalid, keys, model, validated
from wgcell.errors import JobError, PolicyError
from wgcell.gateway.model.parsing import parse_config

SCHEMAS: tuple[type, ...] = (jobfile.model(), provider.model())

# What pydantic-core raises for a Python value, by the kind of a schema's node, with strict=True.
RAISES: Mapping[str, tuple[str, ...]] = {
    "str": ("string_type", "string_unicode"),
    "int": ("int_type",),
    "float": ("float_type",),
    "bool": ("bool_type",),
    "list": ("list_type",),
    "dict": ("dict_type",),
    "model": ("model_type",),
    "model-fields": ("missing", "extra_forbidden"),
    **dict.fromkeys(("model-field", "default", "nullable", "union"), ()),
}
WRONG = (True, 1, 1.5, "x", [1], ["x"], {"x": 1}, datetime.date(2026, 1, 1), datetime.time(1))


def nodes(schema: object) -> Iterator[str]:
    """The kind of every node of pydantic's own description of a model."""
    if isinstance(schema, dict):
        if isinstance(schema.get("type"), str):
            yield schema["type"]
        for key, inner in schema.items():
            if key not in ("type", "config", "metadata", "default"):
                yield from nodes(inner)
    elif isinstance(schema, (list, tuple)):
        for inner in schema:
            yield from nodes(inner)


@pytest.mark.parametrize("kind", SCHEMAS)
def test_each_error_that_a_schema_can_raise_has_a_sentence(kind: type) -> None:
    found = set(nodes(model(kind).__pydantic_core_schema__))
    assert found > {"model", "str", "list"}
    # A node that this test does not know must be added to RAISES, and its errors to EXPECTED.
    raised = {error for node in found for error in RAISES[node]}
    assert raised - {"missing", "extra_forbidden"} <= set(EXPECTED)


@pytest.mark.parametrize("kind", SCHEMAS)
def test_whatever_stands_at_a_key_is_refused_in_our_words(kind: type) -> None:
    for key in (*keys(kind), "absent", "name.absent"):
        for value in WRONG:
            raw: Any = value
            for part in reversed(key.split(".")):
                raw = {part: raw}
            try:
                validated(kind, raw)
            except Invalid as invalid:
                text = str(invalid)
                assert "nput" not in text.replace("inputs", "") and "permitted" not in text, text
                assert "allowed" in text and key.split(".")[0] in text


@pytest.mark.parametrize(
    ("raw", "sentences"),
    [
        (
            {"timeout": True},
            ["timeout: found True; allowed: a string or a number"],
        ),
        (
            {"name": 1, "image": 2},
            ["name: found 1; allowed: a string", "image: found 2; allowed: a string"],
        ),
        # A key that is called as one of pydantic's types is still a key.
        ({"env": {"str": 1}}, ["env.str: found 1; allowed: a string"]),
        ({"inputs": ["a", 1]}, ["inputs.1: found 1; allowed: a string"]),
        ({"inputs": "a"}, ["inputs: found 'a'; allowed: a list of strings"]),
        ({"env": []}, ["env: found []; allowed: a table"]),
        ({"resources": 1}, ["resources: found 1; allowed: a table"]),
        ({"vpn": {}}, ["vpn.config: is missing; allowed: a string"]),
    ],
)
def test_one_sentence_a_key(raw: dict[str, Any], sentences: list[str]) -> None:
    with pytest.raises(Invalid) as caught:
        validated(jobfile.model(), raw)
    assert list(caught.value.faults) == sentences


def test_a_misspelt_key_is_guessed_in_each_file(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    for text, meant in (
        ("comand = ['true']", "command"),
        ("[resource]\ncpus = 1", "resources"),
        ("memory = '1GiB'", "resources.memory"),
        ("[resources]\ntimeout = '1h'", "timeout"),
        ("[policy]\nonrogue = 'freeze'", "on_rogue"),
    ):
        file.write_text(text)
        with pytest.raises(JobError, match=rf"\(did you mean {meant}\?\); allowed here: "):
            load_job(file)
    file.write_text("allow_emulaton = true")
    with pytest.raises(JobError, match=r"\(did you mean allow_emulation\?\); allowed here: "):
        load_provider(file)
    for raw, meant in (({"rule": []}, "rules"), ({"peers": {"a": {"adress": "x"}}}, "address")):
        with pytest.raises(PolicyError, match=rf"\(did you mean {meant}\?\); allowed here: "):
            parse_config({"private_key": "A" * 43 + "=", **raw})
    file.write_text("quite_another_thing = 1")
    with pytest.raises(JobError) as caught:
        load_job(file)
    assert "did you mean" not in str(caught.value)
