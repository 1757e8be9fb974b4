"""The steps of a cell's end, in order: the machine's end first, the record's last.

Each step but the landing, where a person may be asked, has a bound, and runs whether or not those
before it failed (`wgcell.cell.ending`). A step that fails makes `completed` an `error`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import math
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Required, TypedDict

from wgcell.cell import outputs
from wgcell.cell.core import Core
from wgcell.cell.core.events import Event, LandingEnded, RecordClosed, StepFailed
from wgcell.cell.core.results import LAST_BYTES
from wgcell.cell.disks import FILES
from wgcell.cell.ending import EndStep, in_thread, words
from wgcell.cell.events import EventLog
from wgcell.cell.host import HostContext
from wgcell.cell.job import Job
from wgcell.cell.launch import Launch
from wgcell.cell.outlets import UNPACKED_WITHIN, Outlets
from wgcell.cell.result import FILE, CellResult
from wgcell.cell.states import Outcome
from wgcell.cell.tasks import Tasks
from wgcell.cell.vouched import Records, file_digest, record_digests
from wgcell.errors import GuestError, StateError
from wgcell.relay import evidence

__all__ = ["Conclusion"]


class _Came(TypedDict, total=False):
    """The fields of the event ``outputs``. Without ``reason`` it has all but `walls_missing`."""

    complete: Required[bool]
    reason: str
    files: int
    bytes: int
    verdict: str | None
    missing: list[str]
    refused: list[str]
    refused_count: int
    left_out: list[str]
    walls_missing: Mapping[str, str]


DIGESTED_AT_LEAST = 20 << 20
"""Bytes a second of the outputs that a disk lets us read, at the least."""


class Conclusion:
    """One cell's end. ``kill`` kills a machine and waits until it is dead."""

    def __init__(
        self,
        job: Job,
        host: HostContext,
        core: Core,
        log: EventLog,
        launch: Launch,
        outlets: Outlets,
        tasks: Tasks,
        feed: Callable[[Event], None],
        kill: Callable[[], Awaitable[None]],
    ) -> None:
        self.starting: asyncio.Task[None] | None = None
        self.following_relay: asyncio.Task[None] | None = None
        self.unrecorded: StateError | None = None
        """Why nobody can read in the record how the cell ended."""
        self._job, self._host, self._core, self._log = job, host, core, log
        self._launch, self._outlets, self._tasks = launch, outlets, tasks
        self._feed, self._kill = feed, kill
        self._came: _Came | None = None
        self._records: Records = {"files": {}, "outputs": None}
        self._written = False

    def steps(self) -> tuple[EndStep, ...]:
        """Every step, in order."""
        digested = 600 + self._job.disk / DIGESTED_AT_LEAST
        return (
            EndStep("the cell's start", self._end_start),
            EndStep("the machine's end", self._kill),
            EndStep("the machine's monitor", self._launch.close_machine),
            EndStep("the machine's cgroup", self._launch.remove_cgroup),
            EndStep("the relay's end", self._end_relay),
            EndStep("the machine's last words", self._end_drains),
            EndStep("what the workload wrote", self._end_streams),
            EndStep("the outputs", self._end_outputs, 2 * UNPACKED_WITHIN),
            EndStep("the gateway's end", self._end_gateway),
            EndStep("the cell's tasks", self._tasks.end),
            EndStep("the disks", self._end_disks),
            EndStep("the logs", self._outlets.close_logs),
            EndStep("the descriptors", self._end_descriptors),
            EndStep("what was reported last", self._end_causes),
            EndStep("the record of the outputs", self._record_outputs),
            EndStep("the rogue frames", self._record_frames),
            EndStep("the files' digests", self._end_digests, digested),
            # A person may be asked, and a signal ends it: there is no bound.
            EndStep("the landing of the outputs", self._land, math.inf),
            EndStep(FILE, self._record_result, is_record=True),
            EndStep("the record of the digests", self._record_digests),
            EndStep("the event of the end", self._record_end, is_record=True),
            EndStep("the events' end", self._log.close),
        )

    def failed(self, step: EndStep, error: BaseException) -> None:
        """A step failed: whatever the guest said, this cell was not completed."""
        self._core.handle(StepFailed(step.name, words(error)), time.monotonic())
        if self._written:
            # It says otherwise by now. If it can't be written anew, it must not stand.
            try:
                self.result().write(self._host.folder)
            except StateError:
                self._host.folder.discard(FILE)
        if step.is_record:
            why = error if isinstance(error, StateError) else None
            self.unrecorded = self.unrecorded or why or StateError(self._core.failures[-1])

    def result(self) -> CellResult:
        """How the cell ended, as far as it is known."""
        core, host = self._core, self._host
        return CellResult(
            cell=host.folder.id,
            outcome=core.outcome or Outcome.ERROR,
            reason=core.reason,
            failures=tuple(core.failures),
            workload_exit_code=core.exit_code,
            accelerator=host.accelerator,
            phases=dict(core.phases),
            relay=core.stats,
            killed_after=core.killed_after,
            guest_drops=core.drops,
            flows=dict(core.flows.counts),
            image=host.image.name,
            limits=self._launch.limits,
            host_walls=self._launch.walls(),
            guest_walls=self._job.guest_walls,
            gateway=host.vpn is None,
        )

    def write_evidence(self) -> None:
        """Write the rogue frames, if there are any. Raises StateError."""
        if self._core.frames:
            self._host.folder.write_bytes("rogue.pcapng", evidence.pcapng(self._core.frames))

    # The processes.

    async def _end_start(self) -> None:
        if self._launch.machine is not None:
            self._launch.machine.kill()  # before anything is waited for
        if self.starting is not None:
            # A machine that is just being started must be known, or dead, before anyone waits.
            self.starting.cancel()
            await asyncio.gather(self.starting, return_exceptions=True)

    async def _end_relay(self) -> None:
        await self._launch.quit("relay")
        if self.following_relay is not None:
            await self.following_relay  # to its last line

    async def _end_gateway(self) -> None:
        await self._launch.quit("gateway")

    async def _end_drains(self) -> None:
        if self._tasks.drains:
            await asyncio.wait(self._tasks.drains)

    # What came out of the machine.

    async def _end_streams(self) -> None:
        self._core.results.look(self._outlets.look())
        for name, stream in self._outlets.streams.items():
            # What was still on its way, for a reader that reads.
            if not (self._core.results.streams[name].arrived or await stream.over(LAST_BYTES)):
                self._log.append("reader_stopped", stream=name, delivered=stream.delivered)

    async def _end_outputs(self) -> None:
        came = self._came = await self._outputs()
        if self._core.outcome is Outcome.COMPLETED and came is not None and not came["complete"]:
            raise GuestError(came.get("reason") or "they did not come whole")

    async def _outputs(self) -> _Came | None:
        """The unpacking's result, for the record; None if no outputs were asked for."""
        if self._outlets.arriving is None:
            return None
        if self._outlets.unpacking is None:
            return {"complete": False, "reason": "no outputs came: the workload had not ended"}
        try:
            unpacked = await asyncio.wait_for(self._outlets.unpacking, UNPACKED_WITHIN)
        except Exception as error:  # it may not cost the result
            return {"complete": False, "reason": str(error) or "their unpacking did not end"}
        without = self._outlets.walls_missing
        came: _Came = {
            "files": unpacked.files,
            "bytes": unpacked.bytes,
            "verdict": outputs.verdict(unpacked, self._job.outputs),
            "missing": list(unpacked.missing),
            "refused": [str(counted) for counted in unpacked.refusals],
            "refused_count": unpacked.refused,
            "left_out": [str(counted) for counted in unpacked.left_out],
            "complete": unpacked.complete,
        }
        if without:
            came["walls_missing"] = without
        return came

    # What is left on this host.

    def _end_disks(self) -> None:
        folder = self._host.folder
        for name in FILES:
            folder.discard(name)
            if os.path.lexists(folder.path / name):
                raise StateError(f"{folder.path / name} can't be deleted")

    async def _end_descriptors(self) -> None:
        try:
            await self._launch.stack.aclose()
        finally:
            self._outlets.close_port()

    def _end_causes(self) -> None:
        """From here on nothing that is heard changes the outcome."""
        self._feed(RecordClosed())

    # The record.

    def _record_outputs(self) -> None:
        if self._came is not None:
            self._log.append("outputs", **self._came)

    def _record_frames(self) -> None:
        with contextlib.ExitStack() as evidence_too:
            evidence_too.callback(self.write_evidence)
            for frame in self._core.frames:
                shown = base64.b64encode(frame.data).decode("ascii")
                self._log.append("rogue_frame", at=frame.time, comment=frame.comment, frame=shown)

    async def _end_digests(self) -> None:
        path = self._host.folder.path
        records = self._records = await in_thread(lambda: record_digests(path))
        if records["outputs"] is not None and self._job.landing is not None:
            records["outputs"]["leave_for"] = str(self._job.landing.folder)
        unread = [name for name, file in records["files"].items() if "error" in file]
        if unread or "error" in (records["outputs"] or {}):
            raise StateError(f"can't be read: {', '.join(unread) or 'the outputs'}")

    async def _land(self) -> None:
        """The last thing that can go wrong before the result is written."""
        if self._host.land is None or not self._job.outputs or self._core.crashed:
            return  # outputs without a readable record stay in the cell's folder
        landed = await self._host.land(self._came or {})
        self._feed(LandingEnded(landed.whole, landed.files, landed.interrupted, landed.sentence))

    def _record_result(self) -> None:
        self.result().write(self._host.folder)
        self._written = True

    def _record_digests(self) -> None:
        records = self._records
        with contextlib.suppress(FileNotFoundError):  # then that is a failure by itself
            records["files"][FILE] = file_digest(self._host.folder.path / FILE)
        self._log.append("records", **records)

    def _record_end(self) -> None:
        self._log.append_unlogged()  # the end is the last line
        result = self.result()
        failures = {"failures": self._core.failures} if self._core.failures else {}
        self._log.append(
            "ended",
            outcome=result.outcome.value,
            exit_code=result.exit_code,
            reason=result.reason,
            **failures,
        )
