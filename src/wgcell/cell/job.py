"""One job, validated and frozen; and the command line's share of one.

`wgcell.cell.jobfile` reads a job; its settings are `wgcell.cell.settings`' rows.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from wgcell.cell.inputs import Input
from wgcell.cell.settings import SETTINGS, OnRogue, Settings
from wgcell.guest.frames import Terminal

__all__ = ["GatewayAsked", "HostLimits", "Job", "JobOptions", "Landing", "OnRogue"]


@dataclass(frozen=True, slots=True)
class HostLimits:
    """This machine's resources: ``memory`` and ``disk`` in bytes."""

    cpus: int
    memory: int
    disk: int

    @staticmethod
    def of_this_host(folder: Path) -> HostLimits:
        """This machine's CPUs and memory, and the free space where ``folder`` is or will be."""
        place = folder
        while not place.exists() and place != place.parent:
            place = place.parent
        return HostLimits(
            cpus=len(os.sched_getaffinity(0)),
            memory=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
            disk=shutil.disk_usage(place).free,
        )


@dataclass(frozen=True, slots=True)
class GatewayAsked:
    """The embedded gateway, as a job asks for it. Empty means: default deny, nothing open."""

    allow: tuple[str, ...] = ()
    services: tuple[tuple[str, str], ...] = ()
    """Pairs of ADDRESS:PORT in the tunnel and HOST:PORT on the gateway's side."""
    resolver: tuple[str, ...] = ()
    """The resolver of the cell's names, ADDRESS or ADDRESS:PORT; empty is this machine's own.

    Like ``learn``, it is never in a job file: the person who runs wgcell decides it.
    """
    learn: bool = False
    """Allow what no rule refuses, and record it."""
    publish: tuple[str, ...] = ()
    """Ports of this machine's joined to ones of the cell's, as [ADDRESS:]PORT:PORT."""
    file_allow: tuple[str, ...] = field(default=(), compare=False)
    """Those of ``allow`` that stand in the job file, and were not typed as well."""
    file_services: tuple[tuple[str, str], ...] = field(default=(), compare=False)
    """Likewise those of ``services``."""
    file_publish: tuple[str, ...] = field(default=(), compare=False)
    """Likewise those of ``publish``."""


@dataclass(frozen=True, slots=True)
class Landing:
    """The place for the outputs that the person at the terminal chose."""

    folder: Path
    """Absolute."""
    outputs: tuple[str, ...]
    """Those of the job's outputs that land; the others stay in the cell's folder."""
    synced: bool = False
    """Whether the folder is one whose contents went in, and to which only changes come back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(Settings):
    """One job, validated. Exactly one of ``vpn`` and ``gateway`` is set."""

    name: str
    command: tuple[str, ...]
    """Empty: the cell has no workload of its own, and waits for sessions until it is stopped."""
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    """Patterns relative to /work, normalized; . is all of it."""
    env: tuple[tuple[str, str], ...] = field(repr=False)
    vpn: Path | None
    gateway: GatewayAsked | None
    hosts: tuple[tuple[str, str], ...] = ()
    """Names, each with an address, for the workload's /etc/hosts."""
    asked: frozenset[str] = field(default=frozenset(), compare=False)
    """Settings with a ceiling that somebody asked for; the others are defaults, and may be
    lowered."""
    vpn_beneath: Path | None = field(default=None, compare=False)
    """The folder that ``vpn`` must lie in; None is anywhere."""
    of_file: frozenset[str] = field(default=frozenset(), compare=False)
    """Settings that want a permission, whose value is the job file's word, and not a typed one."""
    excludes: tuple[str, ...] = ()
    """Inputs that stay here: gitignore's patterns, relative to /work."""
    landing: Landing | None = None
    """None leaves the outputs in the cell's folder."""
    stdin: bool = False
    """The workload reads what the cell's starter, or a client that attaches, writes."""
    terminal: Terminal | None = None
    """The workload's streams are a terminal of this size at first."""

    def public(self) -> dict[str, object]:
        """The job for ``job.json``: no keys, and of the environment only the names."""
        asked = self.gateway
        tables: dict[str, dict[str, object]] = {"": {}}
        for row in SETTINGS:
            value: object = getattr(self, row.name)
            recorded = None if value is None else row.kind.record(value)
            tables.setdefault(row.table, {})[row.name] = recorded
        return {
            "name": self.name,
            "command": list(self.command),
            "inputs": [str(path) for path in self.inputs],
            "exclude": list(self.excludes),
            "outputs": list(self.outputs),
            "output_dir": None if self.landing is None else str(self.landing.folder),
            "env": sorted(name for name, _ in self.env),
            "stdin": self.stdin,
            "terminal": self.terminal is not None,
            "vpn": None if self.vpn is None else {"config": str(self.vpn)},
            "gateway": None
            if asked is None
            else {
                "allow": list(asked.allow),
                "services": dict(asked.services),
                "publish": list(asked.publish),
            },
            "hosts": [f"{name}:{address}" for name, address in self.hosts],
            **tables.pop(""),
            **tables,
        }


@dataclass(frozen=True, slots=True)
class JobOptions:
    """The command line's share of a job. None and empty leave the job file's word."""

    name: str | None = None
    command: tuple[str, ...] = ()
    inputs: tuple[str | Path, ...] = ()
    """Added to the file's; relative to the current folder, and may lie anywhere."""
    excludes: tuple[str, ...] = ()
    """Added to the file's."""
    outputs: tuple[str, ...] = ()
    """Added to the file's; these land in the current folder."""
    output_dir: Path | None = None
    """The folder in which all outputs land, the job file's included."""
    sync: Path | None = None
    """A folder whose contents go in, and to which changes come back."""
    env: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    vpn: Path | None = None
    """Replaces the file's [vpn] or [gateway]."""
    allow: tuple[str, ...] = ()
    """Added to the file's [gateway] allow."""
    services: tuple[tuple[str, str], ...] = ()
    publish: tuple[str, ...] = ()
    """Added to the file's [gateway] publish."""
    hosts: tuple[tuple[str, str], ...] = ()
    """Added to the file's [hosts]."""
    stdin: bool = False
    terminal: Terminal | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    """Each as written, by its name in `wgcell.cell.settings.Settings`: ``{"memory": "2GiB"}``."""
    idle: bool = False
    """Whether the job may do without a command: its cell then waits for sessions until it is
    stopped."""
    keywords: bool = False
    """Whether they are a program's keywords, and not a command line: an error names them so."""
