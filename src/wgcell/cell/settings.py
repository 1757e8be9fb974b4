"""Every setting of a job in one table: a row a setting, from which come all its faces.

A row says how the setting is called in a job file, how its values are written and read, its bounds,
its default, its option on the command line, and what bounds a stranger's word: a ceiling of the
provider's, a permission in the provider's configuration, or nothing, because it is harmless.

::

    row ─┬─ a key of a job file            `wgcell.cell.jobfile.model`
         ├─ a field of `Job`               `Shape` and `Settings`, from which `Job` is derived
         ├─ an option and its help         `wgcell.cli.options`
         ├─ a ceiling or a permission      `wgcell.cell.provider`, `wgcell.cell.permissions`
         └─ a value in job.json            `wgcell.cell.job.Job.public`

There are rows of two sorts. A *setting* is complete in itself: a field of `Shape` or `Settings` is
all that a new one needs, besides the code that obeys it. A *part* means nothing without the job
file's folder or the other parts; `wgcell.cell.jobfile` composes a job of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import cast

from wgcell.cell.kinds import (
    COUNT,
    DURATION,
    DURATION_OR_ZERO,
    PAIRS,
    PATH,
    RATE,
    SIZE,
    TEXT,
    TEXTS,
    Kind,
    choice,
)
from wgcell.cell.rows import By, Option, Row, rows_of, setting
from wgcell.guest.walls import Wall

__all__ = [
    "ALLOW",
    "COMMAND",
    "ENV",
    "EXCLUDE",
    "HOSTS",
    "INPUTS",
    "NAME",
    "OUTPUTS",
    "PUBLISH",
    "SERVICES",
    "SETTINGS",
    "TABLE",
    "VPN",
    "OnRogue",
    "Settings",
]


class OnRogue(Enum):
    """The fate of a VM at its first frame outside the tunnel."""

    TERMINATE = "terminate"
    FREEZE = "freeze"


GUEST_WALLS: Mapping[str, frozenset[Wall]] = MappingProxyType(
    {"on": frozenset(Wall), "off": frozenset()}
)
"""What a job may say of them. Some but not others is for `wgcell.prove`."""


def _walls(walls: frozenset[Wall]) -> object:
    names = sorted(wall.value for wall in walls)
    return next((word for word, meant in GUEST_WALLS.items() if meant == walls), names)


def _image(value: object) -> str:
    text = TEXT.read(value)
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", text, re.ASCII) or ".." in text:
        raise ValueError(f"{text[:60]!r}; allowed: 1-64 of a-z, 0-9 and . _ -")
    return text


IMAGE = Kind(str, str, _image, str, str)
ON_ROGUE = choice({word.value: word for word in OnRogue})
WALLS = choice(GUEST_WALLS, _walls)

NAME = Row(
    "name",
    TEXT,
    by=By.HARMLESS,
    why="At most 32 of a-z, 0-9 and -: a part of the cell's id.",
    option=Option("What the cell is called."),
)
COMMAND = Row(
    "command",
    TEXTS,
    by=By.HARMLESS,
    why="It is run in the machine, which is what a cell is for.",
)
VPN = Row(
    "vpn.config",
    PATH,
    by=By.PERMISSION,
    why="allow_endpoints",
    option=Option("A wg-quick file: the requester's tunnel.", names=("--vpn",)),
    required=True,
)
ALLOW = Row(
    "gateway.allow",
    TEXTS,
    by=By.PERMISSION,
    why="allow_targets",
    option=Option("What the cell may reach, by its own gateway.", metavar="HOST:PORT"),
)
SERVICES = Row(
    "gateway.services",
    PAIRS,
    by=By.PERMISSION,
    why="allow_targets",
    option=Option(
        "A service in the tunnel: 10.99.0.5:80=127.0.0.1:8000, or db=… for db.internal.",
        names=("--service",),
        metavar="INSIDE=OUTSIDE",
    ),
)
PUBLISH = Row(
    "gateway.publish",
    TEXTS,
    by=By.PERMISSION,
    why="allow_publish",
    option=Option(
        "A port of this machine's, 127.0.0.1 unless said, joined to one of the cell's: 8080:80.",
        names=("-p", "--publish"),
        metavar="[ADDRESS:]PORT:PORT",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The VM's resources."""

    image: str = setting(
        "image",
        IMAGE,
        default="debian",
        by=By.HARMLESS,
        why="One of the images that the provider has built, or wgcell's own.",
        option=Option("The guest's image."),
    )
    cpus: int = setting(
        "resources.cpus",
        COUNT,
        default=1,
        by=By.CEILING,
        option=Option("Virtual CPUs."),
        low=1,
        of_host=True,
    )
    memory: int = setting(
        "resources.memory",
        SIZE,
        default=512 << 20,
        by=By.CEILING,
        option=Option("Memory, as 2GiB or 2G."),
        low=128 << 20,
        of_host=True,
    )
    """Bytes."""
    disk: int = setting(
        "resources.disk",
        SIZE,
        default=1 << 30,
        by=By.CEILING,
        option=Option("Scratch disk, as 4GiB."),
        low=16 << 20,
        of_host=True,
    )
    """Bytes of scratch space, for /work and everything the workload writes."""


