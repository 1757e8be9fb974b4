"""``python -m wgcell.gateway [ENGINE [INTERFACE]]``: one gateway as a process.

ENGINE is ``embedded`` (the default), ``namespace``, ``kernel`` with the name of its interface, or
``auto``: the namespace engine where it is possible, else the embedded one.

Its orders come on stdin, a configuration first; its events go to stdout, ``ready`` first, then the
flows (see `words`). The process ends when stdin ends, stdout is
closed or its parent dies: it never outlives the process that started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sys
from typing import TYPE_CHECKING

from wgcell.errors import HostError, WgcellError
from wgcell.gateway import words
from wgcell.gateway.model.config import GatewayConfig
from wgcell.gateway.model.parsing import configured
from wgcell.gateway.orders import Orders
from wgcell.net.bucket import TokenBucket
from wgcell.processes import die_with_parent
from wgcell.wire.lines import LineError

if TYPE_CHECKING:
    from collections.abc import Callable

    from wgcell.gateway.engines.engine import Engine
    from wgcell.gateway.engines.nftables.host import HostContext
    from wgcell.gateway.engines.nftables.publishing import Listening
    from wgcell.gateway.peer.events import Report

_MOST_MEMORY = 2 << 30
_FILES = 8192


def report(event: words.Event) -> None:
    """Write one event to stdout. Ends the process if that fails."""
    try:
        # A flow is reported before a byte of it moves, so this must reach the pipe at once.
        sys.stdout.write(words.EVENTS.line(event).decode())
        sys.stdout.flush()
    except (OSError, ValueError):
        # Nobody hears us, and a gateway that can't log must not forward.
        os._exit(1)


def _limit_resources() -> None:
    """Bound memory and descriptors: peers may make WireGuard keep half-open connections.

    No core dump: the process holds a private key.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for kind, most in ((resource.RLIMIT_DATA, _MOST_MEMORY), (resource.RLIMIT_NOFILE, _FILES)):
        _, hard = resource.getrlimit(kind)
        limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (limit, limit))


async def started(
    config: GatewayConfig,
    name: str,
    interface: str,
    report: Report,
    give_up: Callable[[], None],
) -> Engine:
    """The engine ``name``, started. Only its own libraries are loaded.

    Raises WgcellError, OSError and RuntimeError. With ``auto``, the ``ready`` event of the embedded
    engine has the reason why it is not the namespace engine.
    """
    reason = ""
    ports: Listening = {}
    if name != "embedded" and any(peer.published for peer in config.peers):
        from wgcell.gateway.engines.nftables.publishing import listening

        # Before this process has a network of its own, and fewer rights outside.
        ports = listening(config)
    if name in ("namespace", "auto"):
        from wgcell.gateway.engines.nftables.private import PrivateHost

        try:
            return await _with_nftables(PrivateHost, config, ports, report, give_up)
        except (HostError, OSError, RuntimeError) as error:
            # The embedded engine finds out itself what it lacks, too, such as a free port.
            if name == "namespace":
                raise
            reason = error.message if isinstance(error, HostError) else str(error)
            if ports:
                raise HostError(
                    f"a published port needs the namespace engine: {reason}",
                    hint="wgcell doctor lists what this machine lacks",
                ) from error
    if name == "kernel":
        from wgcell.gateway.engines.nftables.machine import INTERFACE, MachineHost

        def machine(config: GatewayConfig) -> MachineHost:
            return MachineHost(interface or INTERFACE)

        return await _with_nftables(machine, config, ports, report, give_up)
    from wgcell.gateway.engines.embedded.engine import EmbeddedEngine

    embedded = EmbeddedEngine(config, report, reason)
    await embedded.start()
    return embedded


async def _with_nftables(
    host: Callable[[GatewayConfig], HostContext],
    config: GatewayConfig,
    ports: Listening,
    report: Report,
    give_up: Callable[[], None],
) -> Engine:
    """The nftables engine on ``host``, started. Raises HostError and OSError."""
    from wgcell.gateway.engines.nftables.engine import NftablesEngine

    try:
        preexec = die_with_parent(os.getpid())
        engine = NftablesEngine(
            config, report, host(config), ports, preexec=preexec, give_up=give_up
        )
        await engine.start()
    except BaseException:
        for sock in ports.values():
            sock.close()
        raise
    return engine


class UncaughtErrors:
    """Reports errors that no code has caught, at most one a second in the long run.

    It is a loop's exception handler. Without it, asyncio would write to a stderr that nobody reads.
    """

    def __init__(self, report: Report) -> None:
        self._bucket = TokenBucket(1, 8)
        self._report = report

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        if self._bucket.take(loop.time()):
            error = context.get("exception")
            detail = f"{context.get('message')}: {error!r}"[:500]
            self._report(words.Stumble(detail))


def _order(line: bytes) -> words.Order:
    """The order that ``line`` is. Raises HostError: whoever started this process is wgcell too."""
    try:
        return words.ORDERS.word(line)
    except LineError as error:
        raise HostError(f"the gateway was given an order that is none: {error}") from None


async def _serve(name: str = "embedded", interface: str = "") -> int:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(UncaughtErrors(report))
    reader, code = asyncio.StreamReader(limit=words.ORDERS.longest), 0

    def give_up() -> None:
        nonlocal code
        code = 125
        reader.feed_eof()

    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    try:
        order = _order(await reader.readline())
        if not isinstance(order, words.Configure):
            raise HostError("the gateway's first order is no configuration")
        config = configured(order)
        engine = await started(config, name, interface, report, give_up)
        orders = Orders(engine, config, report, give_up)
    except (WgcellError, ValueError, OSError, RuntimeError) as error:
        report(words.Fault(str(error)))
        return 125
    while (line := await reader.readline()) and not code:
        try:
            await orders.obey(_order(line))
        except (WgcellError, ValueError, OSError) as error:
            report(words.Fault(str(error)))
    await orders.close()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1):
            await engine.stop()
    return code


def main() -> int:
    """Run until stdin ends. Returns 0, or 125 if it could not start."""
    # If the parent died before this process first asked for it, our stdin is closed: the end, too.
    die_with_parent(os.getppid())()
    # The terminal's Ctrl-C reaches every process of the group; the supervisor decides for us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _limit_resources()
    code = asyncio.run(_serve(*sys.argv[1:3]))
    sys.stdout.flush()
    # Threads of the WireGuard server's runtime must not hold up the exit.
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
