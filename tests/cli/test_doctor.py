"""`wgcell doctor`: what it prints, and its exit code."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from typer import Typer
from typer.testing import CliRunner

from wgcell.cli import checks, doctor
from wgcell.cli.checks import Finding

OK = Finding("QEMU", True, "/usr/bin/qemu", "apt-get install qemu")
NOTE = Finding("KVM", False, "not there", "switch it on\nthen reboot", needed=False)
MISSING = Finding("mke2fs", False, "not \x1bfound", "apt-get install e2fsprogs")


def run(
    monkeypatch: pytest.MonkeyPatch, *findings: Finding, options: Sequence[str] = ()
) -> tuple[int, str]:
    monkeypatch.setattr(doctor, "examine", lambda: list(findings))
    app = Typer()
    app.command()(doctor.doctor)
    done = CliRunner().invoke(app, list(options))
    return done.exit_code, done.output


def test_each_finding_is_a_line_and_its_fix_is_indented(monkeypatch: pytest.MonkeyPatch) -> None:
    code, text = run(monkeypatch, OK, NOTE)
    assert code == 0
    assert [line.split(maxsplit=2) for line in text.splitlines()[:2]] == [
        ["ok", "QEMU", "/usr/bin/qemu"],
        ["note", "KVM", "not there"],
    ]
    assert [line.strip() for line in text.splitlines()[2:]] == ["switch it on", "then reboot"]


@pytest.mark.parametrize("option", ["--print-fixes", "--print-mends"])
def test_the_fixes_of_what_is_missing_alone(monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    """The option's former name still works."""
    code, text = run(monkeypatch, OK, NOTE, MISSING, options=[option])
    assert (code, text) == (1, "apt-get install e2fsprogs\n")


def test_something_needed_that_is_missing_is_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    code, text = run(monkeypatch, MISSING)
    assert code == 1 and "not \\x1bfound" in text


def test_a_check_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def _fails() -> Finding:
        raise OSError("no proc")

    monkeypatch.setattr(checks, "CHECKS", (_fails,))
    assert checks.examine() == [Finding("fails", False, "can't be checked: no proc", needed=False)]
