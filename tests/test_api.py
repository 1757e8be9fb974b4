"""`wgcell.api`: a cell is put together in one place, and nothing starts before it is asked to."""

from __future__ import annotations

import ast
import asyncio
import fcntl
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.support.vpnfiles import vpn_file
from tests.support.waiting import GENEROUS

import wgcell
from wgcell import api
from wgcell.cell.folder import Folder
from wgcell.cell.host import HostContext
from wgcell.cell.job import Job, JobOptions
from wgcell.cell.outputs import Landed
from wgcell.cell.provider import GatewayEngine, Provider
from wgcell.cell.states import Outcome
from wgcell.errors import EndpointError, HostError, ImageError, InputFileError, JobError, StateError
from wgcell.image import store
from wgcell.vm.spec import Accelerator

SOURCES = Path(wgcell.__file__).parent
BENCH = SOURCES.parent.parent / "bench"


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{one.name}" for one in node.names)


def test_nobody_else_puts_a_cell_together() -> None:
    """Imports that only run later count too; import-linter does not look into bench."""
    found = {
        path
        for path in (*SOURCES.rglob("*.py"), *BENCH.glob("*.py"))
        if any("cell.supervisor" in name for name in imported(path))
    }
    assert found == {SOURCES / "api.py"}


def options(**more: Any) -> JobOptions:
    return JobOptions(command=("true",), **more)


@pytest.fixture
def image(tmp_path: Path) -> store.Image:
    return store.Image("debian", tmp_path / "image", {})


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, image: store.Image) -> list[str]:
    """A machine with an image and no KVM; what the image was made for, and why."""
    made: list[str] = []
    monkeypatch.setattr(api.store, "load", lambda name: image)
    monkeypatch.setattr(api.store, "exists", lambda name: True)
    monkeypatch.setattr(api, "is_current", lambda image, scripts: True)
    monkeypatch.setattr(
        api, "platform", lambda image: api.Platform(image, Accelerator.TCG, "/dev/kvm is not there")
    )
    return made


def test_a_job_is_read_within_the_providers_limits(tmp_path: Path) -> None:
    provider = Provider(ceilings={"cpus": 1, "timeout": 60.0}, resolver=("192.0.2.53",))
    job = api.read_job(options(), cells=tmp_path, provider=provider, learn=True)
    assert (job.timeout, job.gateway and (job.gateway.learn, job.gateway.resolver)) == (
        60.0,
        (True, ("192.0.2.53",)),
    )
    with pytest.raises(JobError, match=r"ceilings\.timeout"):
        api.read_job(options(settings={"timeout": "2m"}), cells=tmp_path, provider=provider)
    vpn = options(vpn=tmp_path / "x.conf")
    with pytest.raises(JobError, match="--learn"):
        api.read_job(vpn, cells=tmp_path, provider=provider, learn=True)
    file = tmp_path / "job.toml"
    file.write_text("policy.on_rogue = 'freeze'")
    with pytest.raises(JobError, match="which a job file may not say here"):
        api.read_job(options(), file, cells=tmp_path, provider=Provider())


def job(tmp_path: Path, **more: Any) -> Job:
    return api.read_job(options(**more), cells=tmp_path, provider=Provider())


def test_a_plan_has_what_the_provider_says(tmp_path: Path, here: list[str]) -> None:
    provider = Provider(require_walls=True, gateway_engine=GatewayEngine.EMBEDDED)
    plan = api.plan(job(tmp_path), provider=provider)
    assert (plan.require_walls, plan.gateway_engine) == (True, GatewayEngine.EMBEDDED)
    assert (plan.tunnel, plan.addresses, plan.vet_again) == (None, (), None)
    assert plan.platform.accelerator is Accelerator.TCG


def test_emulation_is_the_providers_word(tmp_path: Path, here: list[str]) -> None:
    with pytest.raises(HostError, match="does not allow emulation") as caught:
        api.plan(job(tmp_path), provider=Provider(allow_emulation=False))
    assert "virtualisation" in caught.value.hint and "config.toml" in caught.value.hint


@pytest.mark.parametrize(
    ("exists", "current", "why"),
    [(False, True, "not built yet"), (True, False, "another version's"), (True, True, "")],
)
def test_the_stock_image_is_made_where_it_is_missing_or_old(
    tmp_path: Path,
    here: list[str],
    image: store.Image,
    monkeypatch: pytest.MonkeyPatch,
    exists: bool,
    current: bool,
    why: str,
) -> None:
    monkeypatch.setattr(api.store, "exists", lambda name: exists)
    monkeypatch.setattr(api, "is_current", lambda image, scripts: current)

    def make(name: str, because: str) -> store.Image:
        here.append(f"{name}: {because}")
        return image

    api.plan(job(tmp_path), provider=Provider(), make=make)
    assert (why in here[0] and here[0].startswith("debian: ")) if why else not here
    here.clear()
    if exists:  # any other image is the provider's own
        api.plan(job(tmp_path, settings={"image": "own"}), provider=Provider(), make=make)
        assert not here


def test_what_is_missing_is_seen_before_anything_starts(
    tmp_path: Path, here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputFileError):
        api.plan(job(tmp_path, inputs=(tmp_path / "none",)), provider=Provider())
    there = tmp_path / "out"
    there.write_text("")
    with pytest.raises(JobError, match="is not a folder"):
        api.plan(job(tmp_path, outputs=("x",), output_dir=there), provider=Provider())

    def missing(name: str) -> store.Image:
        raise ImageError(f"no image {name}")

    monkeypatch.setattr(api.store, "load", missing)
    with pytest.raises(ImageError):
        api.plan(job(tmp_path), provider=Provider())