INPUTS = Row(
    "inputs",
    TEXTS,
    by=By.HARMLESS,
    why="They lie in the job file's own folder, whatever links say.",
    option=Option(
        "A file or folder to appear in /work; of . or DIR/. its contents.", names=("--input",)
    ),
)
EXCLUDE = Row(
    "exclude",
    TEXTS,
    by=By.HARMLESS,
    why="It only leaves inputs out.",
    option=Option("Inputs to leave out, in .gitignore's syntax.", metavar="PATTERN"),
)
OUTPUTS = Row(
    "outputs",
    TEXTS,
    by=By.HARMLESS,
    why="They stay in the cell's folder, and within its disk.",
    option=Option("A path below /work to bring to the current folder.", names=("--output",)),
)
ENV = Row(
    "env",
    PAIRS,
    by=By.HARMLESS,
    why="It is the workload's, in the machine; no program of the host has it.",
    option=Option(
        "For the workload; without a value, the one that NAME has here.",
        names=("-e", "--env"),
        metavar="NAME[=VALUE]",
    ),
)


HOSTS = Row(
    "hosts",
    PAIRS,
    by=By.HARMLESS,
    why="Lines of the workload's own /etc/hosts; what may be reached, the gateway's rules say.",
    option=Option(
        "A line of the guest's /etc/hosts.", names=("--add-host",), metavar="NAME:ADDRESS"
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(Shape):
    """Every setting that is complete in itself."""

    timeout: float | None = setting(
        "timeout",
        DURATION,
        default=None,
        by=By.CEILING,
        option=Option("Longest run, as 90s or 1.5h.", without="no limit"),
    )
    """Seconds from the workload's release; None is no limit."""
    grace: float = setting(
        "grace",
        DURATION_OR_ZERO,
        default=10.0,
        by=By.CEILING,
        option=Option("From SIGTERM to SIGKILL, when the workload must end."),
        high=600.0,
    )
    """Seconds from SIGTERM to SIGKILL for a workload that must end; 0 kills it at once."""
    rate: float | None = setting(
        "resources.rate",
        RATE,
        default=None,
        by=By.CEILING,
        option=Option("Most the tunnel carries each way, as 10Mbit.", without="no limit"),
    )
    """Bytes of WireGuard messages a second, each way; None is no limit."""
    quota: int | None = setting(
        "resources.quota",
        SIZE,
        default=None,
        by=By.CEILING,
        option=Option("Bytes the tunnel carries, as 2GiB; then the cell ends.", without="no limit"),
        low=1 << 20,
        high=1 << 62,
    )
    """Bytes of WireGuard messages, both ways together, after which the cell ends."""
    on_rogue: OnRogue = setting(
        "policy.on_rogue",
        ON_ROGUE,
        default=OnRogue.TERMINATE,
        by=By.PERMISSION,
        why="allow_freeze",
        option=Option("terminate, or freeze to keep the VM to look into."),
    )
    tunnel_timeout: float | None = setting(
        "policy.tunnel_timeout",
        DURATION,
        default=None,
        by=By.CEILING,
        high=3600.0,
        own=True,
    )
    """Seconds without a valid message of the endpoint; None is wgcell's own value. An idle tunnel
    is silent between rekeys, two minutes: only for a workload that never is may it be shorter. A
    tunnel that was dead for an hour stays dead."""
    verify_timeout: float | None = setting(
        "policy.verify_timeout",
        DURATION,
        default=None,
        by=By.CEILING,
        high=3600.0,
        own=True,
    )
    """Seconds from QEMU's start to a verified tunnel; None is wgcell's own value."""
    guest_walls: frozenset[Wall] = setting(
        "policy.guest_walls",
        WALLS,
        default=GUEST_WALLS["on"],
        by=By.PERMISSION,
        why="allow_guest_walls_off",
        option=Option("on, or off for a guest that plays compromised: a test."),
    )
    """None starts the workload as a compromised guest would run it: to test the host's walls."""


_SHAPE = rows_of(Shape)
SETTINGS = rows_of(Settings)
"""The rows that are complete in themselves."""
TABLE: tuple[Row[object], ...] = cast(
    "tuple[Row[object], ...]",
    (
        *(NAME, COMMAND, VPN, ALLOW, SERVICES, PUBLISH, *_SHAPE),
        *(INPUTS, EXCLUDE, OUTPUTS, ENV, HOSTS, *SETTINGS[len(_SHAPE) :]),
    ),
)
"""Every row, in the order of the options."""
