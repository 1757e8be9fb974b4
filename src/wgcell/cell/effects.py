"""The core's actions, executed: on the record, the guest's agent, and the cell's parts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

from wgcell.cell.core import actions as do
from wgcell.cell.events import EventLog
from wgcell.cell.launch import Launch
from wgcell.cell.orders import Answer
from wgcell.cell.outlets import Outlets
from wgcell.errors import StateError
from wgcell.guest import protocol
from wgcell.guest.config import GuestConfig, encode_config

__all__ = ["Effects"]


class Effects:
    """One cell's. ``wake`` and all that follow are the supervisor's part."""

    def __init__(
        self,
        log: EventLog,
        launch: Launch,
        outlets: Outlets,
        wake: Callable[[float], None],
        end: Callable[[do.EndMachine], None],
        record_failed: Callable[[StateError], None],
        unpack: Callable[[], None],
        resume: Callable[[], None],
        answer: Callable[[Answer], None],
    ) -> None:
        self.config: GuestConfig | None = None
        """The guest's configuration, but for the time."""
        self._log, self._launch, self._outlets = log, launch, outlets
        self._wake, self._end = wake, end
        self._record_failed, self._unpack, self._resume = record_failed, unpack, resume
        self._answer = answer
        self._agent: asyncio.StreamWriter | None = None

    def attach(self, agent: asyncio.StreamWriter) -> None:
        """This is the way to the guest's agent."""
        self._agent = agent

    def execute(self, action: do.Action) -> None:
        """Do it. Raises StateError if the record can't be written."""
        match action:
            case do.StateEntered(state, reason):
                self._enter(state.value, reason)
            case do.Log(event, fields):
                self._log.append(event, **fields)
            case do.LogBounded(event, fields):
                self._log.log_bounded(event, **fields)
            case do.SendGuest(line):
                self._send(line)
            case do.SendConfiguration():
                if self.config is not None:
                    self._send(encode_config(replace(self.config, time=time.time())))
            case do.SetGuestClock():
                self._send(protocol.clock(time.time()))
            case _:
                self._execute_on_parts(action)

    def _execute_on_parts(self, action: do.Action) -> None:
        match action:
            case do.Wake(at):
                self._wake(at)
            case do.EndMachine():
                self._end(action)
            case do.StartUnpacking():
                self._unpack()
            case do.ResumeMachine():
                self._resume()
            case do.SendGateway(order):
                if self._launch.gateway is not None:
                    self._launch.gateway.send(order)
            case do.AnswerOrder(answer):
                self._answer(answer)
            case do.GiveUpReader(stream):
                self._outlets.streams[stream].give_up()
            case do.FreeBootFiles():
                if self._launch.machine is not None:
                    self._launch.machine.booted()
            case do.ExpectOutputs(size, sha256):
                if self._outlets.arriving is not None:
                    self._outlets.arriving.state(size, sha256)

    def _enter(self, state: str, reason: str) -> None:
        try:
            self._log.append("state", state=state, **({"reason": reason} if reason else {}))
        except StateError as error:
            self._record_failed(error)

    def _send(self, line: bytes) -> None:
        """Nothing if the guest is gone."""
        if self._agent is not None:
            self._agent.write(line)
