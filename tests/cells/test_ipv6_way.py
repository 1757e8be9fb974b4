"""A cell's own gateway has both families: what an IPv6 rule opens, and what is said without a way.

The cell runs in a network namespace whose only way to IPv6 is an address of its own.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]

SETUP = """
set -e
ip link set lo up
ip addr add 2001:db8::1/128 dev lo nodad
"$1" -m http.server --bind 2001:db8::1 8080 >/dev/null 2>&1 &
trap "kill $!" EXIT
shift
"$@"
"""
TRY = """
import socket, urllib.request as u
print(u.urlopen('http://[2001:db8::1]:8080/', timeout=30).status)
for address in ('2001:db8::1', '2001:db8:f::1'):
    try:
        with socket.create_connection((address, 8081), 5) as sock:
            sock.sendall(b'x')
            print('ended' if not sock.recv(1) else 'answered')
    except OSError:
        print('refused')
for _ in '1':
    print(*sorted(line.split()[-1] for line in open('/proc/net/if_inet6')))
"""


@pytest.mark.parametrize("engine", ["namespace", "embedded"])
def test_an_ipv6_rule_opens_what_there_is_a_way_to(
    wgcell: str, tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config/wgcell").mkdir(parents=True)
    (tmp_path / "config/wgcell/config.toml").write_text(f'gateway_engine = "{engine}"\n')
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    argv = [wgcell, "run", "--name", "t", "--state-dir", str(tmp_path / "cells")]
    argv += ["--allow", "[2001:db8::1]:8080", "--allow", "[2001:db8:f::1]:8081", "--"]
    done = subprocess.run(
        ["unshare", "-n", "sh", "-c", SETUP, "sh", "python3", *argv, "python3", "-c", TRY],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    status, own, without, *_ = done.stdout.splitlines()
    assert status == "200"
    assert (own, without) in {("refused", "refused"), ("ended", "ended")}
    # The card is in another namespace, and has none there either.
    assert "eth0" not in done.stdout
    assert done.stderr.count("opens nothing: this machine has no way to 2001:db8:f::1") == 1
    (folder,) = (tmp_path / "cells").glob("t-*")
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    flows = {
        (event["address"], event["port"]): event["verdict"]
        for event in events
        if event["event"] == "flow"
    }
    assert flows[("2001:db8::1", 8080)] == "allow"
    assert flows[("2001:db8::1", 8081)] == "refuse"
    assert json.loads((folder / "result.json").read_text())["relay"]["refused"] == {}
