"""Each example does what it says. Here their cells have no machine, and their programs are real;
``tests/cells/test_examples.py`` runs the same in machines."""

from __future__ import annotations

import asyncio
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
pytest_plugins = ["pytester"]


def names_of(example: str) -> dict[str, Any]:
    """The names of an example's module."""
    return runpy.run_path(str(EXAMPLES / f"{example}.py"), run_name=example)


def test_there_are_no_others() -> None:
    tested = {"agent", "farm", "notebook", "test_untrusted"}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == tested


@pytest.mark.usefixtures("machineless")
def test_an_agent_sees_its_mistake_and_corrects_it(capsys: pytest.CaptureFixture[str]) -> None:
    asyncio.run(names_of("agent")["main"]())
    assert capsys.readouterr().out.splitlines()[-1] == str(
        [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47]
    )


@pytest.mark.usefixtures("machineless")
def test_an_agent_asks_a_person_before_it_reaches_more(monkeypatch: pytest.MonkeyPatch) -> None:
    names = names_of("agent")
    agent, allow, answer = names["Agent"], names["Allow"], names["Answer"]
    asked: list[str] = []
    allowed: list[tuple[str, float]] = []

    class Cell:
        async def allow(self, rule: str, *, seconds: float) -> None:
            allowed.append((rule, seconds))

    def model(seen: list[str]) -> Any:
        rule = "files.example.com:443"
        return allow(rule, "a table is there") if len(seen) < 2 else answer("; ".join(seen))

    answers = iter((False, True))

    def ask(question: str) -> bool:
        asked.append(question)
        return next(answers)

    said = asyncio.run(agent(Cell(), model, ask).work())
    assert said == (
        "files.example.com:443 was not allowed; files.example.com:443 is allowed for ten minutes"
    )
    assert "a table is there" in asked[0] and allowed == [("files.example.com:443", 600)]


def test_a_farm_builds_at_once_and_tries_again_what_never_ran(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a build leaves needs a machine: ``tests/cells`` has it. Here: which is tried again."""
    import wgcell

    names = names_of("farm")
    tried: list[str] = []

    class Cell:
        def __init__(self, *command: str, inputs: list[str], **settings: Any) -> None:
            self.name = Path(inputs[0]).name
            assert inputs == [f"{tmp_path / self.name}/."] and settings["outputs"] == ["out"]

        async def __aenter__(self) -> Cell:
            tried.append(self.name)
            about = {"cell": self.name, "folder": ""}
            if self.name == "never" or (self.name == "second" and tried.count("second") == 1):
                raise wgcell.NeverRan("no memory", **about)
            if self.name == "lost":
                raise wgcell.OutcomeUnknown("its supervisor died", **about)
            return self

        async def __aexit__(self, *error: object) -> None:
            """It has ended."""

        async def wait(self) -> wgcell.Completed:
            code = 3 if self.name == "broken" else 0
            usage = wgcell.Usage(1.5)
            return wgcell.Completed(self.name, "", ("sh",), code, b"built\n", b"", usage)

    monkeypatch.setattr(wgcell, "Cell", Cell)
    projects = [tmp_path / name for name in ("one", "second", "never", "lost", "broken")]
    built = asyncio.run(names["farm"](projects, ["sh"], tmp_path / "into"))
    assert [one.exit_code for one in built] == [0, 0, None, None, 3]
    assert {name: tried.count(name) for name in ("one", "second", "never", "lost", "broken")} == {
        **dict.fromkeys(("one", "lost", "broken"), 1),
        "second": 2,
        "never": 3,
    }
    assert [one.words for one in built[2:4]] == ["no memory", "its supervisor died"]


@pytest.mark.usefixtures("machineless")
def test_a_notebooks_variables_stay() -> None:
    with names_of("notebook")["Notebook"]() as notebook:
        assert notebook.run("x = 6").value == ""
        assert notebook.run("print('hello')\nx * 7").printed == "hello\n"
        assert notebook.run("x * 7").value == "42"
        wrong = notebook.run("1 / 0")
        assert wrong.failed and "ZeroDivisionError" in wrong.printed
        assert notebook.run("x").value == "6"
        with pytest.raises(RuntimeError, match="makes no sense"):
            notebook.run("import sys; sys.__stdout__.write('lies\\n')")


@pytest.mark.usefixtures("machineless")
def test_the_plugin_gives_each_test_a_cell(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.cell(name="marked", env={"A": "b"})
        def test_marked(cell):
            assert cell.id.startswith("marked-")
            assert cell.exec("echo", "x", check=True).stdout == b"x\\n"

        def test_plain(cell):
            assert cell.state() == "running"

        @pytest.mark.cell(colour="red")
        def test_no_setting(cell):
            raise AssertionError("it has started")

        def test_none():
            import sys
            assert "wgcell.sync" in sys.modules  # by those before
        """
    )
    done = pytester.runpytest_inprocess("-p", "no:cacheprovider", "--strict-markers")
    done.assert_outcomes(passed=3, errors=1)
    done.stdout.fnmatch_lines(["*unknown key 'colour'*"])


def test_a_test_run_without_a_cell_does_not_wait_for_one() -> None:
    program = "import sys, wgcell.pytest_plugin; print('wgcell.sync' in sys.modules)"
    argv = [sys.executable, "-c", program]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
