"""An image's build that is ended, or fails for want of a network: nothing is left, and why."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.support.waiting import GENEROUS, alive, until

from wgcell.errors import ImageError
from wgcell.image.commands import run


def test_a_build_that_is_terminated_leaves_nothing(tmp_path: Path) -> None:
    """mmdebstrap's place is taken by a script that makes a folder, and tidies up when asked."""
    tools, cache = tmp_path / "tools", tmp_path / "cache"
    tools.mkdir()
    fake = tools / "mmdebstrap"
    begun, litter = tmp_path / "begun", tmp_path / "litter"
    fake.write_text(
        f"#!/bin/sh\nmkdir {litter}\ntrap 'rmdir {litter}; exit 1' TERM\n"
        f"sleep 600 &\necho $! > {begun}\nwait\n"
    )
    fake.chmod(0o755)
    path = f"{tools}:{os.environ['PATH']}"
    build = subprocess.Popen(
        [sys.executable, "-P", "-m", "wgcell", "image", "build"],
        env={**os.environ, "PATH": path, "WGCELL_CACHE_DIR": str(cache)},
        stderr=subprocess.PIPE,
        text=True,
    )

    def has_begun() -> bool:
        assert build.poll() is None
        return begun.exists() and bool(begun.read_text().strip())

    until(has_begun)
    build.send_signal(signal.SIGTERM)
    _, said = build.communicate(timeout=GENEROUS)
    assert build.returncode == 130, said
    assert "Traceback" not in said
    assert [entry.name for entry in (cache / "images").iterdir()] == [".lock"]
    assert not litter.exists()
    # It has been told to end, and is no child whose end we could wait for.
    until(lambda: not alive(int(begun.read_text())))


def test_one_that_is_interrupted_as_it_starts_is_ended_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal comes when the program runs already, and nobody has been told its process yet."""
    started: list[subprocess.Popen[str]] = []

    class Late(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **named: Any) -> None:
            super().__init__(*args, **named)
            started.append(self)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(subprocess, "Popen", Late)
    with pytest.raises(KeyboardInterrupt):
        run(["sleep", "600"])
    assert started[0].returncode == -signal.SIGTERM


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("W: Temporary failure resolving 'mirror.example.com'", "DNS"),
        ("E: Could not resolve 'mirror.example.com'", "DNS"),
        ("Could not connect to a.example.com:80 (192.0.2.1). - connect (111)", "can't be reached"),
        ("E: unable to pick chroot mode automatically", "uidmap"),
    ],
)
def test_a_failure_is_explained_by_what_it_is(said: str, hint: str) -> None:
    with pytest.raises(ImageError) as caught:
        run(["sh", "-c", 'echo "$0" >&2; exit 25', said], hint="install uidmap")
    assert hint in caught.value.hint
    assert ("uidmap" in caught.value.hint) == (hint == "uidmap")