def test_an_endpoint_is_vetted_at_the_start_and_whenever_it_is_renewed(
    tmp_path: Path, here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.conf").write_text(vpn_file())
    private = job(tmp_path, vpn=tmp_path / "x.conf")
    monkeypatch.setattr(api.endpoint, "host_networks", lambda: ())
    with pytest.raises(EndpointError, match=r"192\.168\.1\.9"):
        api.plan(private, provider=Provider())
    with pytest.raises(EndpointError, match="--allow-endpoint"):
        api.plan(private, provider=Provider(), allow_endpoints=("lan",))
    plan = api.plan(private, provider=Provider(), allow_endpoints=("192.168.1.0/24",))
    assert [str(one) for one in plan.addresses] == ["192.168.1.9"]
    assert plan.vet_again is not None and plan.vet_again() == plan.addresses
    monkeypatch.setattr(
        api.endpoint, "resolve", lambda host, port: [api.endpoint.addresses.address("10.0.0.1")]
    )
    with pytest.raises(EndpointError):
        plan.vet_again()


@pytest.fixture
def plan(tmp_path: Path, image: store.Image) -> api.Plan:
    return api.Plan(job(tmp_path), api.Platform(image, Accelerator.TCG, ""))


def test_a_cell_has_its_folder_and_lock_from_the_beginning_to_its_end(
    tmp_path: Path, plan: api.Plan
) -> None:
    with api.Cell(plan, tmp_path) as cell:
        assert cell.folder.alive and cell.id.startswith("true-")
        assert json.loads((cell.folder.path / "job.json").read_text())["command"] == ["true"]
    assert not Folder(cell.folder.path).alive
    cell.close()  # again: nothing
    cell.cancel("nobody is there")
    cell.abort("nobody is there")


def test_a_cell_whose_job_cannot_be_written_keeps_no_lock(
    tmp_path: Path, plan: api.Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Folder, name: str, value: object) -> None:
        raise StateError("no space left on device")

    monkeypatch.setattr(Folder, "write", full)
    with pytest.raises(StateError):
        api.Cell(plan, tmp_path)
    lock = next(tmp_path.glob("true-*/lock"))
    with lock.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError if it is still held


def test_where_outputs_come_home_to(
    tmp_path: Path, plan: api.Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    whole = api.Arrived(complete=True)
    wanted = job(tmp_path, outputs=("x",), output_dir=home)
    with api.Cell(replace(plan, job=wanted), tmp_path) as cell:
        assert not cell.land(whole).whole  # nothing came
        (cell.folder.path / "outputs").mkdir()
        (cell.folder.path / "outputs/x").write_text("1")
        assert not cell.land(api.Arrived()).whole and not (home / "x").exists()
        assert cell.land(whole).whole and (home / "x").read_text() == "1"
        (cell.folder.path / "outputs").mkdir(exist_ok=True)
        (cell.folder.path / "outputs/x").write_text("2")
        assert not cell.land(whole).whole and (home / "x").read_text() == "1"
        cell.plan = replace(cell.plan, force=True)
        assert cell.land(whole).whole and (home / "x").read_text() == "2"


def test_a_landing_does_not_hold_up_the_callers_loop(
    tmp_path: Path, plan: api.Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop goes on while outputs are copied: here the landing waits for a task of the loop."""
    heard = threading.Event()
    landed: list[Landed] = []

    class Stub:
        def __init__(self, job: Job, host: HostContext, **_: object) -> None:
            self.land = host.land

        async def run(self) -> SimpleNamespace:
            assert self.land is not None
            other = asyncio.create_task(asyncio.sleep(0))
            other.add_done_callback(lambda _: heard.set())
            landed.append(await self.land({"complete": True}))
            record = {"outcome": "completed", "exit_code": 0, "reason": "", "relay": {}}
            return SimpleNamespace(as_json=lambda: record)

    def land(arrived: api.Arrived) -> Landed:
        return Landed("all is there", heard.wait(GENEROUS))

    monkeypatch.setattr("wgcell.cell.supervisor.Supervisor", Stub)
    with api.Cell(plan, tmp_path) as cell:
        monkeypatch.setattr(cell, "land", land)
        asyncio.run(asyncio.wait_for(cell.run(), 2 * GENEROUS))
    assert landed == [Landed("all is there", True)]


def test_outputs_stay_where_nobody_asked_for_them_or_nobody_looked_before(
    tmp_path: Path, plan: api.Plan
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "mine").write_text("")
    for wanted in (plan.job, job(tmp_path, sync=home)):
        with api.Cell(replace(plan, job=wanted), tmp_path) as cell:
            (cell.folder.path / "outputs").mkdir()
            (cell.folder.path / "outputs/x").write_text("1")
            landed = cell.land(api.Arrived(complete=True), agree=lambda summary: True)
            assert landed.whole and str(cell.folder.path) in landed.sentence
    assert [one.name for one in home.iterdir()] == ["mine"]


def test_a_result_is_read_off_its_record() -> None:
    record = {"outcome": "rogue", "exit_code": 120, "reason": "a frame", "relay": {}}
    result = api.Result.of(record | {"relay": {"refused": {"arp": 2}}})
    assert (result.outcome, result.exit_code, result.reason) == (Outcome.ROGUE, 120, "a frame")
    assert result.refused == {"arp": 2}
    assert api.Result.of(record).refused == {} == api.Result.of(record | {"relay": None}).refused
