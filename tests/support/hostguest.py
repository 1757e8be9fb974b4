"""A guest whose sessions are this machine's own programs, in a folder that stands for /work."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from pathlib import Path

from tests.support.programs import FakeGuest, Program

from wgcell.guest.frames import (
    STDERR,
    STDOUT,
    Command,
    Exit,
    Frame,
    Open,
    Opened,
    Pack,
    SessionRefused,
)
from wgcell.guest.frames import Signal as SignalFrame

__all__ = ["HostGuest"]


class HostGuest(FakeGuest):
    """The guest's end of ``port``; ``work`` is its /work. Needs a running loop."""

    def __init__(self, port: socket.socket, work: Path) -> None:
        self._work = work
        super().__init__(port)

    def _hear(self, frame: Frame) -> None:
        if isinstance(frame, Open):
            self.opened.append(frame)
            program = self.programs[frame.session] = Program(self, frame.session, frame.subject)
            self._spawn(self._carry(program))
        elif isinstance(frame, SignalFrame):
            program = self.programs[frame.session]
            program.heard.append(frame)
            program.news.put_nowait(frame)
        else:
            super()._hear(frame)

    def _argv(self, program: Program) -> tuple[str, ...]:
        subject = program.subject
        if isinstance(subject, Command):
            return subject.argv
        assert hasattr(subject, "path")
        path = Path(subject.path)
        if isinstance(subject, Pack):
            return ("tar", "--format=gnu", "-C", str(path.parent), "-cf", "-", f"./{path.name}")
        return ("tar", "-C", str(path), "-xpf", "-")

    async def _carry(self, program: Program) -> None:
        subject, variables = program.subject, dict(os.environ)
        if isinstance(subject, Command):
            variables |= dict(subject.env)
        folder = self._work / getattr(subject, "folder", "")
        try:
            child = await asyncio.create_subprocess_exec(
                *self._argv(program),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                cwd=folder,
                env=variables,
                start_new_session=True,
            )
        except OSError as error:
            del self.programs[program.number]
            self.say(SessionRefused(program.number, f"the guest can't start it: {error.strerror}"))
            return
        self.say(Opened(program.number))
        helping = [
            asyncio.create_task(self._feed(program, child)),
            asyncio.create_task(self._signal(program, child)),
        ]
        await asyncio.gather(
            self._show(program, child.stdout, STDOUT), self._show(program, child.stderr, STDERR)
        )
        code = await child.wait()
        for task in helping:
            task.cancel()
        await asyncio.gather(*helping, return_exceptions=True)
        del self.programs[program.number]
        self.say(Exit(program.number, code if code >= 0 else 128 - code))

    async def _show(self, program: Program, pipe: asyncio.StreamReader | None, stream: int) -> None:
        while pipe is not None and (data := await pipe.read(65536)):
            await program.write(data, stream)

    async def _feed(self, program: Program, child: asyncio.subprocess.Process) -> None:
        assert child.stdin is not None
        with contextlib.suppress(OSError):
            while data := await program.read():
                child.stdin.write(data)
                await child.stdin.drain()
        if program.hung_up.is_set():
            _kill(child, signal.SIGHUP)
        child.stdin.close()
        await program.hung_up.wait()
        _kill(child, signal.SIGHUP)

    async def _signal(self, program: Program, child: asyncio.subprocess.Process) -> None:
        while True:
            frame = await program.news.get()
            if isinstance(frame, SignalFrame):
                _kill(child, frame.number)


def _kill(child: asyncio.subprocess.Process, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, number)
