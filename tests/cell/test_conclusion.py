"""The end of a cell: whatever fails in it, the rest is done, and nothing incomplete is `completed`.

The list of steps is the supervisor's own, so a new step is tested as soon as it is there. It also
needs a row in `FAULTS`: something of the host's that fails in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.support.supervisors import Finished, job, lived
from tests.support.waiting import forever

from wgcell.cell import changes, conclusion, outputs
from wgcell.cell.archive import Unpacked
from wgcell.cell.core import Core, Terms
from wgcell.cell.core import events as seen
from wgcell.cell.ending import EndStep, in_thread, run_all
from wgcell.cell.events import EventLog
from wgcell.cell.folder import CappedLog, Folder
from wgcell.cell.outputs import Landed
from wgcell.cell.states import EXIT_CODES, Cause, Outcome
from wgcell.cell.vouched import verify
from wgcell.errors import StateError
from wgcell.guest import protocol
from wgcell.vm.spec import Accelerator


@pytest.fixture
def cell(tmp_path: Path) -> Iterator[Finished]:
    one = Finished(tmp_path)
    yield one
    # What a test has kept from its own step.
    outlets = one.outlets
    logs = [outlets.console, outlets.diagnostics, *(s._log for s in outlets.streams.values())]
    for log in logs:
        if log is not None:
            log._file.close()
    with contextlib.suppress(OSError):
        os.fstat(one.log._fd)
        os.close(one.log._fd)


def test_an_end_without_a_failure_is_completed_and_does_every_step(cell: Finished) -> None:
    """The control: what the other tests see is their faults' doing."""
    result, raised = lived(cell)
    assert raised is None and result is not None
    assert (result["outcome"], result["exit_code"], result["failures"]) == ("completed", 0, [])
    assert cell.written == json.loads(json.dumps(result))
    assert (cell.machine.closed, cell.relay.quits, cell.relay.closed) == (1, 1, 1)
    assert (cell.gateway.quits, cell.group.removed) == (1, 1)
    assert not (cell.folder.path / "scratch.img").exists()
    told = [event["event"] for event in cell.events]
    assert told[-4:] == ["outputs", "rogue_frame", "records", "ended"]
    assert cell.events[-1]["outcome"] == "completed"
    assert verify(cell.folder).good


# Every step in turn, by its place in the supervisor's own list.

HOW = ["raises", "hangs", "hangs and ignores its end"]


def broken(step: EndStep, how: str) -> EndStep:
    async def hang() -> None:
        await forever()

    async def deaf() -> None:
        while True:
            try:
                await forever()
            except asyncio.CancelledError:
                if ended:
                    raise
                ended.append(None)

    ended: list[None] = []

    def fail() -> None:
        raise OSError(28, "No space left on device")

    if how == "raises":
        return replace(step, act=fail)
    return replace(step, act=hang if how == "hangs" else deaf, within=0.05)


STEPS = 22
"""How many there are: pytest wants it before there is a cell. `test_the_list_is_whole` holds it."""


def test_the_list_is_whole(cell: Finished) -> None:
    steps = [step.name for step in cell.steps()]
    assert len(steps) == STEPS and len(set(steps)) == STEPS
    assert set(FAULTS) == set(steps), "a step without a fault of its own"


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("place", range(STEPS))
def test_a_step_that_fails_is_no_success_and_skips_nothing(
    cell: Finished, place: int, how: str
) -> None:
    ran: list[str] = []

    def watched(step: EndStep) -> EndStep:
        async def act() -> None:
            ran.append(step.name)
            if (pending := step.act()) is not None:
                await pending

        return replace(step, act=act)

    def changed(steps: tuple[EndStep, ...]) -> tuple[EndStep, ...]:
        kept.extend(steps)
        steps = (*steps[:place], broken(steps[place], how), *steps[place + 1 :])
        return tuple(map(watched, steps))

    kept: list[EndStep] = []
    cell.changed = changed
    result, raised = lived(cell)
    assert ran == [step.name for step in kept]
    step = kept[place]
    if step.is_record:
        assert isinstance(raised, StateError) and step.name in str(raised)
    else:
        assert raised is None and result is not None
        assert (result["outcome"], result["exit_code"]) == ("error", 125)
        assert result["reason"].startswith(step.name)
    written = cell.written
    if written is not None:
        assert (written["outcome"], written["exit_code"]) == ("error", 125)
        assert written["failures"] and written["failures"][0].startswith(step.name)
    else:
        assert step.name == "result.json"
    ended = [event for event in cell.events if event["event"] == "ended"]
    assert all(event["outcome"] == "error" for event in ended) or step.name == "the events' end"
    assert ended or step.name == "the event of the end"


