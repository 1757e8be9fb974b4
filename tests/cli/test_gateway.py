"""``wgcell gateway`` as a user types it, and the summary at a run's end."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from wgcell.cell import consent
from wgcell.cell.endpoint import connect
from wgcell.cell.job import GatewayAsked, HostLimits, JobOptions, job_from_options
from wgcell.cell.provider import Provider, apply_ceilings
from wgcell.cell.wgquick import load_vpn_config
from wgcell.cli import terminal
from wgcell.cli.terminal import Narrator, Words
from wgcell.errors import ConsentError, JobError

pytestmark = pytest.mark.namespaces

WGCELL = (sys.executable, "-m", "wgcell", "gateway")


def typed(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*WGCELL, *words], cwd=folder, capture_output=True, text=True, timeout=20, check=False
    )


@pytest.fixture(params=["embedded", "namespace"])
def running(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A gateway of two peers, on ports that were free a moment ago."""
    engine = ("--engine", request.param)
    added = typed(tmp_path, "peer", "add", "alice", "--endpoint", "127.0.0.1", *engine)
    assert added.returncode == 0, added.stderr
    file = tmp_path / "gateway.toml"
    with connect(ipaddress.ip_address("127.0.0.1"), 9) as sock:
        port = sock.getsockname()[1]
    file.write_text(file.read_text().replace("0.0.0.0", "127.0.0.1").replace("51820", str(port)))
    conf = tmp_path / "alice.conf"
    conf.write_text(conf.read_text().replace("51820", str(port)))
    process = subprocess.Popen(
        [*WGCELL, "run", "gateway.toml", "--log", "flows.jsonl"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = tmp_path / "flows.jsonl"
    end = time.monotonic() + 10
    while not (log.exists() and log.read_text()):
        assert time.monotonic() < end
        time.sleep(0.05)
    yield tmp_path, process
    process.terminate()
    process.communicate(timeout=10)


def consents(conf: Path, timeout: float = 4) -> bool:
    vpn = load_vpn_config(conf)
    with connect(ipaddress.ip_address(vpn.endpoint_host), vpn.endpoint_port) as sock:
        try:
            keys = vpn.private_key, vpn.peer_public_key
            asyncio.run(consent.obtain(sock, *keys, timeout=timeout))
        except ConsentError:
            return False
    return True


def test_a_peers_file_works_and_peer_rm_cuts_it_off_at_once(
    running: tuple[Path, subprocess.Popen[str]],
) -> None:
    folder, _ = running
    assert consents(folder / "alice.conf")
    typed(folder, "peer", "add", "bob", "--endpoint", "127.0.0.1")
    time.sleep(0.6)
    assert consents(folder / "bob.conf")
    assert typed(folder, "peer", "rm", "alice").returncode == 0
    time.sleep(0.6)
    assert not consents(folder / "alice.conf", timeout=0.5)
    assert consents(folder / "bob.conf")
    assert json.loads((folder / "flows.jsonl").read_text().splitlines()[0])["event"] == "ready"


def test_a_file_that_is_wrong_is_not_applied_and_said_so(
    running: tuple[Path, subprocess.Popen[str]],
) -> None:
    folder, process = running
    file = folder / "gateway.toml"
    file.write_text(file.read_text() + "colour = 1\n")
    time.sleep(0.6)
    assert consents(folder / "alice.conf")
    process.terminate()
    _, said = process.communicate(timeout=10)
    assert "the file is not applied" in said
    assert "colour" in said


def test_check_names_the_line_and_exits_125(tmp_path: Path) -> None:
    typed(tmp_path, "peer", "add", "alice", "--endpoint", "vpn.example.com")
    assert typed(tmp_path, "check", "gateway.toml").returncode == 0
    file = tmp_path / "gateway.toml"
    file.write_text(file.read_text().replace("rules = []", 'rules = ["allow example.com"]'))
    checked = typed(tmp_path, "check", "gateway.toml")
    assert checked.returncode == 125
    assert "gateway.toml:5: rules[0]: rule 'example.com' has no port" in checked.stderr


def test_exports_are_what_the_engines_take(tmp_path: Path) -> None:
    typed(tmp_path, "peer", "add", "alice", "--endpoint", "vpn.example.com")
    text = typed(tmp_path, "export", "gateway.toml").stdout
    apply = ["unshare", "-rn", "nft", "-c", "-f", "-"]
    subprocess.run(apply, input=text, text=True, check=True, timeout=10)
    quick = typed(tmp_path, "export", "gateway.toml", "--engine", "wg-quick").stdout
    assert "AllowedIPs = 10.99.0.2/32" in quick
    assert typed(tmp_path, "export", "absent.toml").returncode == 125


def test_a_run_ends_with_what_was_refused_and_what_would_allow_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal.console, "file", sys.stderr)
    narrator = Narrator(Words.ALL)
    narrator({"event": "gateway", "engine": "namespace", "reason": ""})
    narrator({"event": "gateway", "engine": "embedded", "reason": "nft is missing"})
    flow = {"event": "flow", "verdict": "refuse", "protocol": "tcp", "address": "203.0.113.7"}
    flow |= {"port": 443, "name": "cdn.example.com", "reason": "no rule allows it"}
    for _ in range(3):
        narrator({**flow, "mend": "cdn.example.com:443"})
    narrator({**flow, "verdict": "allow", "rule": "learn", "mend": "b.example.com:80"})
    narrator({"event": "ended", "outcome": "completed", "reason": "", "exit_code": 0})
    said = capsys.readouterr().err
    assert said.count("fail slowly or hang: nft is missing; wgcell doctor") == 1
    assert said.count("fail slowly or hang") == 1
    assert "engine: namespace" in said and "engine: embedded" in said
    assert "refused 3 \u00d7 cdn.example.com:443: --allow cdn.example.com:443\n" in said
    assert said.count("refused by the gateway") == 1
    assert "--allow b.example.com:80\n" in said


def test_a_provider_may_forbid_learning() -> None:
    limits = HostLimits(4, 8 << 30, 8 << 30)
    job = job_from_options(JobOptions(command=("true",)), limits)
    assert job.gateway == GatewayAsked()
    learning = replace(job, gateway=GatewayAsked(learn=True))
    apply_ceilings(learning, Provider())
    with pytest.raises(JobError, match="--learn"):
        apply_ceilings(learning, Provider(allow_learn=False))
