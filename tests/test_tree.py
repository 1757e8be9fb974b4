"""The tree of tests mirrors the modules; what tests share is built once, in `tests/support`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
REPOSITORY = TESTS.parent
SOURCE = REPOSITORY / "src/wgcell"
FILES = sorted(str(path.relative_to(TESTS)) for path in TESTS.rglob("test_*.py"))
ROOMS = sorted({str(Path(file).parent) for file in FILES} - {"."})
NO_ROOMS = {
    "cells": "whole cells, each with a virtual machine, by the command line",
    "prove/regressions": "a file for each way out that was found",
}
WHOLE = {
    "cli/test_bad_input.py": "every verb",
    "cli/test_control.py": "every verb of a cell that runs",
    "cli/test_no_traceback.py": "every verb",
    "cli/test_strangers.py": "every verb",
    "gateway/engines/test_both_families.py": "every engine",
    "gateway/engines/test_cut.py": "every engine",
    "gateway/engines/test_hosts.py": "every engine",
    "gateway/engines/test_ipv6.py": "every engine",
    "gateway/engines/test_published.py": "every engine",
    "gateway/engines/test_words.py": "every engine",
    "gateway/engines/nftables/test_changes.py": "both engines with nftables",
    "prove/test_fuzz.py": "the relay, by the battery's frames",
    "prove/test_no_false_kills.py": "the relay's sessions, for hours",
    "relay/test_recordings.py": "the relay, by two real tunnels",
    "test_examples.py": "the examples",
    "test_package.py": "the package's public names",
    "test_tree.py": "the tests",
    "test_types.py": "every module",
    "test_waiting.py": "the tests",
    "wire/test_headers.py": "every header",
}
"""Tests of more than a module, and of what."""
PROGRAMS = {"support", "debian13"}
"""Folders of Python files that hold no test."""
BUILDERS = {
    "frame": "messages",
    "handshake": "messages",
    "initiation": "messages",
    "response": "messages",
    "cookie_reply": "messages",
    "GUEST": "messages",
    "ENDPOINT": "messages",
    "PRIVATE": "vpnfiles",
    "vpn_file": "vpnfiles",
    "member": "tars",
    "Net": "networks",
    "Tunnel": "gateways",
    "Zygote": "zygotes",
    "until": "waiting",
    "alive": "waiting",
    "is_text": "shown",
}
"""What stands in one module of `tests/support`, and nowhere else."""


WRITES = {"cell/test_wgquick.py", "cell/test_wgquick_oracle.py"}
"""Where wg-quick files are themselves the subject."""


def modules(room: str) -> set[str]:
    """The names of what stands in a room of the source: modules, packages, the guest's scripts."""
    found = {path.stem for path in (SOURCE / room).iterdir() if path.suffix in (".py", "")}
    return {name.strip("_") for name in found}


def subject(file: str) -> str:
    """The longest name of a module, or the room's, that a file's own name begins with; or none."""
    name, room = Path(file).stem.removeprefix("test_"), Path(file).parent
    known = modules(str(room)) | {room.name}
    return max((m for m in known if name == m or name.startswith(f"{m}_")), key=len, default="")


@pytest.mark.parametrize("room", ROOMS)
def test_a_folder_of_tests_is_one_of_modules(room: str) -> None:
    assert (SOURCE / room).is_dir() != (room in NO_ROOMS)


@pytest.mark.parametrize("file", [file for file in FILES if str(Path(file).parent) not in NO_ROOMS])
def test_a_test_names_its_module(file: str) -> None:
    assert bool(subject(file)) != (file in WHOLE), f"{file}: {sorted(modules(Path(file).parent))}"


def test_beside_tests_there_are_fixtures_alone() -> None:
    others = {
        str(path.relative_to(TESTS))
        for path in TESTS.rglob("*.py")
        if not path.name.startswith("test_") and path.name != "conftest.py"
    }
    assert {file for file in others if Path(file).parts[0] not in PROGRAMS} == set()


