"""What a hostile guest sends is as good as it can be: a clumsy lie would prove nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.support.guests import CONFIG

from wgcell.guest import protocol, verify
from wgcell.prove.battery.overlay import forged_report, overlay
from wgcell.prove.battery.sabotage import SABOTAGES, Sabotage


def test_the_forged_report_is_what_an_honest_guest_would_send() -> None:
    line = forged_report(CONFIG.peer_public_key, ",".join(CONFIG.allowed_ips), CONFIG.keepalive)
    report = protocol.parse(line.encode())
    assert isinstance(report, protocol.Report)
    assert verify.mismatch(CONFIG, report.texts) is None
    other = replace(CONFIG, peer_public_key=b"q" * 32)
    assert verify.mismatch(other, report.texts) is not None


@pytest.mark.parametrize("sabotage", SABOTAGES, ids=lambda sabotage: sabotage.name)
def test_what_is_laid_over_is_whole_and_a_patch_takes_one_line(sabotage: Sabotage) -> None:
    laid, plain = overlay(sabotage, "x"), overlay(replace(sabotage, patch=""), "x")
    assert laid.startswith(b"070701") and b"TRAILER!!!" in laid
    lines = plain.count(b"\n") - laid.count(b"\n")
    assert lines == (1 if sabotage.patch else 0)
