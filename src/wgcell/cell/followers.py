"""The loops that listen to a cell's parts; each makes events for the core of messages.

The messages of a guest, a relay or a gateway are bounded elsewhere (`wgcell.cell.listening`). An
error that a loop raises becomes a cause: the supervisor sees to that.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Protocol

from wgcell.cell.archive import Unpacked
from wgcell.cell.children import GatewayProcess, RelayProcess
from wgcell.cell.core.events import (
    Caused,
    Event,
    FromGateway,
    FromGuest,
    FromRelay,
    GatewayGone,
    RelayGone,
    UnpackingEnded,
)
from wgcell.cell.listening import fair
from wgcell.cell.states import Cause
from wgcell.errors import GuestError
from wgcell.guest import protocol
from wgcell.vm.kill_switch import KillSwitch

__all__ = [
    "Feed",
    "cancelled_or_dead",
    "follow_gateway",
    "follow_guest",
    "follow_machine",
    "follow_relay",
    "follow_unpacking",
]

Feed = Callable[[Event], None]

_LAST_MESSAGES = 0.05
_LAST_OF_A_ROGUE = 1.0
"""Seconds for what others have to say about a machine's death: what the machine sent before is
still in the sockets; so is the relay's message why it pulled the kill switch, or the relay's own
end."""


class EndsByItself(Protocol):
    """A machine, as far as it is waited for."""

    async def ended(self) -> int:
        """Wait until its process ends; the exit code."""


async def follow_relay(relay: RelayProcess, feed: Feed) -> None:
    """The relay's messages, to its last line."""
    async for message in fair(relay.events()):
        feed(FromRelay(message))
    feed(RelayGone())


async def follow_gateway(gateway: GatewayProcess, feed: Feed) -> None:
    """The gateway's messages, to its last line."""
    async for message in fair(gateway.flows()):
        feed(FromGateway(message))
    feed(GatewayGone())


async def follow_guest(
    port: socket.socket, feed: Feed, attach: Callable[[asyncio.StreamWriter], None]
) -> None:
    """The messages of the guest's agent. ``attach`` is given the way back to it."""
    reader, writer = await asyncio.open_connection(sock=port, limit=protocol.LONGEST_LINE)
    attach(writer)
    try:
        async for line in fair(reader):
            feed(FromGuest(protocol.parse(line)))
    except ValueError as error:
        raise GuestError("the guest sent a line that is too long") from error
    except OSError:
        pass  # the machine is gone; `follow_machine` says so
    finally:
        writer.close()


async def follow_unpacking(unpacking: asyncio.Future[Unpacked], feed: Feed) -> None:
    """Wait for the outputs' unpacking; outputs that are wrong are a cause by themselves."""
    try:
        unpacked = await asyncio.shield(unpacking)
    except GuestError as error:
        feed(Caused(Cause.RESULTS_LOST, error.message))
    else:
        feed(UnpackingEnded(unpacked))


async def cancelled_or_dead(cancelled: asyncio.Event, machine: EndsByItself) -> None:
    """A frozen machine's wait: the link is cut, its relay and the machine may still die."""
    waits = [asyncio.ensure_future(cancelled.wait()), asyncio.ensure_future(machine.ended())]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


async def follow_machine(machine: EndsByItself, kill_switch: KillSwitch | None, feed: Feed) -> None:
    """The machine's death."""
    code = await machine.ended()
    pulled = kill_switch is not None and kill_switch.pulled
    await asyncio.sleep(_LAST_OF_A_ROGUE if pulled else _LAST_MESSAGES)
    feed(Caused(Cause.MACHINE_DIED, f"the machine ended by itself (exit code {code})"))
