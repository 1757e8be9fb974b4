"""`wgcell prove` with real VMs, a few cases of each kind, and against a wgcell without a check.

What these can't show: that every case holds; `wgcell prove` as it stands plays them all.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.support.proving import SOURCE, cases, prove

pytestmark = [pytest.mark.vm, pytest.mark.namespaces, pytest.mark.timeout(290)]


def test_one_case_of_each_kind_holds() -> None:
    code, report = prove(
        *cases("lan-ping", "gateway-dns", "bridged", "init-replaced", "firewall-flushed"),
        *cases("ok-on-port", "flood-rogue"),
        timeout=280,
    )
    found = {(result["case"], result["wall"]): result["status"] for result in report["results"]}
    assert set(found.values()) == {"held"} and code == 0, report["results"]
    walls = {"guest's walls", "guest's namespace alone", "relay, with a VM before it"}
    assert {wall for case, wall in found if case == "gateway-dns"} == {
        *walls,
        "guest's firewall alone",
    }
    assert {wall for case, wall in found if case == "lan-ping"} == {
        *walls,
        "guest's privileges alone",
        "relay",
    }
    assert all(result["control_seen"] for result in report["results"])


def test_a_supervisor_that_does_not_heed_the_agent_is_found_out(tmp_path: Path) -> None:
    shutil.copytree(SOURCE, tmp_path / "wgcell", ignore=shutil.ignore_patterns("__pycache__"))
    core = tmp_path / "wgcell/cell/core/core.py"
    text = core.read_text()
    heeds = "if self._terms.every_wall and watched and not self._verification.tampered:"
    assert heeds in text
    core.write_text(text.replace(heeds, "if False:"))
    code, report = prove(*cases("route-added"), source=tmp_path, timeout=280)
    assert code == 1
    assert [(r["case"], r["status"]) for r in report["results"]] == [
        ("route-added", "wrong verdict")
    ]
