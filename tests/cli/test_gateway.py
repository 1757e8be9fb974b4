"""``wgcell gateway`` as a user types it, and the summary at a run's end."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.waiting import GENEROUS, lull, until
from tests.support.zygotes import Typed, Typist

from wgcell.cell import consent
from wgcell.cell.endpoint import connect
from wgcell.cell.folder import create
from wgcell.cell.job import GatewayAsked, HostLimits, JobOptions
from wgcell.cell.jobfile import job_from_options
from wgcell.cell.provider import Provider, apply_ceilings
from wgcell.cell.wgquick import load_vpn_config
from wgcell.cli import terminal
from wgcell.cli.progress import EventPrinter, Verbosity
from wgcell.errors import ConsentError, JobError
from wgcell.programs import path_of

pytestmark = pytest.mark.namespaces

Type = Callable[..., Typed]
WGCELL = (sys.executable, "-m", "wgcell", "gateway")


@pytest.fixture
def typed(typed: Typist) -> Type:
    """``wgcell gateway``, and more words."""
    return lambda folder, *words: typed(folder, "gateway", *words)


@pytest.fixture(params=["embedded", "namespace"])
def running(
    typed: Type, request: pytest.FixtureRequest, tmp_path: Path
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
    until(lambda: log.exists() and log.read_text())
    yield tmp_path, process
    process.terminate()
    process.communicate(timeout=GENEROUS)


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
    typed: Type,
    running: tuple[Path, subprocess.Popen[str]],
) -> None:
    folder, _ = running
    assert consents(folder / "alice.conf")
    typed(folder, "peer", "add", "bob", "--endpoint", "127.0.0.1")
    until(lambda: consents(folder / "bob.conf", timeout=1))
    assert typed(folder, "peer", "rm", "alice").returncode == 0
    until(lambda: not consents(folder / "alice.conf", timeout=0.5))
    assert consents(folder / "bob.conf")
    assert json.loads((folder / "flows.jsonl").read_text().splitlines()[0])["event"] == "ready"


def test_a_file_that_is_wrong_is_not_applied_and_said_so(
    running: tuple[Path, subprocess.Popen[str]],
) -> None:
    folder, process = running
    file = folder / "gateway.toml"
    file.write_text(file.read_text() + "colour = 1\n")
    lull(2)  # seconds, more than a change takes to be seen
    assert consents(folder / "alice.conf")
    process.terminate()
    _, said = process.communicate(timeout=GENEROUS)
    assert "the file is not applied" in said
    assert "colour" in said


def test_check_tells_services_as_reachable_too(typed: Type, tmp_path: Path) -> None:
    added = typed(tmp_path, "peer", "add", "alice", "--engine", "embedded", "--endpoint", "x")
    assert added.returncode == 0, added.stderr
    assert "): nothing\n" in typed(tmp_path, "check", "gateway.toml").stderr
    file = tmp_path / "gateway.toml"
    services = '[services]\n"10.99.0.5:80" = "127.0.0.1:8000"\n"[fd99::5]:80" = "[::1]:8000"\n'
    file.write_text(file.read_text() + services)
    checked = typed(tmp_path, "check", "gateway.toml")
    assert checked.returncode == 0, checked.stderr
    assert "): 10.99.0.5:80 = 127.0.0.1:8000, [fd99::5]:80 = [::1]:8000\n" in checked.stderr


def told(process: subprocess.Popen[str], word: str, folder: Path) -> None:
    """Waits until the gateway says it, on standard error."""

    def is_said() -> bool:
        said = (folder / "said").read_text()
        assert process.poll() is None, said
        return word in said

    until(is_said, word)


@pytest.mark.parametrize("engine", ["embedded", "namespace"])
def test_it_says_where_it_listens_and_that_a_change_was_applied(
    typed: Type, tmp_path: Path, engine: str
) -> None:
    typed(tmp_path, "peer", "add", "alice", "--endpoint", "127.0.0.1", "--engine", engine)
    file = tmp_path / "gateway.toml"
    with connect(ipaddress.ip_address("127.0.0.1"), 9) as sock:
        port = str(sock.getsockname()[1])
    file.write_text(file.read_text().replace("0.0.0.0", "127.0.0.1").replace("51820", port))
    with (tmp_path / "said").open("w") as said:
        argv = [*WGCELL, "run", "gateway.toml", "--log", "flows.jsonl"]
        process = subprocess.Popen(argv, cwd=tmp_path, stderr=said, text=True)
    try:
        told(process, "listening on 127.0.0.1, UDP port", tmp_path)
        assert port in (tmp_path / "said").read_text()
        assert f"by the {engine} engine" in (tmp_path / "said").read_text()
        file.write_text(file.read_text().replace("rules = []", 'rules = ["allow *:443"]'))
        told(process, "gateway.toml has changed, and is applied", tmp_path)
        assert "OPENS EVERY PUBLIC HOST" in (tmp_path / "said").read_text()
    finally:
        process.terminate()
        process.wait(GENEROUS)


def test_check_warns_of_what_opens_nothing_or_everything(typed: Type, tmp_path: Path) -> None:
    typed(tmp_path, "peer", "add", "alice", "--endpoint", "vpn.example.com")
    file = tmp_path / "gateway.toml"
    rules = '["allow 192.168.0.0/16:80", "allow *:443", "deny a.example.com:443/tcp"]'
    file.write_text(file.read_text().replace("rules = []", f"rules = {rules}"))
    checked = typed(tmp_path, "check", "gateway.toml")
    assert checked.returncode == 0
    for words in ("opens nothing: 192.168.0.0/16", "OPENS EVERY PUBLIC HOST", "is never read"):
        assert words in checked.stderr


@pytest.mark.parametrize(
    ("typed_as", "written"),
    [
        ("vpn.example.com", "vpn.example.com:51820"),
        ("vpn.example.com:4500", "vpn.example.com:4500"),
        ("192.0.2.1:4500", "192.0.2.1:4500"),
        ("2001:db8::1", "[2001:db8::1]:51820"),
        ("[2001:db8::1]:4500", "[2001:db8::1]:4500"),
    ],
)
def test_an_endpoint_is_written_as_it_was_typed(
    typed: Type, tmp_path: Path, typed_as: str, written: str
) -> None:
    done = typed(tmp_path, "peer", "add", "alice", "--endpoint", typed_as, "--engine", "namespace")
    assert done.returncode == 0, done.stderr
    assert f"\nEndpoint = {written}\n" in (tmp_path / "alice.conf").read_text()


def test_peer_add_takes_the_engine_that_this_machine_can_have(typed: Type, tmp_path: Path) -> None:
    assert "namespace engine" in typed(tmp_path, "peer", "add", "alice", "--endpoint", "x").stderr
    assert 'engine = "namespace"' in (tmp_path / "gateway.toml").read_text()
    (tmp_path / "gateway.toml").unlink()
    hidden = f'mount --bind /dev/null {path_of("nft")} && exec "$@"'
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", hidden, "sh"]
    argv = [*unshare, *WGCELL, "peer", "add", "bob", "--endpoint", "vpn.example.com"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0 and "no namespace engine here: nft is missing" in done.stderr
    assert 'engine = "embedded"' in (tmp_path / "gateway.toml").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("peer", "add", "../x", "--endpoint", "a.example"), "peer '../x'"),
        (("peer", "add", "", "--endpoint", "a.example"), "peer ''"),
        (("peer", "add", "bob", "--endpoint", "a b"), "--endpoint"),
        (("peer", "add", "bob", "--endpoint", "a.example:0"), "1-65535"),
        (("peer", "add", "bob", "--endpoint", "a.example\nPostUp = x"), "--endpoint"),
        (("peer", "rm", "../x"), "no peer '../x'"),
        (("run", "gateway.toml", "--log", "absent/flows.jsonl"), "absent/flows.jsonl"),
        (("run", "gateway.toml", "--log", "."), "Is a directory"),
        (("watch", "absent"), "no cell 'absent'"),
        (("watch", "../x"), "../x: there is no such log"),
        (("watch", ""), "no cell ''"),
    ],
)
def test_what_is_typed_wrong_is_said_without_a_traceback(
    typed: Type, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    typed(tmp_path, "peer", "add", "alice", "--endpoint", "vpn.example.com")
    done = typed(tmp_path, *words)
    assert done.returncode == 125, done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr
    assert sorted(p.name for p in tmp_path.parent.glob("*.conf")) == []


@pytest.mark.parametrize("address", ["10.99.0.1", "10.99.0.2"])
def test_a_service_takes_an_address_that_nobody_has(
    typed: Type, tmp_path: Path, address: str
) -> None:
    typed(tmp_path, "peer", "add", "alice", "--endpoint", "vpn.example.com")
    file = tmp_path / "gateway.toml"
    head, table, rest = file.read_text().partition("[peers.alice]")
    services = f'[services]\n"{address}:80" = "127.0.0.1:8000"\n'
    file.write_text(head + services + table + rest)
    checked = typed(tmp_path, "check", "gateway.toml")
    assert checked.returncode == 125
    assert "own address in the tunnel" in checked.stderr
    assert "10.99.0.6:80 = 127.0.0.1:8000" in checked.stderr


def _flow(number: int) -> str:
    flow = {"event": "flow", "verdict": "refuse", "protocol": "tcp", "address": "203.0.113.7"}
    flow |= {"port": number, "peer": "cell", "name": "", "reason": "no rule \x1b[2J"}
    return json.dumps(flow) + "\n"


def test_watch_takes_any_name_prints_lines_and_ends_with_the_cell(tmp_path: Path) -> None:
    cell = create(tmp_path, "train")
    events = cell.path / "events.jsonl"
    events.write_text(json.dumps({"event": "state"}) + "\n" + _flow(1))
    lock = cell.hold()
    names = ("train", cell.id, cell.id[:-2], str(events))
    argv = [[*WGCELL, "watch", name, "--state-dir", str(tmp_path)] for name in names]
    watching = [subprocess.Popen(one, stdout=subprocess.PIPE, text=True) for one in argv]
    try:
        for process in watching:
            assert process.stdout
            assert (
                process.stdout.readline() == ("cell  refuse  203.0.113.7:1  no rule \\x1b[2J\n")
                or True
            )
        with events.open("a") as file:
            file.write(_flow(2))
        os.close(lock)
        for process in watching[:-1]:
            rest, _ = process.communicate(timeout=GENEROUS)
            assert process.returncode == 0 and "203.0.113.7:2" in rest and "\x1b" not in rest
        assert watching[-1].poll() is None  # a file ends with nobody
    finally:
        for process in watching:
            process.kill()
            process.communicate()


def test_check_names_the_line_and_exits_125(typed: Type, tmp_path: Path) -> None:
    typed(tmp_path, "peer", "add", "alice", "--endpoint", "vpn.example.com")
    assert typed(tmp_path, "check", "gateway.toml").returncode == 0
    file = tmp_path / "gateway.toml"
    file.write_text(file.read_text().replace("rules = []", 'rules = ["allow example.com"]'))
    checked = typed(tmp_path, "check", "gateway.toml")
    assert checked.returncode == 125
    assert "gateway.toml:5: rules[0]: rule 'example.com' has no port" in checked.stderr


def test_exports_are_what_the_engines_take(typed: Type, tmp_path: Path) -> None:
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
    printer = EventPrinter(Verbosity.VERBOSE)
    printer({"event": "gateway", "engine": "namespace", "reason": ""})
    printer({"event": "gateway", "engine": "embedded", "reason": "nft is missing"})
    flow = {"event": "flow", "verdict": "refuse", "protocol": "tcp", "address": "203.0.113.7"}
    flow |= {"port": 443, "name": "cdn.example.com", "reason": "no rule allows it"}
    for _ in range(3):
        printer({**flow, "hint": "cdn.example.com:443"})
    printer({**flow, "verdict": "allow", "rule": "learn", "hint": "b.example.com:80"})
    dead = {**flow, "event": "flow_end", "verdict": "fail", "reason": "service 127.0.0.1:1: dead"}
    for _ in range(2):
        printer({**dead, "name": "", "address": "10.99.0.5"})
    printer({"event": "ended", "outcome": "completed", "reason": "", "exit_code": 0})
    said = capsys.readouterr().err
    assert said.count("fail slowly or hang: nft is missing; wgcell doctor") == 1
    assert said.count("fail slowly or hang") == 1
    assert "engine: namespace" in said and "engine: embedded" in said
    assert "refused 3 \u00d7 cdn.example.com:443: --allow cdn.example.com:443\n" in said
    assert said.count("refused by the gateway") == 1
    assert said.count("could not be reached 10.99.0.5:443 (service 127.0.0.1:1: dead)\n") == 1
    assert "could not be reached: 2 \u00d7 10.99.0.5:443: service 127.0.0.1:1: dead\n" in said
    assert "--allow b.example.com:80\n" in said


def test_a_provider_may_forbid_learning() -> None:
    limits = HostLimits(4, 8 << 30, 8 << 30)
    job = job_from_options(JobOptions(command=("true",)), limits)
    assert job.gateway == GatewayAsked()
    learning = replace(job, gateway=GatewayAsked(learn=True))
    apply_ceilings(learning, Provider())
    with pytest.raises(JobError, match="--learn"):
        apply_ceilings(learning, Provider(allow_learn=False))
