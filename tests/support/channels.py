"""Frames of the session channel, whichever there may be."""

from __future__ import annotations

from hypothesis import strategies as st

from wgcell.guest.frames import (
    STDERR,
    STDIN,
    STDOUT,
    Command,
    Credit,
    Data,
    End,
    Exit,
    Frame,
    Hangup,
    Open,
    Opened,
    Pack,
    SessionRefused,
    Signal,
    Size,
    Terminal,
    Unpack,
)

SESSIONS = st.integers(0, 2**32 - 1)


STREAMS = st.sampled_from([STDIN, STDOUT, STDERR])


TERMINALS = st.builds(Terminal, st.integers(0, 65535), st.integers(0, 65535))


RAW_WORDS = st.binary(max_size=20).filter(lambda raw: 0 not in raw)


WORDS = RAW_WORDS.map(lambda raw: raw.decode("utf-8", "surrogateescape"))


NAMES = st.text("ABC_", min_size=1, max_size=8)


COMMANDS = st.builds(
    Command,
    st.lists(WORDS, min_size=1, max_size=5).map(tuple),
    st.lists(st.tuples(NAMES, WORDS), max_size=5).map(tuple),
    WORDS,
    WORDS,
    st.none() | TERMINALS,
    st.booleans(),
)


SUBJECTS = COMMANDS | st.builds(Pack, WORDS) | st.builds(Unpack, WORDS)


FRAMES: dict[type, st.SearchStrategy[Frame]] = {
    Open: st.builds(Open, SESSIONS, SUBJECTS),
    Opened: st.builds(Opened, SESSIONS),
    SessionRefused: st.builds(
        SessionRefused, SESSIONS, st.text(max_size=50).filter(lambda t: t.isascii())
    ),
    Data: st.builds(Data, SESSIONS, STREAMS, st.binary(min_size=1, max_size=100)),
    End: st.builds(End, SESSIONS, STREAMS),
    Credit: st.builds(Credit, SESSIONS, STREAMS, st.integers(0, 2**32 - 1)),
    Size: st.builds(Size, SESSIONS, TERMINALS),
    Signal: st.builds(Signal, SESSIONS, st.integers(1, 64)),
    Hangup: st.builds(Hangup, SESSIONS),
    Exit: st.builds(Exit, SESSIONS, st.integers(0, 255)),
}


ANY_FRAME = st.one_of(*FRAMES.values())


def fields(frame: Frame) -> list[object]:
    return [getattr(frame, name) for name in frame.__dataclass_fields__ if name != "session"]
