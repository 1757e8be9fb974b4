"""What starts a supervisor, and its report: made of the table of settings, read strictly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wgcell import errors
from wgcell.cell import start
from wgcell.cell.job import JobOptions
from wgcell.cell.settings import SETTINGS, TABLE
from wgcell.cell.start import SAID, Failed, Start, decoded, encoded, error_of, failed_of
from wgcell.errors import CellError, JobError, LaunchError, WgcellError
from wgcell.guest.frames import Terminal
from wgcell.wire.lines import LineError

WHOLE = Start(
    JobOptions(
        name="train",
        command=("python3", "-c", "print('\x1b\udcff')"),
        inputs=("a", "b/."),
        excludes=("*.o",),
        outputs=("results",),
        output_dir=Path("/out"),
        sync=Path("/sync"),
        env=(("TOKEN", "a=b"), ("EMPTY", "")),
        vpn=Path("requester\udcfe.conf"),
        allow=("api.example.com:443",),
        services=(("10.99.0.5:80", "127.0.0.1:8000"),),
        publish=("0:80",),
        hosts=(("db", "10.99.0.5"),),
        settings={"memory": "2GiB", "timeout": 1.5, "cpus": 2, "on_rogue": "freeze"},
        idle=True,
        keywords=True,
        stdin=True,
        terminal=Terminal(0, 65535),
    ),
    Path("job.toml"),
    Path("/cells"),
    ("192.0.2.0/24",),
    learn=True,
    force=True,
    agreed=True,
    remove=True,
)


def test_what_is_started_is_what_was_asked_for() -> None:
    assert decoded(encoded(WHOLE)) == WHOLE
    assert decoded(encoded(Start(JobOptions()))) == Start(JobOptions())
    for one in fields(JobOptions):
        assert getattr(WHOLE.options, one.name) != getattr(JobOptions(), one.name), one.name
    for one in fields(Start)[1:]:
        assert getattr(WHOLE, one.name) != getattr(Start(JobOptions()), one.name), one.name


def test_every_row_of_the_table_has_its_field() -> None:
    """A new setting is on the pipe as soon as it is in the table."""
    settings = {row.name for row in SETTINGS}
    assert {row.key for row in TABLE} == start._PARTS.keys() | {row.key for row in SETTINGS}
    for row in SETTINGS:
        options = JobOptions(settings={row.name: "x"})
        assert decoded(encoded(Start(options))).options.settings == {row.name: "x"}
    with pytest.raises(JobError, match="there is no 'memori'"):
        encoded(Start(JobOptions(settings={"memori": "1GiB"})))
    assert "memori" not in settings


WRITTEN = st.one_of(
    st.text(st.characters(exclude_categories=("Cs",))),
    st.integers(-(2**62), 2**62),
    st.floats(allow_nan=False, allow_infinity=False, min_value=-1e18, max_value=1e18),
    st.booleans(),
)


@given(st.dictionaries(st.sampled_from([row.name for row in SETTINGS]), WRITTEN))
def test_a_written_value_arrives_as_it_was_written(settings: Mapping[str, object]) -> None:
    found = decoded(encoded(Start(JobOptions(settings=settings)))).options.settings
    assert found == settings and {k: type(v) for k, v in found.items()} == {
        k: type(v) for k, v in settings.items()
    }


@pytest.mark.parametrize(
    "options",
    [
        {"command": ("a" * (128 << 10) + "b",)},
        {"inputs": "a.py"},
        {"inputs": (1,)},
        {"name": ["a"]},
        {"allow": ("\ud800",)},
        {"settings": {"timeout": float("inf")}},
        {"settings": {"cpus": 2**64}},
        {"settings": {"memory": b"1GiB"}},
        {"env": tuple((str(n), "x" * 1000) for n in range(1 << 15))},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_cannot_be_said_is_an_error_of_the_job(options: dict[str, Any]) -> None:
    with pytest.raises(JobError, match="can't be started so"):
        encoded(Start(JobOptions(**options)))


def changed(**more: object) -> bytes:
    entry = json.loads(encoded(Start(JobOptions(command=("true",)))))
    return json.dumps({**entry, **more}).encode() + b"\n"


@pytest.mark.parametrize(
    "line",
    [
        changed(colour="red"),
        changed(command="true"),
        changed(command=[1]),
        changed(env=[["A", "B"]]),
        changed(env={"A": 1}),
        changed(learn=1),
        changed(file=["x"]),
        changed(resources_memory=None),
        changed(resources_memory=["1GiB"]),
        changed(start="another"),
        b"{}",
        b"",
        encoded(WHOLE)[:-20],
        b" " * start.LONGEST_START + encoded(WHOLE),
    ],
)
def test_a_supervisor_reads_strictly(line: bytes) -> None:
    with pytest.raises(LineError):
        decoded(line)


TREE = sorted(
    name
    for name, kind in start._tree(WgcellError).items()
    # Errors about a cell are made by its client, and others by modules of their own.
    if hasattr(errors, name) and not issubclass(kind, CellError)
)


@pytest.mark.parametrize("name", TREE)
def test_each_error_of_the_tree_comes_back_as_it_was(name: str) -> None:
    kind = getattr(errors, name)
    error = kind("one\x1b", hint="do this") if kind is LaunchError else kind("one", "two", hint="h")
    said = SAID.word(SAID.line(failed_of(error)))
    assert isinstance(said, Failed)
    back = error_of(said)
    assert type(back) is kind and str(back) == str(error) and back.hint == error.hint


def test_a_launch_keeps_its_evidence() -> None:
    error = LaunchError("no", argv=("a", "b"), exit_code=-9, output="1\n2", hint="h")
    back = error_of(failed_of(error))
    assert isinstance(back, LaunchError) and str(back) == str(error)
    assert (back.argv, back.exit_code, back.output) == (("a", "b"), -9, "1\n2")
    without = error_of(failed_of(LaunchError("no")))
    assert isinstance(without, LaunchError) and without.exit_code is None


def test_an_error_of_a_kind_that_is_not_known_is_one_all_the_same() -> None:
    class Other(JobError):
        """Of some module of its own."""

    assert type(error_of(failed_of(Other("x")))) is JobError
    assert type(error_of(Failed("Colour", ("x",)))) is WgcellError
    assert type(error_of(Failed("KeyboardInterrupt", ("x",)))) is WgcellError


def test_every_word_has_a_name() -> None:
    assert set(SAID.words.values()) == set(get_args(start.Said))
