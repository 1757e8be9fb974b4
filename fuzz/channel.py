"""The session channel under atheris: its decoder and both ends' rules.

The invariant, for any bytes at all, cut in any way, to a host or to a guest:

1. nothing raises but GuestError, and after it nothing is believed;
2. each frame that is read has the very bytes that `encode` gives it (bad UTF-8 in a refusal aside);
3. no more than `WINDOW` bytes of a stream are taken that were not credited, and no more than
   `MOST_SESSIONS` sessions are open beside the workload's;
4. what is held between two pieces is less than one frame.

    pip install -e '.[dev,fuzz]'
    python fuzz/channel.py -runs=10000000 fuzz/channel-seeds

``python fuzz/channel.py --seeds`` writes the seeds anew.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

from wgcell.errors import GuestError
from wgcell.guest import channel as rules
from wgcell.guest import frames as codec
from wgcell.guest.channel import MOST_SESSIONS, WINDOW, WORKLOAD, Channel
from wgcell.guest.frames import Credit, Data, Frame, Open, Opened, Pack, SessionRefused, encode

SEEDS = Path(__file__).parent / "channel-seeds"
LONGEST_FRAME = 9 + codec.LONGEST_OPEN
_OPENER, _CREDITS = 1, 2
"""Bits of an input's first byte: this end opens sessions; it credits what it has taken."""


class Broken(Exception):
    """The invariant does not hold."""


class End:
    """One end, honest, whose other end says whatever it likes."""

    def __init__(self, opener: bool, credits: bool) -> None:
        self.channel = Channel(opener=opener, workload=True)
        self.credits = credits
        self.unread: dict[tuple[int, int], int] = defaultdict(int)
        if opener:
            for session in (1, 2, 3):
                self.channel.send(Open(session, Pack("a")))

    def take(self, frame: Frame) -> None:
        """Answer an open, count what comes, and credit it."""
        match frame:
            case Open(session, _):
                self.channel.send(Opened(session))
            case Data(session, stream, data):
                self.unread[session, stream] += len(data)
                if self.unread[session, stream] > WINDOW:
                    raise Broken("more than a window of a stream")
                if self.credits:
                    amount = self.unread.pop((session, stream))
                    self.channel.send(Credit(session, stream, amount))


def check(data: bytes) -> None:
    """One input: two bytes of how, then the other end's bytes."""
    if len(data) < 2:
        return
    end = End(bool(data[0] & _OPENER), bool(data[0] & _CREDITS))
    said, step = data[2:], data[1] + 1
    read: list[Frame] = []
    for at in range(0, len(said), step):
        try:
            found = end.channel.receive(said[at : at + step])
        except GuestError:
            break
        for frame in found:
            read.append(frame)
            # An end that was left by a credit's session is not an error of the other end.
            if not isinstance(frame, Data) or end.channel.is_open(frame.session):
                end.take(frame)
        if len(end.channel._decoder._left) >= LONGEST_FRAME:
            raise Broken("more than a frame is held")
        if sum(end.channel.is_open(one) for one in end.channel._sessions) > MOST_SESSIONS + 1:
            raise Broken("too many sessions")
    check_bytes(said, read)


def check_bytes(said: bytes, read: list[Frame]) -> None:
    """2: in order, each frame's bytes are there."""
    at = 0
    for frame in read:
        if isinstance(frame, SessionRefused):
            continue
        raw = encode(frame)
        at = said.find(raw, at)
        if at < 0:
            raise Broken(f"{frame} was never said")
        at += len(raw)


def write_seeds() -> None:
    """A conversation from each end, and each frame by itself."""
    SEEDS.mkdir(exist_ok=True)
    command = codec.Command(
        ("sh", "-c", "true"), (("A", "b"),), "/", "0", codec.Terminal(24, 80), True
    )
    opener = [
        *(
            Open(1, command),
            Data(1, codec.STDIN, b"hello"),
            codec.Size(1, codec.Terminal(0, 10000)),
        ),
        *(codec.Signal(1, 2), codec.End(1, codec.STDIN), Data(WORKLOAD, codec.STDIN, b"x")),
        *(Open(2, codec.Unpack("b")), codec.Hangup(2), Open(9, codec.Attach(True))),
    ]
    server = [
        *(
            Opened(1),
            SessionRefused(2, "no"),
            Data(1, codec.STDOUT, b"out"),
            Data(1, codec.STDERR, b"err"),
        ),
        *(codec.End(1, codec.STDERR), codec.Exit(1, 0)),
    ]
    for name, head, said in (("opener", b"\2\xff", opener), ("server", b"\3\x06", server)):
        (SEEDS / name).write_bytes(head + b"".join(map(encode, said)))
        for number, frame in enumerate(said):
            (SEEDS / f"{name}-{number}").write_bytes(head + encode(frame))


def main() -> None:
    """Fuzz until atheris has enough."""
    if "--seeds" in sys.argv:
        write_seeds()
        return
    import atheris

    from relay import functions_of

    for module in (rules, codec):
        for part in functions_of(module):
            atheris.instrument_func(part)
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
