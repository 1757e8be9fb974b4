"""The fuzzer's invariant, held by its seeds and by hypothesis; `fuzz/relay.py` is the long form."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wgcell.prove.battery.case import Injection
from wgcell.prove.battery.cases import CASES
from wgcell.prove.battery.probes import tunnel

FUZZ = Path(__file__).parents[2] / "fuzz"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_relay", FUZZ / "relay.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_relay"] = module
    spec.loader.exec_module(module)
    return module


fuzz = load()
HONEST = b"\0" + tunnel(b"x" * 96)
SEEDS = sorted((FUZZ / "seeds").iterdir())


def test_there_is_a_seed_for_every_case_that_sends_frames() -> None:
    wanted = {case.name for case in CASES if case.injection is Injection.FRAMES} | {"honest"}
    assert {seed.name for seed in SEEDS} == wanted


def test_every_seed_keeps_the_invariant() -> None:
    for seed in SEEDS:
        fuzz.check(seed.read_bytes())


@given(st.sampled_from(SEEDS), st.integers(0, 2000), st.integers(0, 255), st.integers(0, 40))
def test_a_changed_seed_keeps_it(seed: Path, at: int, value: int, cut: int) -> None:
    data = bytearray(seed.read_bytes())
    data[at % len(data)] = value
    fuzz.check(bytes(data[: len(data) - cut]))


@given(st.binary(max_size=400))
def test_any_bytes_keep_it(data: bytes) -> None:
    fuzz.check(data)


def test_the_invariant_is_not_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a classifier that lets everything pass, the fuzzer's first seeds break it."""
    fuzz.check(HONEST)
    monkeypatch.setattr(fuzz, "classify", lambda frame: frame[42:])
    for name in ("source-mac-foreign", "fragment-last", "udp-length-long", "ip-checksum", "vlan"):
        with pytest.raises(fuzz.Broken):
            fuzz.check((FUZZ / "seeds" / name).read_bytes())
