"""For every test: a property may take its time, for the machine may be busy with something else."""

from __future__ import annotations

import gc
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from tests.support.examples import examples

settings.register_profile("wgcell", deadline=None, max_examples=examples(100))
settings.load_profile("wgcell")


_KEY = re.compile(r"[A-Za-z0-9+/]{43}=")


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """A test's name holds no key that was made for this run: each worker makes others."""
    if isinstance(val, str) and _KEY.search(val):
        return _KEY.sub("KEY", val).encode("unicode_escape").decode()
    return None


def _patience(item: pytest.Item) -> float:
    """Seconds that a test with a VM may take by its own mark; 0 for every other."""
    marked = item.get_closest_marker("timeout")
    if marked is None or item.get_closest_marker("vm") is None:
        return 0.0
    return float(marked.args[0] if marked.args else marked.kwargs.get("timeout", 0))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest VM tests begin first: they wait, for the most part, while others run beside."""
    items.sort(key=_patience, reverse=True)


def pytest_configure() -> None:
    """What these tests start may be interrupted, also if they themselves run in the background.

    A shell starts its background jobs, and nohup its program, with signals ignored; children
    inherit that, and wgcell respects it.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # A handler is not inherited: this process goes on, its children have the default.
    for number in (signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, lambda number, frame: None)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """What is loaded stays: to look through it costs 0.1 s, and is done after each module."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left_open() -> Iterator[None]:
    """What a module's tests leave open fails there, not a later test at whose time it is found."""
    yield
    gc.collect()


@pytest.fixture
def machineless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Supervisors that a test starts have cells without machines; the folder that these are in.

    `tests/support/machineless.py` says what such a cell can do. At the end all are killed.
    """
    from wgcell.cell.folder import all_cells
    from wgcell.client import supervised as process

    for name in ("WGCELL_STATE_DIR", "WGCELL_CACHE_DIR", "XDG_CONFIG_HOME"):
        folder = tmp_path / name.lower()
        folder.mkdir()
        monkeypatch.setenv(name, str(folder))
    here = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", str(here.parent))
    monkeypatch.setattr(process, "PROGRAM", (sys.executable, str(here / "support/machineless.py")))
    cells = tmp_path / "wgcell_state_dir"
    yield cells
    for cell in all_cells(cells):
        if (pid := cell.supervisor()) is not None:
            os.kill(pid, signal.SIGKILL)