@cache
def parsed(file: str) -> ast.Module:
    return ast.parse((TESTS / file).read_text())


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def defined(tree: ast.Module) -> Iterator[str]:
    """The names that a module itself gives to something at its top."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                yield from (n.id for n in ast.walk(target) if isinstance(n, ast.Name))


def built(tree: ast.Module) -> list[str]:
    """What a module builds although `tests/support` does; a `partial` of that is no other."""
    others = ast.Module(
        [
            node
            for node in tree.body
            if not (isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("partial("))
        ],
        [],
    )
    names = [name for name in defined(others) if name in BUILDERS]
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names += ["mac1" for call in calls if ast.unparse(call.func).endswith("wireguard.mac1")]
    texts = (node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr))
    return names + ["vpn_file" for text in texts if "[Interface]\\nPrivateKey" in ast.unparse(text)]


@pytest.mark.parametrize("file", FILES)
def test_no_test_takes_from_another(file: str) -> None:
    found = [name for name in imported(parsed(file)) if name.startswith("tests.")]
    assert [name for name in found if not name.startswith("tests.support")] == []


@pytest.mark.parametrize("file", [file for file in FILES if file not in WRITES])
def test_no_test_builds_what_support_builds(file: str) -> None:
    assert built(parsed(file)) == []


@pytest.mark.parametrize(
    "code",
    [
        "def frame(): ...",
        "GUEST, OTHER = b'a', b'b'",
        "x = wireguard.mac1(key, data)",
        'text = f"[Interface]\\nPrivateKey = {key}\\n"',
    ],
)
def test_what_is_built_again_is_found(code: str) -> None:
    assert built(ast.parse(code))
    assert not built(ast.parse("from tests.support.messages import GUEST, frame\nx = frame()"))


@pytest.mark.parametrize(("name", "module"), BUILDERS.items())
def test_support_has_it(name: str, module: str) -> None:
    assert name in set(defined(parsed(f"support/{module}.py")))


# What the documents say.

CELLS = "cells"
"""Where ``vm:`` stands for, in SECURITY.md."""
_NAMED = re.compile(r"`([^`]+)`")


@cache
def names(file: str) -> set[str]:
    """A file's tests."""
    return {name for name in defined(parsed(file)) if name.startswith("test_")}


def matches(name: str, known: set[str]) -> bool:
    """Whether a test is called so; ``…`` is the rest of its name."""
    begin, cut, _ = name.partition("…")
    return any(one.startswith(begin) if cut else one == begin for one in known)


def there(place: str, test: str) -> bool:
    """Whether a file, or one in a folder, has a test of that name."""
    files = (
        [place] if (TESTS / place).is_file() else [f for f in FILES if f.startswith(f"{place}/")]
    )
    return any(not test or matches(test, names(file)) for file in files)


def missing(row: str) -> Iterator[str]:
    """The tests that a row of SECURITY.md names and that there are not."""
    place = ""  # the file, or the folder, where the last word was
    for word in _NAMED.findall(row):
        name = word.removeprefix("vm: ")
        file, _, test = name.rpartition("::") if not name.endswith(".py") else (name, "", "")
        if not test.startswith("test_") and not Path(file).name.startswith("test_"):
            continue
        if name != word:
            place = f"{CELLS}/{file}" if file else CELLS
        elif file not in ("", "…"):
            place = file
        if not there(place, test):
            yield word


def test_a_test_that_is_not_there_is_found() -> None:
    good = "`test_tree.py::test_a_test…`, `test_what_is_built_again_is_found`; `vm: test_cell.py`"
    assert list(missing(f"| a | {good} |")) == []
    words = ("test_tree.py::test_no", "net/test_none.py", "vm: test_tree.py", "vm: test_tree…")
    assert [word for word in words if not list(missing(f"| a | `{word}` |"))] == []


def test_each_promise_names_a_test_that_there_is() -> None:
    rows = (REPOSITORY / "SECURITY.md").read_text().partition("## Promises and their tests")[2]
    found = [wrong for row in rows.splitlines() if row.startswith("|") for wrong in missing(row)]
    assert found == []
