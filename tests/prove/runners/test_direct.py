"""`wgcell prove --quick` as a user starts it, and against copies of wgcell that are broken."""

from __future__ import annotations

import ast
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.l2 import ARP, Ether
from scapy.utils import wrpcap
from tests.support.proving import SOURCE, prove
from tests.support.waiting import GENEROUS, lull, until

from wgcell.prove.battery.cases import CASES
from wgcell.relay.verdict import Reason

pytestmark = pytest.mark.namespaces


@pytest.mark.alone
def test_the_quick_battery_holds_and_every_control_is_seen() -> None:
    code, report = prove("--quick")
    bad = [result for result in report["results"] if result["status"] != "held"]
    assert (code, bad) == (0, [])
    assert report["passed"] and report["leaked"] == 0 and report["rogue_frames"] > 500
    played = {result["case"] for result in report["results"]}
    assert played == {case.name for case in CASES if not case.wait}
    assert all(r["control_seen"] for r in report["results"] if r["expected"] != "pass")
    assert report["seconds"] < 90


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of wgcell to break."""
    shutil.copytree(SOURCE, tmp_path / "wgcell", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def without(source: Path, reason: Reason) -> int:
    """Take every check out that gives ``reason``; how many there were."""

    class Remover(ast.NodeTransformer):
        removed = 0

        def visit_If(self, node: ast.If) -> ast.AST:
            self.generic_visit(node)
            inner = any(isinstance(one, ast.If) for one in node.body)
            if not inner and f"attr='{reason.name}'" in ast.dump(ast.Module(node.body, [])):
                Remover.removed += 1
                return ast.Pass()
            return node

        def visit_Tuple(self, node: ast.Tuple) -> ast.AST:
            """The link's fields stand in a table."""
            kept = [
                one
                for one in node.elts
                if not (isinstance(one, ast.Call) and f"attr='{reason.name}'" in ast.dump(one))
            ]
            Remover.removed += len(node.elts) - len(kept)
            node.elts = kept
            return node

    for file in (source / "wgcell/relay").glob("*.py"):
        if file.name != "verdict.py":
            file.write_text(ast.unparse(Remover().visit(ast.parse(file.read_text()))))
    return Remover.removed


@pytest.mark.parametrize(
    ("reason", "case"),
    [
        (Reason.SOURCE_MAC, "source-mac-foreign"),
        (Reason.DESTINATION_ADDRESS, "lan-right-but-address"),
        (Reason.FRAGMENT, "fragment-last"),
        (Reason.IP_CHECKSUM, "ip-checksum"),
        (Reason.MAC1, "initiation-mac1"),
        (Reason.COUNTER_REPEATED, "counter-again"),
    ],
)
def test_a_relay_with_one_check_removed_leaks_and_the_case_is_named(
    copy: Path, reason: Reason, case: str
) -> None:
    assert without(copy, reason) >= 1
    code, report = prove("--quick", "--case", case, "--case", "lan-ping", source=copy)
    assert code == 1
    leaked = [result for result in report["results"] if result["status"] == "leaked"]
    assert [result["case"] for result in leaked] == [case]
    assert leaked[0]["evidence"]


def broken(source: Path, file: str, old: str, new: str) -> None:
    path = source / "wgcell/prove" / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_control_that_does_not_get_out_makes_its_case_not_proven(copy: Path) -> None:
    broken(copy, "testbed/passthrough.py", "            self._emit(frame)", "            pass")
    code, report = prove("--quick", "--case", "vlan", source=copy)
    assert code == 1
    assert [result["status"] for result in report["results"]] == ["not proven"]


def test_without_namespaces_the_oracle_is_at_the_socket_and_the_report_says_so(copy: Path) -> None:
    broken(copy, "testbed/prepare.py", "    why = why_refused()", '    why = "forbidden here"')
    cases = ("vlan", "lan-ping", "counter-again", "junk-in-step", "in-junk", "in-ra", "runt")
    code, report = prove("--quick", *(w for c in cases for w in ("--case", c)), source=copy)
    found = {result["case"]: result["status"] for result in report["results"]}
    assert found.pop("in-ra") == "not played"
    assert set(found.values()) == {"held"} and code == 0
    assert "forbidden here" in report["oracle"]
    assert any("only the relay's own socket was watched" in gap for gap in report["not_shown"])


def test_there_a_removed_check_is_found_as_well(copy: Path) -> None:
    broken(copy, "testbed/prepare.py", "    why = why_refused()", '    why = "forbidden here"')
    without(copy, Reason.SOURCE_MAC)
    code, report = prove("--quick", "--case", "source-mac-foreign", source=copy)
    assert (code, report["results"][0]["status"]) == (1, "leaked")


def test_a_users_own_frames_each_get_a_verdict_and_a_reason(tmp_path: Path) -> None:
    file = tmp_path / "attack.pcap"
    ping = Ether(src="02:77:67:00:00:02", dst="02:77:67:00:00:01")
    ping /= IP(src="192.168.64.2", dst="192.168.1.1") / ICMP() / bytes(range(40))
    wrpcap(str(file), [ping, Ether() / ARP(pdst="192.0.2.7")])
    code, report = prove("--frames", str(file))
    assert code == 0
    first, second = report["results"]
    assert (first["status"], first["relay_said"]) == ("held", "destination_address")
    assert second["status"] == "held" and second["control_seen"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--quick", "--case", "nonsense"), "there is no case 'nonsense'"),
        (("--quick", "--frames", "a.pcap"), "sends your frames alone"),
        (("--frames", "/etc/hostname"), "not a pcap"),
        (("--quick", "--html", "/nowhere/r.html"), "/nowhere/r.html: No such file or directory"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(options: tuple[str, ...], words: str) -> None:
    argv = [sys.executable, "-m", "wgcell", "prove", *options]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 125
    assert words in done.stderr


def test_the_report_files_are_written(tmp_path: Path) -> None:
    html, junit = tmp_path / "r.html", tmp_path / "r.xml"
    code, _ = prove("--quick", "--case", "vlan", "--html", str(html), "--junit", str(junit))
    assert code == 0
    assert "Nothing leaked" in html.read_text() and "vlan [running]" in junit.read_text()


_STUCK = """
import asyncio, sys
from wgcell.cli import main, prove
from wgcell.prove import run
async def stuck(*_):
    print("up", flush=True)
    try:
        await asyncio.sleep(60)
    finally:
        await asyncio.sleep(60)
run.run = stuck
sys.argv = ["wgcell", "prove", "--quick"]
main.main()
"""


def test_a_clean_up_that_hangs_holds_up_no_interrupt() -> None:
    argv = [sys.executable, "-c", _STUCK]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"up\n"
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
        finally:
            process.kill()


def test_interrupted_it_ends_at_once_and_leaves_no_relay_behind() -> None:
    argv = [sys.executable, "-m", "wgcell", "prove", "--quick"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        relays = until(lambda: children.read_text().split(), "its relays")
        lull(1)  # so that it plays
        relays += children.read_text().split()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=GENEROUS)
    assert relays and process.returncode == 130
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in relays), "no relay")
