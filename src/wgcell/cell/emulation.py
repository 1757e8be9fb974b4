"""Why cells are emulated here, what that means, and what to do: in words, not in KVM's."""

from __future__ import annotations

from wgcell.display import one_line

__all__ = ["MEANING", "explanation", "remedy"]

MEANING = "cells are emulated, which is slower, and for QEMU's authors no security boundary"

_REMEDIES = (
    (
        "is not there",
        "switch on virtualisation in the firmware, or nested virtualisation for this VM; then "
        "modprobe kvm_intel or kvm_amd",
    ),
    ("may not be opened", "sudo usermod -aG kvm $USER, then log in again"),
    (
        "",
        "use another host: this one's hypervisor lets no ordinary kernel boot on KVM",
    ),
)


def remedy(reason: str) -> str:
    """The remedy for a KVM that does not work; ``reason`` is that of `Backend.probe`."""
    return next(words for part, words in _REMEDIES if part in reason)


def explanation(reason: str) -> str:
    """One line: what it means, why, and what to do."""
    why = one_line(reason, 200)
    return f"no KVM here ({why}): {MEANING}. The fix: {remedy(reason)}"
