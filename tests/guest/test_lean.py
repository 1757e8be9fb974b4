"""The agent within its means: the words that host and guest must agree on, and what it may load."""

from __future__ import annotations

import subprocess
import sys
from ast import literal_eval
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.guests import CONFIG

from wgcell.guest import AGENT, scripts
from wgcell.guest.config import encode_config
from wgcell.guest.frames import Terminal
from wgcell.guest.walls import Wall


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the agent's modules, as it is in the initramfs."""
    root = tmp_path_factory.mktemp("initramfs")
    for place, data in scripts().items():
        if place.startswith(AGENT):
            (root / place).parent.mkdir(parents=True, exist_ok=True)
            (root / place).write_bytes(data)
    return root / AGENT


def run(agent: Path, program: str, *words: str) -> str:
    """What a program prints that has the agent's modules before all others."""
    start = f"import sys; sys.path.insert(0, {str(agent)!r})\n"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-B", "-X", "utf8", "-c", start + program, *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


CONFIGS = """
import sys
from wgcell.guest.config import encode_config, parse_config
import dataclasses, enum
assert not hasattr(dataclasses, "asdict") and not hasattr(enum, "Flag")
config = parse_config([line.encode() for line in sys.argv[1].splitlines()])
print([encode_config(config).decode(), sorted(wall.name for wall in config.walls)])
"""


def test_the_stand_ins_read_and_write_what_the_host_does(agent: Path) -> None:
    config = replace(CONFIG, stdin=True, terminal=Terminal(24, 80))
    sent = encode_config(config).decode()
    again, walls = literal_eval(run(agent, CONFIGS, sent))
    assert again == sent
    assert walls == sorted(wall.name for wall in Wall)


STAND_INS = """
from dataclasses import dataclass, field
from enum import Enum

@dataclass(frozen=True, slots=True)
class Point:
    x: int
    y: int = field(repr=False)
    z: int = 7

class Colour(Enum):
    RED = "red"
    BLUE = "blue"

def raises(act, kind):
    try:
        act()
    except kind:
        return
    raise AssertionError(kind)

point = Point(1, y=2)
assert (point.x, point.y, point.z) == (1, 2, 7)
assert point == Point(1, 2, 7) and point != Point(1, 2, 8) and point != (1, 2, 7)
raises(lambda: Point(1), TypeError)
raises(lambda: Point(1, 2, 3, 4), TypeError)
raises(lambda: Point(1, 2, x=3), TypeError)
raises(lambda: Point(1, 2, w=3), TypeError)
raises(lambda: setattr(point, "x", 3), AttributeError)
match point:
    case Point(x, y=2):
        assert x == 1
    case _:
        raise AssertionError
assert [one.value for one in Colour] == ["red", "blue"]
assert Colour("red") is Colour.RED and Colour.RED.name == "RED"
assert {Colour.RED} == {Colour("red")} and isinstance(Colour.RED, Colour)
raises(lambda: Colour("green"), ValueError)
"""


@pytest.mark.parametrize("which", ["stand-ins", "real"])
def test_the_stand_ins_do_what_the_real_ones_do(agent: Path, which: str, tmp_path: Path) -> None:
    run(agent if which == "stand-ins" else tmp_path, STAND_INS)


LOADED = """
before = set(sys.modules)
import wgcell.guest.agent.main, wgcell.guest.agent.results
import wgcell.guest.agent.workload, wgcell.guest.agent.sessions
files = {name: getattr(sys.modules[name], "__file__", None) for name in set(sys.modules) - before}
print(files)
"""
# Built into Debian's interpreter, which is not everybody's.
BUILT_IN = {
    "binascii",
    "fcntl",
    "select",
    "_socket",
    "_struct",
    "_sha256",
    "_sha2",
    "_posixsubprocess",
}
ALLOWED = {
    *("__future__", "_ctypes", "os", "os.path", "posixpath", "genericpath", "stat"),
    *("_collections_abc", "abc"),
}


def test_the_agent_loads_what_the_initramfs_has_and_nothing_else(agent: Path) -> None:
    loaded = literal_eval(run(agent, LOADED))
    others = {
        name
        for name, file in loaded.items()
        if file is not None and not file.startswith(str(agent))
    }
    assert others <= BUILT_IN | ALLOWED
    ours = {name for name, file in loaded.items() if file and file.startswith(str(agent))}
    assert {"dataclasses", "enum", "wgcell.errors", "wgcell.guest.protocol"} <= ours
