"""The keys that leave: as docker reads them, and found in whatever pieces they are typed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wgcell.cli.keys import DETACH_KEYS, DetachKeys, parsed
from wgcell.errors import InputError

READ = {
    DETACH_KEYS: b"\x10\x11",
    "": b"",
    "a": b"a",
    "ctrl-a": b"\x01",
    "CTRL-Z": b"\x1a",
    "ctrl-@": b"\x00",
    "ctrl-[": b"\x1b",
    "ctrl-\\": b"\x1c",
    "ctrl-]": b"\x1d",
    "ctrl-^": b"\x1e",
    "ctrl-_": b"\x1f",
    "ctrl-e,e": b"\x05e",
}


@pytest.mark.parametrize(("text", "keys"), READ.items())
def test_keys_as_they_are_written(text: str, keys: bytes) -> None:
    assert parsed(text) == keys


@pytest.mark.parametrize("text", ["ctrl-1", "ctrl-", "ab", "a,,b", "é", "\x10", "ctrl-ab"])
def test_what_are_no_keys(text: str) -> None:
    with pytest.raises(InputError, match="--detach-keys"):
        parsed(text)


@given(st.lists(st.sampled_from([b"", b"x", b"\x10", b"\x11", b"\x10\x10", b"x\x10x"])))
def test_nothing_that_is_typed_is_lost(typed: list[bytes]) -> None:
    keys, passed = DetachKeys(b"\x10\x11"), b""
    for piece in typed:
        passed += keys.feed(piece)
    whole = b"".join(typed)
    before, found, _ = whole.partition(b"\x10\x11")
    assert keys.came == bool(found)
    if found:
        assert passed == before
    else:
        assert passed == whole.removesuffix(b"\x10") if whole.endswith(b"\x10") else passed == whole


def test_no_keys_pass_everything() -> None:
    assert DetachKeys(b"").feed(b"\x10\x11") == b"\x10\x11"
