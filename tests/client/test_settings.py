"""A program's keywords are the settings of the one table, and are read as a job file's are."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from wgcell.cell.job import HostLimits, JobOptions
from wgcell.cell.jobfile import job_from_options
from wgcell.cell.settings import TABLE
from wgcell.client import settings
from wgcell.client.settings import CellSettings, start_of
from wgcell.errors import JobError
from wgcell.guest.subjects import Terminal

LIMITS = HostLimits(8, 1 << 40, 1 << 40)
KEYWORDS = set(get_type_hints(CellSettings))
NOT_OF_THE_TABLE = {
    *("file", "learn", "allow_endpoints", "output_dir", "sync", "force", "state_dir"),
}


def test_every_row_of_the_table_is_a_keyword() -> None:
    """A new setting is one as soon as it is in the table."""
    rows = {"vpn" if row.key == "vpn.config" else row.name for row in TABLE} - {"command"}
    assert rows | NOT_OF_THE_TABLE == KEYWORDS
    assert {*settings._OWN, *settings._ROWS} == KEYWORDS


def options(**given: Any) -> JobOptions:
    return start_of(("true",), given, remove=False).options


def test_what_is_given_is_what_a_command_line_would_say(tmp_path: Path) -> None:
    start = start_of(
        ("python3", "a.py"),
        {
            "name": "train",
            "file": "job.toml",
            "allow": ["api.example.com:443"],
            "services": {"10.99.0.5:80": "127.0.0.1:8000"},
            "publish": ["8080:80"],
            "hosts": {"db": "10.99.0.9"},
            "learn": True,
            "vpn": tmp_path / "x.conf",
            "allow_endpoints": ("192.0.2.0/24",),
            "inputs": [Path("a.py"), "b/."],
            "exclude": ["*.o"],
            "outputs": ["results"],
            "output_dir": "out",
            "sync": None,
            "force": True,
            "env": {"A": "1"},
            "state_dir": "cells",
            "memory": "1GiB",
            "timeout": 1.5,
            "cpus": None,
        },
        remove=True,
    )
    assert start.options == JobOptions(
        name="train",
        command=("python3", "a.py"),
        inputs=("a.py", "b/."),
        excludes=("*.o",),
        outputs=("results",),
        output_dir=Path("out"),
        env=(("A", "1"),),
        vpn=tmp_path / "x.conf",
        allow=("api.example.com:443",),
        services=(("10.99.0.5:80", "127.0.0.1:8000"),),
        publish=("8080:80",),
        hosts=(("db", "10.99.0.9"),),
        settings={"memory": "1GiB", "timeout": 1.5},
        idle=True,
        keywords=True,
    )
    assert (start.file, start.cells) == (Path("job.toml"), Path("cells"))
    assert (start.allow_endpoints, start.learn, start.force) == (("192.0.2.0/24",), True, True)
    assert start.remove


@pytest.mark.parametrize("name", ["memory", "disk", "quota"])
def test_a_size_may_be_bytes(name: str) -> None:
    job = job_from_options(options(**{name: 1 << 30}), LIMITS)
    assert getattr(job, name) == 1 << 30
    with pytest.raises(JobError, match=f"{name}: found 1000000001; allowed: whole KiB"):
        options(**{name: 1_000_000_001})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"memori": "1GiB"}, "'memori' .did you mean memory"),
        ({"inputs": "a.py"}, "inputs: found 'a.py'; allowed: a list of texts"),
        ({"allow": [1]}, r"allow: found \[1\]; allowed: a list of texts"),
        ({"allow": 1}, "allow: found 1; allowed"),
        ({"env": ["A=1"]}, "env: found .*; allowed: a mapping"),
        ({"vpn": 3}, "vpn: found 3; allowed: a path"),
    ],
)
def test_what_can_be_no_setting_is_said_at_once(given: dict[str, Any], says: str) -> None:
    with pytest.raises(JobError, match=says):
        options(**given)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"memory": "much"}, "^memory: found 'much'"),
        ({"cpus": "2"}, "^cpus: found '2'; allowed: a whole number"),
        ({"on_rogue": "laugh"}, "^on_rogue: found 'laugh'; allowed: terminate, freeze"),
        ({"allow": ["a b"]}, "^allow: "),
        ({"name": "A B"}, "^name: found 'A B'"),
        ({"sync": "x", "outputs": ["y"]}, "^sync: can't be combined"),
        ({"vpn": "x", "allow": ["a:1"]}, "^vpn: can't be combined"),
        ({"inputs": [""]}, "^inputs: is empty"),
    ],
)
def test_an_error_names_the_keyword_and_no_option(given: dict[str, Any], says: str) -> None:
    with pytest.raises(JobError, match=says):
        job_from_options(options(**given), LIMITS)


def test_the_types_say_what_is_allowed() -> None:
    hints = get_type_hints(CellSettings)
    assert get_args(hints["on_rogue"]) == ("terminate", "freeze")
    assert get_args(hints["guest_walls"]) == ("on", "off")


@pytest.mark.parametrize(
    ("tty", "size"), [(True, (24, 80)), ((0, 65535), (0, 65535)), ((10, 20), (10, 20))]
)
def test_a_terminal_has_a_size(tty: Any, size: tuple[int, int]) -> None:
    start = start_of(("sh",), {}, tty=tty, stdin=True)
    assert start.options.terminal == Terminal(*size) and start.options.stdin
    assert start_of(("sh",), {}, tty=False).options.terminal is None


@pytest.mark.parametrize(
    "tty", [(1,), (1, 2, 3), (-1, 2), (1, 65536), ("1", 2), (True, 2), "80x24"]
)
def test_what_is_no_terminal_is_said_at_once(tty: Any) -> None:
    with pytest.raises(JobError, match=r"^tty: found"):
        start_of(("sh",), {}, tty=tty)
