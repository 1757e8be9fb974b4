"""The relay and the cell's own gateway as child processes that exchange words.

The kernel kills both when the supervisor dies, and both end by themselves when their end of the
pipe closes: whichever dies first takes the others along.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from wgcell import programs
from wgcell.acquiring import acquired, discard_process, to_its_end
from wgcell.errors import HostError, LaunchError, PolicyError
from wgcell.gateway import words as gateway_words
from wgcell.processes import die_with_parent, namespace_holder
from wgcell.relay import control as relay_words
from wgcell.vm.kill_switch import KillSwitch
from wgcell.wire.lines import LineError, Vocabulary

__all__ = ["GatewayProcess", "RelayProcess"]

_QUITS_WITHIN = 10.0
"""Seconds that a child has to go when it is asked to; it takes some milliseconds."""
Word = TypeVar("Word")

# -P: a folder named wgcell where the user happens to stand must never be imported.
_PYTHON = (sys.executable, "-P", "-m")


async def _end(process: asyncio.subprocess.Process, patience: float) -> int:
    """Wait ``patience`` seconds for a child that was asked to go, then kill it."""
    try:
        return await asyncio.wait_for(process.wait(), patience)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        return await process.wait()


def _namespace_holder() -> tuple[str, ...]:
    """The relay's namespace holder. It may inherit the control socket alone, because it holds that
    until the relay has ended; the relay gets everything else over the socket."""
    return namespace_holder(root=os.geteuid() == 0)


async def _drain(pipe: asyncio.StreamReader) -> None:
    """Read a pipe to its end: a process that writes to a full pipe waits."""
    while await pipe.read(1 << 16):
        pass


async def _word(who: str, reader: asyncio.StreamReader, words: Vocabulary[Word]) -> Word | None:
    """The next word that a child says; None if it is gone.

    Raises HostError for a line that is none: something in it is not what we have made it.
    """
    try:
        line = await reader.readline()
    except OSError:
        return None
    except ValueError:
        raise HostError(f"the {who} said a line that is too long") from None
    if not line.endswith(b"\n"):
        return None  # its end, perhaps in the middle of a line
    try:
        return words.word(line)
    except LineError as error:
        raise HostError(f"the {who} said what it may not: {error}") from None


def _order(order: gateway_words.Order) -> bytes:
    """The line of ``order``. Raises PolicyError: its form is checked, so a text is too long."""
    try:
        return gateway_words.ORDERS.line(order)
    except LineError as error:
        raise PolicyError(f"a gateway can't be given that: {error}") from None


async def _can_keep() -> bool:
    """Whether a pid namespace can be made here. This is tried, because a relay's own failure has no
    reason."""
    quiet = asyncio.subprocess.DEVNULL
    try:
        trying = asyncio.create_subprocess_exec(
            *_namespace_holder(),
            programs.path_of("true"),
            stdin=quiet,
            stdout=quiet,
            stderr=quiet,
            env=programs.environment(),
        )
        tried = await acquired(trying, discard_process)
    except FileNotFoundError:
        return False
    try:
        return await tried.wait() == 0
    except asyncio.CancelledError:
        await to_its_end(discard_process(tried))
        raise


async def _begun(
    argv: tuple[str, ...],
    control: socket.socket,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> asyncio.subprocess.Process | str:
    """A relay that has said its first word on ``control``, or what was said as it came to
    nothing."""
    armed = die_with_parent(os.getpid())

    def arm() -> None:
        # When the seal kills the relay, its namespace holder dies of the same signal, and would
        # dump core.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        armed()

    async def discard(process: asyncio.subprocess.Process) -> None:
        # A relay whose namespace holder is killed before it has set PDEATHSIG lives on, until its
        # control socket closes; and its pipe is open until then.
        writer.close()
        await discard_process(process)

    starting = asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        pass_fds=(control.fileno(),),
        env=programs.environment(*programs.PYTHON),
        start_new_session=True,
        preexec_fn=arm,
    )
    process = await acquired(starting, discard)
    word = asyncio.create_task(reader.readline())
    end = asyncio.create_task(process.wait())
    try:
        await asyncio.wait((word, end), return_when=asyncio.FIRST_COMPLETED)
        if word.done():
            return process
        said = await process.stderr.read(4096) if process.stderr else b""
        return said.decode("utf-8", "replace") or f"exit code {process.returncode}"
    except BaseException:
        word.cancel()
        await to_its_end(discard(process))
        raise
    finally:
        word.cancel()
        end.cancel()


@dataclass(slots=True)
class RelayProcess:
    """The relay of one cell: it alone holds the way out."""

    process: asyncio.subprocess.Process
    missing: Mapping[str, str]
    """Stages of the seal that could not be built here, and why; empty: the seal is whole."""
    sealed: bool
    _control: socket.socket
    _reader: asyncio.StreamReader
    _writer: asyncio.StreamWriter

    @classmethod
    async def spawn(
        cls,
        nic: socket.socket,
        udp: socket.socket,
        cell: str = "",
        kill_switch: KillSwitch | None = None,
        *,
        sealed: bool = True,
    ) -> RelayProcess:
        """Start the relay of ``cell`` between ``nic`` and ``udp``; `configure` makes it work.

        ``nic`` is closed here then. ``udp`` is where the way out will be: it may be connected
        later, or replaced; until `configure` the relay reads neither. ``kill_switch`` is pulled at
        a rogue frame, and when the relay is gone.
        ``sealed`` false leaves the seal open: for measuring what it costs, and for no cell.
        """
        ours, theirs = socket.socketpair()
        given = [nic.fileno(), udp.fileno(), *(() if kill_switch is None else (kill_switch.end,))]
        socket.send_fds(ours, [b"\0"], given)
        nic.close()
        if kill_switch is not None:
            kill_switch.hand_over()
        reader, writer = await asyncio.open_connection(sock=ours, limit=relay_words.EVENTS.longest)
        argv: tuple[str, ...] = (*_PYTHON, "wgcell.relay", str(theirs.fileno()), cell)
        try:
            with theirs:
                if not sealed:
                    argv = (*argv, "open")
                elif await _can_keep():
                    argv = (*_namespace_holder(), *argv)
                # else it runs without a pid namespace, and says so.
                begun = await _begun(argv, theirs, reader, writer)
            if isinstance(begun, str):
                raise LaunchError("the relay did not start", argv=argv, output=begun)
        except BaseException:
            writer.close()
            raise
        return cls(begun, {}, False, ours, reader, writer)

    async def configure(self, configuration: relay_words.Configure) -> None:
        """Let it begin. Raises LaunchError if it does not say that it is ready."""
        self.send(configuration)
        ready = await asyncio.wait_for(self._word(), 20)
        if not isinstance(ready, relay_words.Ready):
            code = await _end(self.process, 1)
            stderr = await self.process.stderr.read(4096) if self.process.stderr else b""
            output = "" if ready is None else f"{ready}\n"
            output += stderr.decode("utf-8", "replace")
            argv = (*_PYTHON, "wgcell.relay")
            raise LaunchError("the relay did not start", argv=argv, exit_code=code, output=output)
        self.missing, self.sealed = ready.missing, ready.seal

    @classmethod
    async def start(
        cls,
        nic: socket.socket,
        udp: socket.socket,
        configuration: relay_words.Configure,
        kill_switch: KillSwitch | None = None,
        *,
        sealed: bool = True,
    ) -> RelayProcess:
        """`spawn` and `configure` in one, for a ``udp`` that is connected; closed here then."""
        relay = await cls.spawn(nic, udp, kill_switch=kill_switch, sealed=sealed)
        udp.setblocking(True)
        udp.close()
        await relay.configure(configuration)
        return relay

    def send(self, word: relay_words.Order) -> None:
        """Send one command; nothing if the relay is gone: its end is a cause by itself."""
        line = relay_words.ORDERS.line(word)
        with contextlib.suppress(OSError, RuntimeError):
            self._writer.write(line)

    def replace_udp(self, fresh: socket.socket, *, met: bool) -> None:
        """Hand over a fresh socket to the endpoint, and close it here.

        ``met``: it is connected to another address than before, which has consented. The relay then
        forgets every session before it sends anything there.
        """
        fresh.setblocking(True)
        line = relay_words.ORDERS.line(relay_words.Renewed(met))
        with fresh, contextlib.suppress(OSError):
            socket.send_fds(self._control, [line], [fresh.fileno()])

    async def _word(self) -> relay_words.Event | None:
        return await _word("relay", self._reader, relay_words.EVENTS)

    async def events(self) -> AsyncIterator[relay_words.Event]:
        """The relay's events, until it has ended. Raises HostError for a malformed one."""
        while (word := await self._word()) is not None:
            yield word

    async def quit(self) -> int:
        """Ask for the last figures and the end; the exit code."""
        self.send(relay_words.Quit())
        return await _end(self.process, _QUITS_WITHIN)

    def close(self) -> None:
        """Close our end of the control socket."""
        self._writer.close()