# A fault of the host's for each step, as it would come.


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


FULL = OSError(28, "No space left on device")
Fault = Callable[[Finished, pytest.MonkeyPatch], None]


def machine(fault: Callable[[Finished], None]) -> Fault:
    return lambda cell, patch: fault(cell)


def start_hangs(cell: Finished, patch: pytest.MonkeyPatch) -> None:
    live = cell.live

    async def deaf() -> None:
        await live()
        while True:
            try:
                await forever()
            except asyncio.CancelledError:
                if cell.written is not None:
                    raise

    cell.live = deaf  # type: ignore[method-assign]


def drain_hangs(cell: Finished, patch: pytest.MonkeyPatch) -> None:
    live = cell.live

    async def and_a_drain() -> None:
        await live()
        cell.tasks.drain(forever())

    cell.live = and_a_drain  # type: ignore[method-assign]


def stream_fails(cell: Finished, patch: pytest.MonkeyPatch) -> None:
    cell.folder.path.joinpath("x").touch()
    live = cell.live

    # The guest says nothing of an end, so that bytes may still come.
    cell.script = [seen.Caused(Cause.WORKLOAD_EXITED), seen.Caused(Cause.RESULTS_ARRIVED)]

    async def and_owes() -> None:
        await live()
        cell.outlets.streams["stdout"].over = raising(FULL)  # type: ignore[method-assign]

    cell.live = and_owes  # type: ignore[method-assign]


def unpacking_fails(cell: Finished, patch: pytest.MonkeyPatch) -> None:
    async def full(arriving: Any) -> Unpacked:
        raise StateError("outputs: No space left on device")

    cell.outlets.unpack = full  # type: ignore[method-assign]


def task_hangs(cell: Finished, patch: pytest.MonkeyPatch) -> None:
    live = cell.live

    async def deaf() -> None:
        while cell.written is None:
            with contextlib.suppress(asyncio.CancelledError):
                await forever()

    async def and_a_task() -> None:
        await live()
        cell.tasks.spawn(deaf(), "a task")

    cell.live = and_a_task  # type: ignore[method-assign]


def append_fails(event: str) -> Fault:
    def fault(cell: Finished, patch: pytest.MonkeyPatch) -> None:
        append = cell.log.append

        def full(name: str, **fields: Any) -> None:
            if name == event:
                raise StateError("events.jsonl: No space left on device")
            append(name, **fields)

        cell.log.append = full  # type: ignore[method-assign]

    return fault


def undeletable(cell: Finished, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Folder, "discard", lambda *_: None)


def console_fails(cell: Finished, patch: pytest.MonkeyPatch) -> None:
    close = CappedLog.close

    def full(log: CappedLog) -> None:
        close(log)
        if log is cell.outlets.console:
            raise FULL

    patch.setattr(CappedLog, "close", full)


def last_cause(cell: Finished, patch: pytest.MonkeyPatch) -> None:
    quits = cell.relay.quit

    async def and_a_fault() -> int:
        cell.post(seen.Caused(Cause.HOST_FAULTED, "console.log: No space left on device"))
        return await quits()

    cell.relay.quit = and_a_fault  # type: ignore[method-assign]


