"""For every test: a property may take its time, for the machine may be busy with something else."""

from __future__ import annotations

import re
import signal

import pytest
from hypothesis import settings

settings.register_profile("wgcell", deadline=None)
settings.load_profile("wgcell")


_KEY = re.compile(r"[A-Za-z0-9+/]{43}=")


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """A test's name holds no key that was made for this run: each worker makes others."""
    if isinstance(val, str) and _KEY.search(val):
        return _KEY.sub("KEY", val).encode("unicode_escape").decode()
    return None


def pytest_configure() -> None:
    """What these tests start may be interrupted, also if they themselves run in the background.

    A shell starts its background jobs, and nohup its program, with signals ignored; children
    inherit that, and wgcell respects it.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # A handler is not inherited: this process goes on, its children have the default.
    for number in (signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, lambda number, frame: None)
