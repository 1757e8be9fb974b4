"""``python -m wgcell.gateway [ENGINE [INTERFACE]]``: one gateway as a process.

ENGINE is ``embedded`` (unless one is given), ``namespace``, ``kernel`` with the name of its
interface, or ``auto``: the namespace engine where it can be, else the embedded one.

A line of JSON on stdin says what to be, each further one what to be from then on; JSON lines on
stdout say what happens: ``ready`` first, then each flow. The end of stdin, a closed stdout or the
parent's death end it: it never outlives who started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
from typing import TYPE_CHECKING, Any

from wgcell.errors import HostError, WgcellError
from wgcell.gateway import control
from wgcell.gateway.model.config import GatewayConfig
from wgcell.gateway.model.parsing import parse_config
from wgcell.gateway.model.ratelimit import Bucket

if TYPE_CHECKING:
    from collections.abc import Callable

    from wgcell.gateway.engines.embedded.engine import EmbeddedEngine
    from wgcell.gateway.engines.nftables.engine import KernelEngine

    Engine = EmbeddedEngine | KernelEngine

_PR_SET_PDEATHSIG = 1
_LONGEST_LINE = 1 << 20
_MOST_MEMORY = 2 << 30
_FILES = 8192


def _die_with_parent(parent: int) -> bool:
    """Ask the kernel to end this process with its parent; False if ``parent`` is gone already."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # The parent may have died before prctl took hold: then init, or a subreaper, is it now. One
    # that died before the first question has closed our stdin, which ends us as well.
    return os.getppid() == parent


def _end_with(parent: int) -> None:
    if not _die_with_parent(parent):
        os._exit(125)


def _say(event: dict[str, object]) -> None:
    try:
        # A flow is told before a byte of it moves, so this must reach the pipe at once.
        sys.stdout.write(control.SAID.line_of(event).decode())
        sys.stdout.flush()
    except (OSError, ValueError):
        # Nobody hears us: a gateway that can't log must not forward.
        os._exit(1)


def _bound() -> None:
    """A peer may make the WireGuard server keep half-open connections; this machine stays whole.

    It holds a private key, which belongs in no core dump.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for kind, most in ((resource.RLIMIT_DATA, _MOST_MEMORY), (resource.RLIMIT_NOFILE, _FILES)):
        _, hard = resource.getrlimit(kind)
        limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (limit, limit))


def _die_with(parent: int) -> Callable[[], None]:
    return lambda: _end_with(parent)


async def _started(
    config: GatewayConfig, name: str, interface: str, give_up: Callable[[], None]
) -> Engine:
    """The engine that is asked for, started; only its own libraries are loaded."""
    preexec, reason = _die_with(os.getpid()), ""
    if name in ("namespace", "auto"):
        from wgcell.gateway.engines.nftables.private import NamespaceEngine

        try:
            apart = NamespaceEngine(config, _say, preexec=preexec, give_up=give_up)
            await apart.start()
        except (HostError, OSError, RuntimeError) as error:
            # What the embedded engine needs too, as a port that is free, it will miss itself.
            if name == "namespace":
                raise
            reason = error.message if isinstance(error, HostError) else str(error)
        else:
            return apart
    if name == "kernel":
        from wgcell.gateway.engines.nftables.engine import INTERFACE, KernelEngine

        place = interface or INTERFACE
        kernel = KernelEngine(config, _say, interface=place, preexec=preexec, give_up=give_up)
        await kernel.start()
        return kernel
    from wgcell.gateway.engines.embedded.engine import EmbeddedEngine

    embedded = EmbeddedEngine(config, _say, reason)
    await embedded.start()
    return embedded


class _Stumbles:
    """What no code of ours has caught: told, but only so often, and never written to a pipe that
    nobody reads."""

    def __init__(self) -> None:
        self._bucket = Bucket(1, 8)

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if self._bucket.take(loop.time()):
            error = context.get("exception")
            _say({"event": "stumble", "detail": f"{context.get('message')}: {error!r}"[:500]})


async def _serve(name: str = "embedded", interface: str = "") -> int:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_Stumbles())
    reader, code = asyncio.StreamReader(limit=_LONGEST_LINE), 0

    def give_up() -> None:
        nonlocal code
        code = 125
        reader.feed_eof()

    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    try:
        line = await reader.readline()
        config = parse_config(json.loads(line))
        engine = await _started(config, name, interface, give_up)
    except (WgcellError, ValueError, OSError, RuntimeError) as error:
        _say({"event": "fault", "detail": str(error)})
        return 125
    while (line := await reader.readline()) and not code:
        try:
            await engine.apply(parse_config(json.loads(line)))
            _say({"event": "applied"})
        except (WgcellError, ValueError, OSError) as error:
            _say({"event": "fault", "detail": str(error)})
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1):
            await engine.stop()
    return code


def main() -> int:
    """Run until stdin ends. 0, or 125 if it could not start."""
    if not _die_with_parent(os.getppid()):
        return 125
    # The terminal's Ctrl-C reaches every process of the group; the supervisor decides for us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _bound()
    code = asyncio.run(_serve(*sys.argv[1:3]))
    sys.stdout.flush()
    # Threads of the WireGuard server's runtime must not hold up the exit.
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
