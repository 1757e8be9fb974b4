"""A cell's whole life in this process, and the signals that end it.

The first signal ends a cell in order, with its grace period; the second, or SIGQUIT, at once. A
caller may have the first SIGINT or SIGTERM sent to the workload instead: then the second ends the
cell in order, and the third at once. A signal that was ignored when the process was started stays
so, as nohup has it for SIGHUP.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

from wgcell import api
from wgcell.cell.events import Event
from wgcell.cell.outputs import Landed

__all__ = ["ENDINGS", "Interrupted", "interruptible", "until_its_end"]

ENDINGS: Mapping[signal.Signals, str] = MappingProxyType(
    {
        signal.SIGINT: "interrupted (Ctrl-C)",
        signal.SIGTERM: "stopped",
        signal.SIGHUP: "the terminal closed",
        signal.SIGQUIT: "killed",
    }
)
"""The signals by which a user or the system ends a cell, and the cell's reason for each."""

_PASSED_ON = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """A signal that is to end us, and is no answer to a question."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Any of `ENDINGS` raises here: the loop, which else hears of them, stands still.

    SIGINT is KeyboardInterrupt, which at a question is an answer; the others are `Interrupted`.
    """

    def interrupt(number: int, _: object) -> None:
        kind = KeyboardInterrupt if number == signal.SIGINT else Interrupted
        raise kind(ENDINGS[signal.Signals(number)])

    before = {number: signal.getsignal(number) for number in ENDINGS}
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, interrupt)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def until_its_end(
    cell: api.Cell,
    *,
    event: Callable[[Event], None],
    stdout: api.Sink,
    stderr: api.Sink,
    land: Callable[[api.Arrived], Landed],
    began: Callable[[Callable[[str], None]], None] = lambda cancel: None,
    passes_on: bool = False,
) -> api.Result:
    """The cell's whole life, and what it came to.

    ``passes_on``: the first SIGINT or SIGTERM goes to the workload's process group, if it runs.

    ``began`` is called once, and given what ends the cell in order from any thread, with a reason.
    The rest is as `wgcell.api.Cell.run` has it.
    """
    import asyncio

    async def watched() -> api.Result:
        loop = asyncio.get_running_loop()
        passed_on = not passes_on

        def obey(number: signal.Signals, words: str) -> None:
            nonlocal passed_on
            first, passed_on = not passed_on and number in _PASSED_ON, True
            if not (first and cell.signal(number)):
                (cell.abort if number is signal.SIGQUIT else cell.cancel)(words)

        for number, words in ENDINGS.items():
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, obey, number, words)

        def cancel(reason: str) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the cell has ended
                loop.call_soon_threadsafe(cell.cancel, reason)

        async def landed(arrived: api.Arrived) -> Landed:
            # In this thread, which is the main one: `interruptible` needs it, to read a signal as
            # an answer. The loop stands still meanwhile, and has nothing else to do.
            return land(arrived)

        began(cancel)
        return await cell.run(event=event, stdout=stdout, stderr=stderr, land=landed)

    return asyncio.run(watched())
