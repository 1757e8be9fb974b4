"""No test sleeps, and what measures time is alone: see `tests/support/waiting.py`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
FILES = sorted(str(path.relative_to(TESTS)) for path in TESTS.rglob("*.py"))
SLEEPS = {
    "support/waiting.py": "the one module that waits",
    "support/record.py": "a program that is run by hand",
    "support/deaths.py": "a program of its own, whose moments are random",
}
MEASURES = {
    "cell/test_archive.py": "processor time, within a bound five times as long",
    "gateway/engines/nftables/test_connections.py": "a wait of 0.2 s that may take 5",
    "gateway/engines/test_cut.py": "half a second's work, within ten",
    "gateway/peer/test_admission.py": "an answer of so many seconds ago: nothing is measured",
    "cells/test_guest.py": "inside the guest",
    "cells/test_guest_sessions.py": "printed, and compared with nothing",
    "cells/test_results.py": "within a minute and more",
    "support/deaths.py": "its test, test_deaths.py, is alone",
}
THREADS = {"threading.Thread", "Thread", "threading.Timer", "Timer", "ThreadPoolExecutor"}
"""A Timer can't be told to be a daemon where it is made, an executor never."""
CLOCKS = {"monotonic", "perf_counter", "process_time"}


@cache
def parsed(file: str) -> ast.Module:
    return ast.parse((TESTS / file).read_text())


def sleeps(tree: ast.AST) -> Iterator[int]:
    """The lines that name a sleep; `asyncio.sleep(0)`, which waits for nothing, is none."""
    turns = {
        id(node.func)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node) == "asyncio.sleep(0)"
        and isinstance(node.func, ast.Attribute)
    }
    for node in ast.walk(tree):
        if (isinstance(node, ast.Attribute) and node.attr == "sleep" and id(node) not in turns) or (
            isinstance(node, ast.ImportFrom) and any(name.name == "sleep" for name in node.names)
        ):
            yield node.lineno


def measurers(tree: ast.Module) -> Iterator[str]:
    """The functions that take one time from another, and whose test is not marked ``alone``."""
    for function in tree.body:
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        taken = (
            node.left
            for node in ast.walk(function)
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub)
        )
        clocks = {
            call.func.attr
            for call in taken
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)
        }
        marked = any("mark.alone" in ast.unparse(line) for line in function.decorator_list)
        if clocks & CLOCKS and not marked:
            yield function.name


def undying(tree: ast.AST) -> Iterator[int]:
    """The lines that start a thread which would hold up the end of the tests."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in THREADS:
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if given.get("daemon") != "True":
                yield node.lineno


@pytest.mark.parametrize("file", FILES)
def test_no_thread_outlives_a_test_that_fails(file: str) -> None:
    assert list(undying(parsed(file))) == []


@pytest.mark.parametrize(
    ("code", "ends"),
    [
        ("threading.Thread(target=f)", False),
        ("Thread(target=f, daemon=False)", False),
        ("threading.Timer(1, f)", False),
        ("threading.Thread(target=f, daemon=True)", True),
    ],
)
def test_a_thread_that_does_is_found(code: str, ends: bool) -> None:
    assert list(undying(ast.parse(code))) == ([] if ends else [1])


@pytest.mark.parametrize("file", FILES)
def test_no_test_sleeps(file: str) -> None:
    found = list(sleeps(parsed(file)))
    assert bool(found) == (file in SLEEPS), f"{file}: lines {found}"


@pytest.mark.parametrize("file", FILES)
def test_what_measures_time_is_alone(file: str) -> None:
    found = list(measurers(parsed(file)))
    assert not found or file in MEASURES, f"{file}: {found}"


@pytest.mark.parametrize(
    "code",
    [
        "time.sleep(1)",
        "await asyncio.sleep(0.1)",
        "from time import sleep",
        "later(time.sleep, 0.5)",
    ],
)
def test_each_way_to_sleep_is_seen(code: str) -> None:
    assert list(sleeps(ast.parse(code)))
    assert not list(sleeps(ast.parse("await asyncio.sleep(0)")))


def test_a_measure_is_seen() -> None:
    code = "def test():\n    assert time.monotonic() - begun < 1\n"
    assert list(measurers(ast.parse(code))) == ["test"]
    assert not list(measurers(ast.parse("@pytest.mark.alone\n" + code)))