@dataclass(slots=True)
class GatewayProcess:
    """A gateway: of one cell, on a UDP port of loopback, or one for many."""

    process: asyncio.subprocess.Process
    host: str
    port: int
    engine: str
    reason: str
    """Why it is not another engine; empty if it was asked for."""
    _draining: asyncio.Task[None]

    @classmethod
    async def start(cls, configuration: gateway_words.Configure, *arguments: str) -> GatewayProcess:
        """Start the gateway. Raises LaunchError with what it said if it does not get ready, and
        PolicyError for a configuration that is too long.

        ``arguments``: the engine, and for the kernel engine its interface.
        """
        argv = (*_PYTHON, "wgcell.gateway", *arguments)
        first = _order(configuration)
        starting = asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=gateway_words.EVENTS.longest,
            env=programs.environment(*programs.PYTHON),
            start_new_session=True,
            preexec_fn=die_with_parent(os.getpid()),
        )
        process = await acquired(starting, discard_process)
        if process.stdin is None or process.stdout is None or process.stderr is None:
            raise LaunchError("the gateway has no pipes", argv=argv)
        process.stdin.write(first)
        answer = _word("gateway", process.stdout, gateway_words.EVENTS)
        try:
            ready = await asyncio.wait_for(answer, 30)
        except BaseException:  # cancelled, or too late
            await to_its_end(discard_process(process))
            raise
        if not isinstance(ready, gateway_words.Ready):
            process.stdin.close()
            code: int | None = await _end(process, 1)
            if isinstance(ready, gateway_words.Fault):
                # Its own words say why: its exit code adds nothing, and reads like the cell's.
                output, code = ready.detail, None
            else:
                output = (await process.stderr.read(4096)).decode("utf-8", "replace")
            raise LaunchError("the gateway did not start", argv=argv, exit_code=code, output=output)
        draining = asyncio.create_task(_drain(process.stderr))
        return cls(process, ready.host, ready.port, ready.engine, ready.reason, draining)

    def send(self, order: gateway_words.Order) -> None:
        """Give it an order; ``applied`` or ``fault`` is among the next flows.

        Raises PolicyError for one that is too long.
        """
        line = _order(order)
        if self.process.stdin is not None:
            self.process.stdin.write(line)

    async def flows(self) -> AsyncIterator[gateway_words.Event]:
        """The gateway's events, until it has ended. Raises HostError for a malformed one."""
        if (stdout := self.process.stdout) is not None:
            while (word := await _word("gateway", stdout, gateway_words.EVENTS)) is not None:
                yield word

    async def quit(self) -> int:
        """Close its standard input, which ends it; the exit code."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        code = await _end(self.process, _QUITS_WITHIN)
        await self._draining
        return code