def unreadable(cell: Finished, patch: pytest.MonkeyPatch) -> None:
    found = conclusion.record_digests
    broken = {"stdout.log": {"error": "Input/output error"}}
    patch.setattr(
        conclusion,
        "record_digests",
        lambda path: {**found(path), "files": {**found(path)["files"], **broken}},
    )


def lands(cell: Finished, land: Callable[[Any], Landed]) -> None:
    async def landed(came: Any) -> Landed:
        return land(came)

    object.__setattr__(cell.host, "land", landed)


def landing_fails(cell: Finished, patch: pytest.MonkeyPatch) -> None:
    lands(cell, raising(StateError("can't write /home/me: No space left on device")))


def no_result(cell: Finished, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Folder, "write", raising(StateError("result.json: No space left on device")))


def events_close_fails(cell: Finished, patch: pytest.MonkeyPatch) -> None:
    close = EventLog.close

    def full(log: EventLog) -> None:
        close(log)
        raise FULL

    patch.setattr(EventLog, "close", full)


FAULTS: dict[str, Fault] = {
    "the cell's start": start_hangs,
    "the machine's end": machine(lambda cell: setattr(cell.machine, "immortal", True)),
    "the machine's monitor": machine(lambda cell: setattr(cell.machine, "close", forever)),
    "the machine's cgroup": machine(lambda cell: setattr(cell.group, "remove", raising(FULL))),
    "the relay's end": machine(lambda cell: setattr(cell.relay, "code", -9)),
    "the machine's last words": drain_hangs,
    "what the workload wrote": stream_fails,
    "the outputs": unpacking_fails,
    "the gateway's end": machine(lambda cell: setattr(cell.gateway, "code", -9)),
    "the cell's tasks": task_hangs,
    "the disks": undeletable,
    "the logs": console_fails,
    "the descriptors": machine(lambda cell: setattr(cell.relay, "close", raising(FULL))),
    "what was reported last": last_cause,
    "the record of the outputs": append_fails("outputs"),
    "the rogue frames": append_fails("rogue_frame"),
    "the files' digests": unreadable,
    "the landing of the outputs": landing_fails,
    "result.json": no_result,
    "the record of the digests": append_fails("records"),
    "the event of the end": append_fails("ended"),
    "the events' end": events_close_fails,
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_fails_on_the_host_at_the_end_is_no_success(
    cell: Finished, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    FAULTS[name](cell, monkeypatch)
    cell.changed = lambda steps: tuple(
        replace(step, within=0.05) if step.name in (name, "the cell's tasks") else step
        for step in steps
    )
    result, raised = lived(cell)
    if raised is not None:
        assert isinstance(raised, StateError)
    else:
        assert result is not None and (result["outcome"], result["exit_code"]) == ("error", 125)
    written = cell.written
    assert written is None or written["outcome"] == "error"
    assert cell.machine.kills and cell.relay.quits == 1 and cell.gateway.quits == 1


def test_a_failure_takes_no_other_outcome_s_place(cell: Finished) -> None:
    """Why the cell had to end is what counts; that its end failed is told beside it."""
    cell.script = [seen.Caused(Cause.ROGUE_FRAME, "a frame")]
    cell.relay.code = -9
    result, _ = lived(cell)
    assert result is not None and result["outcome"] == Outcome.ROGUE.value
    assert result["failures"] == ["the relay's end: it did not end in order (killed by signal 9)"]
    assert cell.events[-1]["failures"] == result["failures"]


# The landing of the outputs, the last step that can go wrong before the result is written: what it
# comes to is in the result, in the record and in the exit code alike.


def landing(cell: Finished, here: Path, force: bool = False) -> Callable[[Any], Landed]:
    """The real one, of one file, to ``here``."""
    object.__setattr__(cell.job, "landing", SimpleNamespace(folder=here))
    made = cell.folder.path / "outputs/results"
    made.mkdir(parents=True)
    (made / "a").write_text("A")
    return lambda came: outputs.land(cell.folder.path / "outputs", here, force, ["results"])


def no_room(patch: pytest.MonkeyPatch, here: Path) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise FULL

    patch.setattr(changes, "_move", full)


def unsynced(patch: pytest.MonkeyPatch, here: Path) -> None:
    """The disk took the bytes, and could not keep them."""
    patch.setattr(changes, "_libc", SimpleNamespace(syncfs=lambda fd: -1))


WAYS: dict[str, tuple[Callable[[pytest.MonkeyPatch, Path], object], str, str]] = {
    # What happens, the outcome, and what its reason names.
    "nothing": (lambda patch, here: None, "completed", ""),
    "no room": (no_room, "error", "No space left on device"),
    "a disk that fails": (unsynced, "error", "can't write"),
    "a folder that became a file": (lambda patch, here: here.write_text("mine"), "error", "File"),
    "a file that has appeared": (
        lambda patch, here: (
            (here / "results").mkdir(parents=True) or (here / "results/a").write_text("mine")
        ),
        "incomplete",
        "is there already",
    ),
    "a link that has appeared": (
        lambda patch, here: here.mkdir() or (here / "results").symlink_to("/"),
        "incomplete",
        "below a link",
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_landing_that_fails_is_in_the_result_and_in_the_exit_code(
    cell: Finished, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    happens, outcome, words = WAYS[way]
    here = tmp_path / "here"
    lands(cell, landing(cell, here))
    happens(monkeypatch, here)
    result, raised = lived(cell)
    assert raised is None and result is not None
    code = EXIT_CODES.get(Outcome(outcome), 0)
    assert (result["outcome"], result["exit_code"]) == (outcome, code)
    assert words in result["reason"]
    assert cell.written == json.loads(json.dumps(result))
    assert cell.folder.status() == outcome
    assert (cell.events[-1]["outcome"], cell.events[-1]["exit_code"]) == (outcome, code)
    assert verify(cell.folder).good
    assert (here / "results/a").exists() or (cell.folder.path / "outputs/results/a").exists()


@pytest.mark.parametrize(
    ("before", "own", "interrupted", "after", "code"),
    [
        (None, 0, False, "incomplete", 118),
        (None, 3, False, "incomplete", 3),
        (None, 0, True, "cancelled", 130),
        (Cause.ROGUE_FRAME, 0, False, "rogue", 120),
        (Cause.HOST_FAULTED, 0, True, "error", 125),
    ],
)
def test_what_stays_behind_replaces_no_graver_outcome(
    cell: Finished, before: Cause | None, own: int, interrupted: bool, after: str, code: int
) -> None:
    cell.script[0] = seen.FromGuest(protocol.Exited(own, 0, 0))
    if before is not None:
        cell.script[1] = seen.Caused(before, "something graver")
    lands(cell, lambda came: Landed("some stay", False, interrupted=interrupted))
    result, _ = lived(cell)
    assert result is not None and (result["outcome"], result["exit_code"]) == (after, code)
    landed = next(event for event in cell.events if event["event"] == "landed")
    assert (landed["whole"], landed["sentence"]) == (False, "some stay")


def test_a_landing_may_take_its_time_and_is_told_what_came(cell: Finished) -> None:
    """A person is asked: no bound of a step cuts that short."""
    given: list[Any] = []
    lands(cell, lambda came: given.append(came) or Landed("all is home", True, 1))  # type: ignore[func-returns-value]
    (step,) = [one for one in cell.steps() if one.name == "the landing of the outputs"]
    assert step.within == float("inf")
    result, _ = lived(cell)
    assert result is not None and result["outcome"] == "completed"
    assert given[0]["complete"] is True


def test_nothing_lands_of_a_cell_whose_record_or_supervisor_failed(tmp_path: Path) -> None:
    for number, how in enumerate(("cancelled", "no record", "the control")):
        (tmp_path / str(number)).mkdir()
        cell = Finished(tmp_path / str(number))
        given: list[Any] = []
        lands(cell, lambda came, given=given: given.append(came) or Landed("home", True))  # type: ignore[misc]
        live = cell.live

        async def failing(cell: Finished = cell, how: str = how, live: Any = live) -> None:
            await live()
            if how == "no record":
                cell.dispatcher.record_failed(StateError("No space left on device"))

        cell.live = failing  # type: ignore[method-assign]

        async def body(cell: Finished = cell, how: str = how) -> None:
            running = asyncio.create_task(cell.run())
            if how == "cancelled":
                await asyncio.sleep(0)
                running.cancel()
            await asyncio.gather(running, return_exceptions=True)

        asyncio.run(body())
        assert bool(given) == (how == "the control"), how
        for log in (cell.outlets.console, cell.outlets.diagnostics):
            if log is not None:
                log.close()


@pytest.mark.parametrize("released", [True, False])
@pytest.mark.parametrize("before", list(Outcome))
def test_a_rogue_frame_that_is_heard_of_behind_the_machines_death_is_rogue(
    before: Outcome, released: bool
) -> None:
    """The kill switch is quicker than words: what a dead machine still owes may be seen to be lost
    before the relay has said why it is dead."""
    core = Core(Terms.of(job(), Accelerator.KVM), 0.0)
    core.handle(seen.Crashed("it has ended"), 1.0)
    core.outcome = before
    core.phases = {"booting": 1.0, **({"running": 2.0} if released else {})}
    core.handle(seen.Caused(Cause.ROGUE_FRAME, "a frame"), 3.0)
    if released and before not in (Outcome.UNVERIFIED, Outcome.TUNNEL_LOST):
        assert core.outcome is Outcome.ROGUE
    else:
        assert core.outcome is not Outcome.ROGUE or before is Outcome.ROGUE


def test_what_was_only_counted_is_told_before_the_end(cell: Finished) -> None:
    cell.log._unlogged["handshake"] = 3
    lived(cell)
    assert [event["event"] for event in cell.events][-2:] == ["unlogged", "ended"]
    assert verify(cell.folder).good


def test_a_result_that_can_not_be_corrected_does_not_stand(
    cell: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, count = Folder.write, [0]

    def once(folder: Folder, name: str, content: Any) -> None:
        count[0] += 1
        if count[0] > 1:
            raise StateError("result.json: No space left on device")
        write(folder, name, content)

    append_fails("ended")(cell, monkeypatch)
    monkeypatch.setattr(Folder, "write", once)
    _, raised = lived(cell)
    assert isinstance(raised, StateError) and cell.written is None


def test_all_steps_run_though_we_are_cancelled_meanwhile() -> None:
    ran: list[str] = []
    failed: list[str] = []

    async def body() -> None:
        begun = asyncio.Event()
        goes_on = asyncio.Event()

        async def first() -> None:
            begun.set()
            await goes_on.wait()
            ran.append("first")

        steps = (EndStep("first", first), EndStep("second", lambda: ran.append("second")))
        work = asyncio.create_task(run_all(steps, lambda step, error: failed.append(step.name)))
        await begun.wait()
        work.cancel()
        asyncio.get_running_loop().call_soon(goes_on.set)
        with pytest.raises(asyncio.CancelledError):
            await work

    asyncio.run(body())
    assert (ran, failed) == (["first", "second"], [])


def test_a_thread_that_hangs_does_not_keep_the_loop_from_ending() -> None:
    read, write = os.pipe()

    def blocked() -> None:
        os.read(read, 1)

    async def body() -> None:
        steps = (EndStep("hangs", lambda: in_thread(blocked), 0.05),)
        failed: list[str] = []
        await run_all(steps, lambda step, error: failed.append(step.name))
        assert failed == ["hangs"]

    try:
        asyncio.run(body())
    finally:
        os.close(write)
