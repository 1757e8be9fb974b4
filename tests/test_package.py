"""What `import wgcell` gives, and what it costs: nothing is loaded before it is used."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

import wgcell

pytestmark = pytest.mark.process
SOURCE = Path(wgcell.__file__)
LOADED = "import json, sys; before = set(sys.modules); {}; print(json.dumps([*sys.modules]))"
LONGEST = 0.030
"""Seconds."""


def loaded(statement: str) -> set[str]:
    """The modules that a fresh interpreter has loaded behind that statement."""
    argv = [sys.executable, "-I", "-c", LOADED.format(statement)]
    return set(json.loads(subprocess.run(argv, capture_output=True, check=True).stdout))


def test_importing_it_loads_nothing_else() -> None:
    assert loaded("import wgcell") - loaded("pass") == {"wgcell"}


def test_importing_an_error_loads_no_machine_and_no_event_loop() -> None:
    new = loaded("from wgcell import NeverRan") - loaded("pass")
    assert {name for name in new if name.startswith("wgcell")} == {
        *("wgcell", "wgcell.errors", "wgcell.display"),
    }


def test_a_cell_loads_nothing_that_only_its_supervisor_needs() -> None:
    new = loaded("import wgcell; wgcell.Cell, wgcell.connect, wgcell.run")
    heavy = ("wgcell.api", "wgcell.vm", "wgcell.relay", "wgcell.image", "wgcell.cell.supervisor")
    heavy += ("pydantic", "cryptography", "qemu", "mitmproxy_rs", "typer", "rich", "pyseccomp")
    found = {name for name in new if name.startswith(heavy)}
    assert not found
    assert "anyio" not in loaded("import wgcell; wgcell.Cell"), "only wgcell.sync needs it"


@pytest.mark.alone
def test_importing_it_takes_less_than_30_ms() -> None:
    program = "import time; t = time.perf_counter(); import wgcell; print(time.perf_counter() - t)"
    argv = [sys.executable, "-I", "-c", program]
    took = [float(subprocess.run(argv, capture_output=True, check=True).stdout) for _ in range(5)]
    assert min(took) < LONGEST, took
    assert time.perf_counter() > 0


@pytest.mark.parametrize("name", wgcell.__all__)
def test_each_public_name_is_there(name: str) -> None:
    assert getattr(wgcell, name) is not None and name in dir(wgcell)


def test_a_name_that_is_none_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Sell'"):
        wgcell.Sell  # noqa: B018  # type: ignore[attr-defined]


def test_a_type_checker_sees_every_name_that_is_loaded_later() -> None:
    """The imports under TYPE_CHECKING are those of the table, from the same modules."""
    seen: dict[str, str] = {}
    for node in ast.walk(ast.parse(SOURCE.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module != "importlib":
            seen |= {name.asname or "": str(node.module) for name in node.names}
    table = {name: module for module, names in wgcell._MODULES.items() for name in names}
    assert seen == {**table, "sync": "wgcell"}
    for name, module in table.items():
        found = importlib.import_module("wgcell.sync" if name == "sync" else module)
        assert getattr(wgcell, name) is (found if name == "sync" else getattr(found, name))
    assert (SOURCE.parent / "py.typed").exists()
