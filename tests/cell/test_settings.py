"""The table of settings: every row has all its faces, and a new one has them by itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import typer
from hypothesis import example, given
from hypothesis import strategies as st

import wgcell
from wgcell.cell import jobfile, provider
from wgcell.cell.job import HostLimits, Job, JobOptions
from wgcell.cell.jobfile import job_from_options, job_keys, load_job
from wgcell.cell.provider import CEILINGS, PERMISSIONS
from wgcell.cell.rows import By, Row, Unfit
from wgcell.cell.schema import keys
from wgcell.cell.settings import SETTINGS, TABLE, OnRogue
from wgcell.cli.run import run

HOST = HostLimits(cpus=4, memory=8 << 30, disk=100 << 30)
ROWS = pytest.mark.parametrize("row", TABLE, ids=lambda row: row.key)
NO_OPTION = {
    "command": "stands behind two dashes",
    "policy.tunnel_timeout": "for a workload that knows its own traffic: a job file's",
    "policy.verify_timeout": "likewise",
}


def recorded(job: Job) -> set[str]:
    """Every key of job.json, as a job file has them."""
    found = set()
    for key, value in job.public().items():
        found |= {f"{key}.{inner}" for inner in value} if isinstance(value, dict) else {key}
    return found


@ROWS
def test_each_row_is_a_key_of_a_job_file(row: Row[object]) -> None:
    assert row.key in job_keys() and row.key in keys(jobfile.model())


@ROWS
def test_each_row_has_an_option_with_its_help_or_a_reason_for_none(row: Row[object]) -> None:
    app = typer.Typer()
    app.command()(run)
    options = {flag: one for one in typer.main.get_command(app).params for flag in one.opts}
    if row.option is None:
        assert row.key in NO_OPTION and not row.flags
        return
    for flag in row.flags:
        assert options[flag].help == row.help
    assert row.option.help.endswith(".")
    # A default that there is, is said; and a limit that is none by default says so.
    if row in SETTINGS:
        assert "[default: " in row.help


def test_the_help_has_settings_in_the_tables_order_and_others_where_they_say() -> None:
    app = typer.Typer()
    app.command()(run)
    flags = [one.opts[-1] for one in typer.main.get_command(app).params]
    ours = [row.flags[-1] for row in TABLE if row.flags]
    assert [flag for flag in flags if flag in ours] == ours
    assert flags[0] == "file"
    for first, *then in (
        ("--service", "--learn", "--publish", "--image"),
        ("--output", "--output-dir", "--sync", "--force", "--yes", "--env", "--env-file"),
    ):
        at = flags.index(first)
        assert flags[at + 1 : at + 1 + len(then)] == then
    assert flags.index("--allow-endpoint") == flags.index(ours[-1]) + 1


@ROWS
def test_each_row_is_bounded_for_a_stranger_or_harmless(row: Row[object]) -> None:
    known = keys(provider.model())
    match row.by:
        case By.CEILING:
            assert f"ceilings.{row.name}" in known and row in CEILINGS and row.why == row.name
        case By.PERMISSION:
            assert row.why in known
            assert (row.why in PERMISSIONS) == (row in SETTINGS)
        case By.HARMLESS:
            assert row.why.endswith(".") and len(row.why.split()) > 4


@ROWS
def test_each_row_is_in_job_json(row: Row[object], tmp_path: Path) -> None:
    plain = job_from_options(JobOptions(command=("true",)), HOST)
    tunnelled = job_from_options(JobOptions(command=("true",), vpn=tmp_path / "x.conf"), HOST)
    assert row.key in recorded(plain) | recorded(tunnelled)


@pytest.mark.parametrize("row", SETTINGS, ids=lambda row: row.key)
def test_each_setting_is_a_field_with_its_default_and_can_be_written_as_it_is_read(
    row: Row[object],
) -> None:
    plain = job_from_options(JobOptions(command=("true",)), HOST)
    assert row.name in {column.name for column in fields(Job)}
    assert getattr(plain, row.name) == row.default
    if row.default is not None:
        assert row.kind.read(written(row, row.default)) == row.default
        json.dumps(row.kind.record(row.default))
    # Numbers other than counts have a unit, which a schema and the documents tell.
    if isinstance(row.default, int | float) and row.kind.written is not int:
        assert row.kind.unit


def written(row: Row[object], value: object) -> object:
    return value if row.kind.written is int else row.kind.text(value)


def test_no_two_rows_share_a_key_an_option_or_a_name() -> None:
    for every in (
        [row.key for row in TABLE],
        [flag for row in TABLE for flag in row.flags],
        [row.name for row in SETTINGS],
    ):
        assert len(every) == len(set(every))
    assert set(job_keys()) == {row.key for row in TABLE}


ANYTHING = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20)),
    *(st.lists(st.integers(), max_size=2), st.dictionaries(st.text(), st.text(), max_size=2)),
)


@given(ANYTHING)
@example(10**400)
def test_whatever_is_written_is_read_or_unfit(value: object) -> None:
    """A caller of the library may give a value of any type: no other error comes."""
    for row in SETTINGS:
        try:
            row.read(value, getattr(HOST, row.name) if row.of_host else None)
        except Unfit as unfit:
            assert "allowed: " in str(unfit) or "this machine has" in str(unfit)


@pytest.mark.parametrize("text", ["", " ", "none", "0"])
@pytest.mark.parametrize("name", ["rate", "quota", "timeout", "memory"])
def test_nothing_is_no_value(tmp_path: Path, name: str, text: str) -> None:
    """An empty rate was no limit, and a TypeError where the provider has a ceiling."""
    with pytest.raises(wgcell.errors.JobError, match=rf"--{name}: found '{text}'; allowed: "):
        job_from_options(JobOptions(command=("true",), settings={name: text}), HOST)


@pytest.mark.parametrize("name", ["cpus", "timeout", "memory", "image"])
def test_true_is_no_number_and_no_word(name: str) -> None:
    options = JobOptions(command=("true",), settings={name: True})
    with pytest.raises(wgcell.errors.JobError, match=rf"--{name}: found True; allowed: "):
        job_from_options(options, HOST)


def test_a_grace_period_may_be_none_at_all() -> None:
    for zero in ("0", "0s", 0):
        options = JobOptions(command=("true",), settings={"grace": zero})
        assert job_from_options(options, HOST).grace == 0.0


def test_a_ceiling_below_what_a_cell_needs_is_refused(tmp_path: Path) -> None:
    """Every job's default would have been lowered to it, and no machine boots with that."""
    path = tmp_path / "config.toml"
    path.write_text("[ceilings]\nmemory = '1MiB'")
    with pytest.raises(wgcell.errors.JobError, match=r"ceilings\.memory: .* at least 128MiB"):
        provider.load_provider(path)


