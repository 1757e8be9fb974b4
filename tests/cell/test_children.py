"""A relay starts where no pid namespace can be made, too, and does not pretend that it has one."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import shutil
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.support.waiting import lulled, soon

from wgcell import programs
from wgcell.cell import children
from wgcell.cell.children import GatewayProcess, RelayProcess
from wgcell.errors import HostError, LaunchError, PolicyError
from wgcell.gateway import words
from wgcell.relay import control as relay_words

KEY = base64.b64encode(bytes(32)).decode()
CONFIGURATION = relay_words.Configure(bytes(32), bytes(32), mtu=1420)


async def started() -> tuple[bool, dict[str, str], int]:
    """Whether it is sealed, what is missing, and the exit code of its end in order."""
    nic, ours = socket.socketpair()
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.connect(("127.0.0.1", 9))
    with ours, udp:
        relay = await RelayProcess.start(nic, udp, CONFIGURATION)
        code = await relay.quit()
        relay.close()
    return relay.sealed, dict(relay.missing), code


@pytest.mark.process
def test_with_every_wall() -> None:
    sealed, missing, code = asyncio.run(started())
    assert sealed and set(missing) <= {"landlock"} and code == 0


@pytest.mark.parametrize("unshare", ["none", "refused"])
def test_without_a_pid_namespace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unshare: str
) -> None:
    shell = shutil.which("sh")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(programs, "SYSTEM", ())
    if unshare == "refused":
        refusing = tmp_path / "unshare"
        refusing.write_text(
            f"#!{shell}\necho 'unshare: unshare failed: Operation not permitted' >&2\nexit 1\n"
        )
        refusing.chmod(0o755)
    sealed, missing, code = asyncio.run(started())
    assert not sealed and "unshare" in missing["namespaces"] and code == 0
    assert os.listdir(tmp_path) == (["unshare"] if unshare == "refused" else [])


TALKS = """
import json, sys
ready = {"event": "ready", "host": "127.0.0.1", "port": 1, "peers": {}}
ready |= {"engine": "embedded", "reason": ""}
print(json.dumps(ready), flush=True)
sys.stderr.write("a" * (4 << 20))
print(json.dumps({"event": "applied"}), flush=True)
sys.stdin.read()
"""


def test_a_gateway_that_writes_errors_does_not_stand_still(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(children, "_PYTHON", (sys.executable, "-c", TALKS))

    async def listen() -> list[Any]:
        gateway = await GatewayProcess.start(words.Configure(KEY))
        async with asyncio.timeout(10):
            event = await anext(gateway.flows())
        assert await gateway.quit() == 0
        return [event]

    assert asyncio.run(listen()) == [words.Applied()]


SAYS = """
import json, sys
ready = {"event": "ready", "host": "127.0.0.1", "port": 1, "peers": {}}
ready |= {"engine": "embedded", "reason": ""}
print(json.dumps(ready), flush=True)
sys.stdout.write(WORD + chr(10))
sys.stdout.flush()
sys.stdin.read()
"""


@pytest.mark.parametrize("word", ["'{}'", '\'{"event": "flow"}\'', "'a' * (1 << 20)", "chr(0)"])
def test_a_gateway_that_says_what_it_may_not_is_a_fault(
    monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    code = SAYS.replace("WORD", word)
    monkeypatch.setattr(children, "_PYTHON", (sys.executable, "-c", code))

    async def listen() -> None:
        gateway = await GatewayProcess.start(words.Configure(KEY))
        with pytest.raises(HostError, match="the gateway said"):
            await anext(gateway.flows())
        gateway.process.kill()
        await gateway.quit()

    asyncio.run(listen())


@pytest.mark.parametrize("word", [b"{}\n", b'{"event": "alive", "x": 1}\n', b"a" * (1 << 20)])
def test_a_relay_that_says_what_it_may_not_is_a_fault(word: bytes) -> None:
    async def listen() -> None:
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours, limit=relay_words.LONGEST_LINE)
        relay = RelayProcess(None, {}, True, ours, reader, writer)  # type: ignore[arg-type]
        with theirs:
            sending = asyncio.create_task(asyncio.to_thread(_send, theirs, word))
            with pytest.raises(HostError, match="the relay said"):
                await anext(relay.events())
            relay.close()
            await sending

    asyncio.run(listen())


def _send(sock: socket.socket, word: bytes) -> None:
    with contextlib.suppress(OSError):
        sock.sendall(word)


@pytest.mark.process
def test_a_relay_that_is_killed_as_it_starts_is_not_started_with_less() -> None:
    """Its keeper fails then, too, in words of its own."""

    async def killed() -> None:
        nic, ours = socket.socketpair()
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with ours, udp:
            starting = asyncio.create_task(RelayProcess.spawn(nic, udp))
            relays = await soon(lambda: [p for p, line in below() if b"wgcell.relay" in line][1:])
            os.kill(relays[0], signal.SIGKILL)
            with pytest.raises(LaunchError, match="the relay did not start"):
                await starting

    asyncio.run(killed())


def below() -> list[tuple[int, bytes]]:
    """The processes below this one, each with its command line."""
    found, waiting = [], [os.getpid()]
    while waiting:
        with contextlib.suppress(OSError):
            pid = waiting.pop()
            found.append((pid, Path(f"/proc/{pid}/cmdline").read_bytes()))
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
            waiting += map(int, children.split())
    return found[1:]


def test_a_gateway_whose_start_is_cancelled_is_dead() -> None:
    """As when the relay, or QEMU, comes to nothing meanwhile."""
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")

    async def cancelled() -> None:
        starting = asyncio.create_task(GatewayProcess.start(words.Configure(KEY)))
        before = children.read_text()
        (pid,) = await soon(lambda: set(children.read_text().split()) - set(before.split()))
        os.kill(int(pid), signal.SIGSTOP)  # it still loads, however long we take
        await lulled(0.05)  # by now it is waited for
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert set(children.read_text().split()) <= set(before.split())

    asyncio.run(cancelled())


def test_a_gateway_that_says_why_it_did_not_start_has_no_exit_code_beside_it() -> None:
    """The cell has one of its own; two in a line are taken for each other."""

    async def start() -> None:
        await GatewayProcess.start(words.Configure(KEY, listen="nowhere"))

    with pytest.raises(LaunchError) as caught:
        asyncio.run(start())
    assert "listen: found 'nowhere'" in str(caught.value)
    assert "exit code" not in str(caught.value)


def test_a_configuration_that_no_line_holds_is_refused_before_a_gateway_starts() -> None:
    rules = tuple(f"allow h{number}.{'a' * 60}.example.com:443" for number in range(16_000))
    with pytest.raises(PolicyError, match="a line of"):
        asyncio.run(GatewayProcess.start(words.Configure(KEY, rules=rules)))
