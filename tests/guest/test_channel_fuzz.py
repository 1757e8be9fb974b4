"""The channel's fuzzer, held by its seeds and by hypothesis; `fuzz/channel.py` is the long form."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wgcell.guest import channel
from wgcell.guest.frames import MOST_DATA, STDOUT, Data, Frame, Opened, encode

FUZZ = Path(__file__).parents[2] / "fuzz"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_channel", FUZZ / "channel.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_channel"] = module
    spec.loader.exec_module(module)
    return module


fuzz = load()
SEEDS = sorted((FUZZ / "channel-seeds").iterdir())


def test_every_seed_keeps_the_invariant() -> None:
    assert len(SEEDS) > 10
    for seed in SEEDS:
        fuzz.check(seed.read_bytes())


@given(st.sampled_from(SEEDS), st.integers(0, 400), st.integers(0, 255), st.integers(0, 40))
def test_a_changed_seed_keeps_it(seed: Path, at: int, value: int, cut: int) -> None:
    data = bytearray(seed.read_bytes())
    data[at % len(data)] = value
    fuzz.check(bytes(data[: max(len(data) - cut, 0)]))


@given(st.binary(max_size=400))
def test_any_bytes_keep_it(data: bytes) -> None:
    fuzz.check(data)


def test_the_invariant_is_not_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a channel that takes more than was credited, the fuzzer finds it."""
    said: list[Frame] = [Opened(1), *[Data(1, STDOUT, bytes(MOST_DATA))] * 9]
    flood = b"\1\xff" + b"".join(map(encode, said))
    fuzz.check(flood)
    monkeypatch.setattr(channel.Channel, "_spend", lambda self, *words: None)
    with pytest.raises(fuzz.Broken):
        fuzz.check(flood)
