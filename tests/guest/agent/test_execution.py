"""A fork of the agent, until it is the program that somebody asked for: its memory holds keys.

It is held right before it executes the program, and root of the workload looks at it from another
session. Each probe is played with the shield down, too.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.support.inner import Inner, config
from tests.support.openers import command
from tests.support.waiting import until

from wgcell.guest.frames import Signal

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts in the first user namespace"),
]

HELD = """
import os, time
from wgcell.guest.agent import execution, kernel
then = execution._execute
def held(argv, environ, file):
    if argv[0] == "victim":
        with open("/work/held", "w", encoding="utf-8") as out:
            out.write(f"{os.getpid()}\\n")
        while True:
            time.sleep(1)
    return then(argv, environ, file)
execution._execute = held
"""
DOWN = "kernel.hide_memory = lambda: None\n"


def look(root: Path, before: str, **given: object) -> dict[str, int]:
    """What one that is held lets be seen of it."""
    (root / "work").chmod(0o777)
    with Inner(root, config(), before=before) as inner:
        victim = inner.opener.open(command("victim", **given))  # type: ignore[arg-type]
        until(lambda: (root / "work/held").exists() and (root / "work/held").read_text()[-1:])
        pid = (root / "work/held").read_text().strip()
        heard = inner.opener.run(command("/see", "spy", pid))
        inner.opener.send(Signal(victim, 9))  # one that was traced would go on no more
        assert inner.opener.until_over(victim).code == 137
    return {word: int(seen) for word, seen in map(str.split, heard.stdout.decode().splitlines())}


@pytest.mark.parametrize("user", ["", "someone"])
def test_nothing_of_a_fork_can_be_seen_by_the_workloads_root(furnished: Path, user: str) -> None:
    assert look(furnished, HELD, user=user) == dict.fromkeys(
        ("mem", "environ", "maps", "root/.", "fd/0", "trace"), 0
    )


def test_with_the_shield_down_all_of_it_can(furnished: Path) -> None:
    assert set(look(furnished, HELD + DOWN).values()) == {1}


IMPORTS = """
import sys
from wgcell.guest.agent import execution
then = execution._execute
def imports(argv, environ, file):
    try:
        import planted
    except ImportError as error:
        execution._say(str(error))
    return then(argv, environ, file)
execution._execute = imports
sys.path.insert(0, "/work")
"""


@pytest.mark.parametrize(("before", "said"), [("", b"planted"), ("hostile", b"")])
def test_a_fork_imports_nothing_from_the_root(furnished: Path, before: str, said: bytes) -> None:
    """The same with the finders left where they are: then it does."""
    (furnished / "work/planted.py").write_text("import os; os.write(1, b'hostile')")
    kept = "execution.sys = type('Kept', (), {'meta_path': []})\n" if before else ""
    with Inner(furnished, config(), before=IMPORTS + kept) as inner:
        heard = inner.opener.run(command("true"))
        assert (said in heard.stderr, heard.stdout) == (True, before.encode())
