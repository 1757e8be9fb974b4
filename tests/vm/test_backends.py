"""A new machine backend needs its folder and its line in `backends.BACKENDS`, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from wgcell import api
from wgcell.cli import checks
from wgcell.image.store import Image
from wgcell.vm import backends
from wgcell.vm.machine import Backend, Machine
from wgcell.vm.spec import Accelerator


class Another:
    """A backend that this machine has all programs for, or not."""

    def __init__(self, program: str) -> None:
        self._program = program
        self.probed: list[Path] = []

    @property
    def programs(self) -> Mapping[str, str]:
        return {"true": "coreutils", self._program: "another-package"}

    def probe(self, kernel: Path, cache: Path) -> tuple[Accelerator, str]:
        self.probed.append(kernel)
        return Accelerator.KVM, ""

    def device(self, accelerator: Accelerator) -> Path | None:
        return None

    async def start(self, *arguments: object) -> Machine:
        raise NotImplementedError


def test_the_first_whose_programs_are_here_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    here, absent = Another("true"), Another("no-such-program")

    def with_lines(*made: Backend) -> Backend:
        lines = {str(number): lambda one=one: one for number, one in enumerate(made)}
        monkeypatch.setattr(backends, "BACKENDS", MappingProxyType(lines))
        return backends.default()

    assert with_lines(here, absent) is here
    assert with_lines(absent, here) is here
    assert with_lines(absent, absent) is absent  # whoever asks it is told what is missing


def test_a_line_is_enough_for_whoever_asks_about_machines(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    another = Another("true")
    monkeypatch.setattr(backends, "BACKENDS", {"another": lambda: another})
    image = Image("debian", tmp_path, {})
    assert api.platform(image) == api.Platform(image, Accelerator.KVM, "")
    assert another.probed == [image.kernel]
    monkeypatch.setattr(checks.store, "load", lambda name: image)
    assert checks._kvm() == checks.Finding("KVM", True, "boots a guest")
    assert len(another.probed) == 2


def test_the_doctor_names_the_program_and_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "BACKENDS", {"another": lambda: Another("no-such-program")})
    fix = "apt-get install another-package"
    assert checks._machine() == checks.Finding("no-such-program", False, "not found", fix)


@pytest.mark.parametrize("name", backends.BACKENDS)
def test_each_has_programs(name: str) -> None:
    assert all(backends.BACKENDS[name]().programs.items())