def test_what_was_typed_goes_before_what_the_file_says(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(
        "command = ['x']\nresources.rate = '1Mbit'\npolicy.on_rogue = 'freeze'"
    )
    typed = JobOptions(settings={"rate": "2Mbit", "on_rogue": "terminate", "quota": None})
    job = load_job(tmp_path / "job.toml", HOST, typed)
    assert (job.rate, job.on_rogue, job.quota) == (250_000.0, OnRogue.TERMINATE, None)
    assert (job.asked, job.of_file) == ({"rate"}, frozenset())


# A new setting, in a copy of the package of which nothing but the table is changed.

NEW = """
    colour: int | None = setting(
        "policy.colour",
        SIZE,
        default=None,
        by=By.CEILING,
        option=Option("How blue it is.", without="not at all"),
        low=1 << 10,
    )
    mood: OnRogue = setting(
        "policy.mood",
        ON_ROGUE,
        default=OnRogue.TERMINATE,
        by=By.PERMISSION,
        why="allow_mood",
        option=Option("How it feels."),
    )
"""
FACES = """
import json, pathlib, sys
from wgcell.cell import jobfile, permissions, provider
from wgcell.cell.job import HostLimits, JobOptions
from wgcell.cli.main import main
from wgcell.errors import JobError

place, host = pathlib.Path(sys.argv[1]), HostLimits(4, 1 << 33, 1 << 33)
file, config = place / "job.toml", place / "config.toml"
file.write_text("command = ['x']\\n[policy]\\ncolour = '4KiB'\\nmood = 'freeze'")

def refused(*, rules, options=None):
    config.write_text(rules)
    try:
        given = provider.load_provider(config)
        job = provider.apply_ceilings(jobfile.load_job(file, host, options), given)
        permissions.vet(job, given, list)
    except JobError as error:
        return str(error)
    return ""

job = jobfile.load_job(file, host)
typed = JobOptions(settings={"colour": "1"})
print(json.dumps({
    "field": [job.colour, job.mood.value],
    "json": job.public()["policy"],
    "ceiling": refused(rules="allow_mood = true\\n[ceilings]\\ncolour = '2KiB'"),
    "permission": refused(rules=""),
    "taken": refused(rules="allow_mood = true\\n[ceilings]\\ncolour = '4KiB'"),
    "typed": refused(rules="", options=typed),
    "low": refused(rules="[ceilings]\\ncolour = '0.5KiB'"),
}))
main(["run", "--help"])
"""


def test_a_new_setting_touches_the_table_alone(tmp_path: Path) -> None:
    package = Path(wgcell.__file__).parent
    shutil.copytree(package, tmp_path / "wgcell", ignore=shutil.ignore_patterns("__pycache__"))
    table = tmp_path / "wgcell/cell/settings.py"
    before, end = table.read_text().split("\n_SHAPE = ")
    table.write_text(f"{before.rstrip()}\n{NEW}\n\n_SHAPE = {end}")
    done = subprocess.run(
        [sys.executable, "-c", FACES, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    line, _, help_ = done.stdout.partition("\n")
    faces = json.loads(line)
    assert faces["field"] == [4096, "freeze"]
    assert (faces["json"]["colour"], faces["json"]["mood"]) == (4096, "freeze")
    assert "policy.colour: found 4KiB; this provider allows at most 2KiB" in faces["ceiling"]
    assert "policy.mood: found 'freeze', which a job file may not say" in faces["permission"]
    assert "--mood freeze on the command line, or allow_mood = true in" in faces["permission"]
    assert faces["taken"] == ""
    assert faces["typed"].startswith("command line: --colour: found '1'; allowed: a number and KiB")
    assert "ceilings.colour: found '0.5KiB'; allowed: at least 1KiB" in faces["low"]
    words = " ".join(help_.split())
    assert "--colour <str> How blue it is. [default: not at all]" in words
    assert "--mood <str> How it feels. [default: terminate]" in words
