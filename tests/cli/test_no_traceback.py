"""Every verb against bad terminals, folders, files and names: words, a number, never a traceback.

A verb without a row here fails the first test.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.support.zygotes import Zygote

from wgcell.cell.folder import create
from wgcell.cli.main import _app

pytestmark = pytest.mark.process

ROWS: Mapping[str, tuple[str, ...]] = {
    # A command line of each verb that comes to its end by itself; NAME is a name to be replaced.
    "run": ("run", "--image", "NAME", "job.toml"),
    "exec": ("exec", "NAME", "-i", "--", "NAME"),
    "attach": ("attach", "NAME"),
    "cp": ("cp", "NAME", "nothing:NAME"),
    "ps": ("ps", "--all"),
    "logs": ("logs", "NAME"),
    "events": ("events", "NAME"),
    "inspect": ("inspect", "NAME"),
    "stop": ("stop", "NAME"),
    "wait": ("wait", "NAME"),
    "pause": ("pause", "NAME"),
    "unpause": ("unpause", "NAME"),
    "allow": ("allow", "NAME", "a.example.com:443"),
    "deny": ("deny", "NAME", "a.example.com:443"),
    "policy": ("policy", "NAME"),
    "port": ("port", "NAME"),
    "rm": ("rm", "NAME"),
    "prune": ("prune", "--force"),
    "mcp": ("mcp", "--memory", "NAME"),
    "doctor": ("doctor",),
    "prove": ("prove", "--list"),
    "image build": ("image", "build", "NAME"),
    "image ls": ("image", "ls"),
    "image rm": ("image", "rm", "NAME"),
    "gateway run": ("gateway", "run", "NAME", "--log", "NAME"),
    "gateway check": ("gateway", "check", "gateway.toml"),
    "gateway export": ("gateway", "export", "gateway.toml"),
    "gateway watch": ("gateway", "watch", "NAME"),
    "gateway keys": ("gateway", "keys"),
    "gateway peer add": ("gateway", "peer", "add", "NAME", "--endpoint", "vpn.example.com"),
    "gateway peer rm": ("gateway", "peer", "rm", "NAME"),
    "gateway peer ls": ("gateway", "peer", "ls"),
}
NAMES = [
    *("", ".", "..", "../x", "/", "~no-such-user/x", "-", "a b", "x" * 5000),
    "a\nwgcell: all is well",
    *("\x1b]0;title\x07", "\x9b6n", "\u202egnp.exe", "é", "file/below", "no/such/place", "cells"),
]  # fmt: skip
CONDITIONS: Mapping[str, dict[str, Any]] = {
    "stdout closed": {"fds": {"1": "closed"}},
    "stdout full": {"fds": {"1": "/dev/full"}},
    "stdout a broken pipe": {"fds": {"1": "broken pipe"}},
    "stderr closed": {"fds": {"2": "closed"}},
    "stderr full": {"fds": {"2": "/dev/full"}},
    "stderr a broken pipe": {"fds": {"2": "broken pipe"}},
    "stdin closed": {"fds": {"0": "closed"}},
    "all closed": {"fds": {"0": "closed", "1": "closed", "2": "closed"}},
    "working folder removed": {"cwd_removed": True},
    "no home": {"homeless": True, "without": ("WGCELL_STATE_DIR", "WGCELL_CACHE_DIR")},
    "state folder is a file": {"env": {"WGCELL_STATE_DIR": "{place}/file"}},
    "state folder is below a file": {"env": {"WGCELL_STATE_DIR": "{place}/file/x"}},
    "state folder is a circle": {"env": {"WGCELL_STATE_DIR": "{place}/circle"}},
    "state folder can't be": {"env": {"WGCELL_STATE_DIR": "/proc/none"}},
    "cache is a file": {"env": {"WGCELL_CACHE_DIR": "{place}/file"}},
    "configuration is a folder": {"env": {"XDG_CONFIG_HOME": "{place}/odd"}},
    "configuration is no text": {"env": {"XDG_CONFIG_HOME": "{place}/binary"}},
    "odd cells": {"env": {"WGCELL_STATE_DIR": "{place}/odd-cells"}},
}
ELSEWHERE = [name for name, condition in CONDITIONS.items() if condition.keys() == {"env"}]
"""Conditions that a process may leave again."""
PRINTS = {"ps", "prove", "image ls", "gateway keys", "gateway peer ls"}
"""Verbs whose row prints a result whatever is there."""


def verbs(group: Any, before: tuple[str, ...] = ()) -> Iterator[str]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from verbs(command, (*before, name))
        else:
            yield " ".join((*before, name))


def test_each_verb_has_a_row() -> None:
    assert set(verbs(typer.main.get_command(_app("")))) == set(ROWS)


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    place = tmp_path_factory.mktemp("place")
    (place / "job.toml").write_text('command = ["true"]\n')
    (place / "file").write_text("")
    (place / "circle").symlink_to("circle")
    (place / "odd/wgcell/config.toml").mkdir(parents=True)
    (place / "binary/wgcell").mkdir(parents=True)
    (place / "binary/wgcell/config.toml").write_bytes(b"\xff\x1b]0;x\x07")
    for name in ("cells", "odd-cells"):
        (place / name).mkdir()
    odd_cells(place / "odd-cells")
    with contextlib.closing(Zygote(place)) as made:
        made.run(("gateway", "peer", "add", "alice", "--endpoint", "vpn.example.com"))
        yield made


def odd_cells(cells: Path) -> None:
    """What a hostile user may leave where root looks: pipes, links, odd bytes."""
    odd = b'{"command":["\\u001b]0;t\\u0007","a\\nb",7,null],"outcome":["x"],"exit_code":"\\u0007"}'
    for number, content in enumerate((odd, b"\xff\xfe", b"[" * 100_000, b"7", b"")):
        cell = create(cells, f"odd-{number}")
        os.close(cell.hold())
        for name in ("job.json", "result.json", "events.jsonl", "stdout.log"):
            (cell.path / name).write_bytes(content)
    piped = create(cells, "piped")
    os.close(piped.hold())
    for name in ("job.json", "result.json", "events.jsonl", "stdout.log", "console.log"):
        os.mkfifo(piped.path / name)
    linked = create(cells, "linked")
    os.mkfifo(linked.path / "lock")
    (cells / "linked-abcdef").symlink_to("/")
    (cells / os.fsdecode(b"\xff\x1b[2J-abcdef")).mkdir()


def row(verb: str) -> tuple[str, ...]:
    return tuple("nothing" if word == "NAME" else word for word in ROWS[verb])


@pytest.mark.parametrize("verb", sorted(set(ROWS) - {"doctor"}))
def test_bad_folders(zygote: Zygote, verb: str) -> None:
    with zygote.batch():
        for name in ELSEWHERE:
            zygote.run(row(verb), CONDITIONS[name])


@pytest.mark.parametrize("verb", sorted(set(ROWS) - {"doctor"}))
def test_bad_terminals(zygote: Zygote, verb: str) -> None:
    argv = row(verb)
    for name in (name for name in CONDITIONS if name not in ELSEWHERE):
        condition = CONDITIONS[name]
        code = zygote.run(argv, condition)
        if verb in PRINTS and name in ("stdout closed", "stdout full", "all closed"):
            assert code == 125, name
        if name == "stdout full" and verb in PRINTS:
            assert "standard output: No space left" in zygote.said


def test_doctor(zygote: Zygote) -> None:
    """Slower than the rest, so in the conditions that matter to it."""
    bad = "configuration is no text"
    for name in ("stdout full", "stdout closed", "odd cells", "no home", bad):
        assert zygote.run(ROWS["doctor"], CONDITIONS[name]) in (1, 125), name
    assert "config.toml" in (zygote.place / "stdout").read_text()


@pytest.mark.parametrize("verb", [verb for verb, row in ROWS.items() if "NAME" in row])
def test_bad_names(zygote: Zygote, verb: str) -> None:
    with zygote.batch():
        for name in NAMES:
            argv = tuple(name if word == "NAME" else word for word in ROWS[verb])
            if name == "cells" and verb.startswith(("gateway peer", "image")):
                continue  # a good name of a peer, and of an image
            code = zygote.run(argv)
            assert code == 125, (name, zygote.said)


@pytest.mark.parametrize("verb", ["logs", "events", "inspect", "events --verify", "rm"])
def test_odd_cells_one_by_one(zygote: Zygote, verb: str) -> None:
    for cell in ("odd-0", "odd-1", "odd-2", "odd-3", "odd-4", "piped"):
        zygote.run((*verb.split(), cell), CONDITIONS["odd cells"])


@pytest.mark.parametrize(
    "argv",
    [
        ("run", "{}"),
        ("run", "--vpn", "{}", "--", "true"),
        ("run", "--input", "{}", "--", "true"),
        ("run", "--input={}", "--", "true"),
        ("run", "--env-file", "{}", "--", "true"),
        ("run", "--state-dir", "{}", "--", "true"),
        ("run", "--json-file", "{}", "--", "true"),
        ("prove", "--frames", "{}"),
        ("gateway", "run", "{}"),
        ("gateway", "check", "{}"),
        ("gateway", "run", "gateway.toml", "--log", "{}"),
        ("gateway", "peer", "ls", "--file", "{}"),
        ("ps", "--state-dir", "{}"),
    ],
)
def test_bad_files(zygote: Zygote, argv: tuple[str, ...]) -> None:
    bad = ("", "odd", "file/x", "circle", "~no-such-user/x", "a\nb\x1b", "n" * 300, "/proc/x")
    with zygote.batch():
        for name in bad:
            zygote.run(tuple(word.replace("{}", name) for word in argv))


def test_a_fault_of_ours_is_said_to_be_one_and_kept_without_secrets(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from wgcell.cli import main

    def broken(wanted: str) -> typer.Typer:
        raise TypeError("\x1b[2Jbroken")

    monkeypatch.setenv("WGCELL_STATE_DIR", str(tmp_path))
    monkeypatch.setattr(main, "_app", broken)
    for _ in range(25):
        with pytest.raises(SystemExit) as caught:
            main.main(["run", "--env=TOKEN=hush", "hush", "--", "hush"])
        assert caught.value.code == 125
    said = capfd.readouterr().err
    assert "a fault of wgcell's own: TypeError: \\x1b[2Jbroken" in said
    assert "report it" in said
    kept = sorted((tmp_path / "faults").iterdir())
    assert len(kept) == 20
    assert "in broken" in kept[0].read_text() and "hush" not in kept[0].read_text()
    assert str(kept[-1]) in said
