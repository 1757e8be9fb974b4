"""How the guest's clock follows the host's: forward at once, backward never."""

from __future__ import annotations

import pytest

from wgcell.guest.agent import kernel


@pytest.mark.parametrize(
    ("ahead", "done"),
    [
        (3600.0, "set"),
        (0.9, "set"),
        (0.2, ""),
        (0.0, ""),
        (-0.2, ""),
        (-0.9, "slow"),
        (-1.5, "slow"),
        (-3600.0, "slow"),
    ],
)
def test_it_is_set_forward_and_only_slowed_down_backward(ahead: float, done: str) -> None:
    """``ahead``: the host's clock before the guest's, in seconds."""
    now = 1_700_000_000.25
    assert kernel.correction(now + ahead, now) == done


@pytest.mark.parametrize("ahead", [3600.0, 0.0, -3600.0])
def test_what_is_decided_is_what_the_kernel_is_asked(
    ahead: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(kernel.time, "time", lambda: 1000.0)
    monkeypatch.setattr(kernel.time, "clock_settime", lambda *words: asked.append(words[1]))
    monkeypatch.setattr(kernel, "_call", lambda *words: asked.append(words))
    kernel.bring_clock_to(1000.0 + ahead)
    if ahead > 0:
        assert asked == [4600.0]
    elif ahead < 0:
        ((name, state),) = asked  # type: ignore[misc]
        # struct timex (<linux/timex.h>): 208 bytes, ADJ_OFFSET_SINGLESHOT, microseconds.
        assert (name, len(state)) == ("adjtimex", 208)
        assert state[:16] == (0x8001).to_bytes(8, "little") + (-3_600_000_000).to_bytes(
            8, "little", signed=True
        )
    else:
        assert asked == []
