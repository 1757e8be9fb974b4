"""The namespace engine where it can't be: said, and with ``auto`` the embedded one instead."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.gateways import CLIENT, LOOPBACK, SERVER, Gateway, config_of
from tests.support.waiting import forever, paced

from wgcell.cell import consent
from wgcell.cell.endpoint import connect
from wgcell.gateway import __main__ as process
from wgcell.gateway import words
from wgcell.gateway.engines.nftables import private, transparent
from wgcell.gateway.model.flow import Flow
from wgcell.gateway.model.keys import decode_key, public_key
from wgcell.gateway.model.parsing import parse_config
from wgcell.gateway.proxy.udp import splice_datagrams
from wgcell.programs import path_of

pytestmark = pytest.mark.namespaces

# A user namespace that may have none within it.
NO_NAMESPACES = ("unshare", "--user", "--map-root-user", "sh", "-c")
NO_NAMESPACES += ('echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"', "sh")
# One whose owner may not have a network: the failure comes after the first step.
NO_NETWORKS = ("unshare", "--user", "--map-root-user", "sh", "-c")
NO_NETWORKS += ('echo 0 > /proc/sys/user/max_net_namespaces && exec "$@"', "sh")
# No file is where nft is.
NO_TOOLS = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c")
NO_TOOLS += (f'mount --bind /dev/null {path_of("nft")} && exec "$@"', "sh")
NO_TUN = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c")
NO_TUN += ('mount -t tmpfs none /dev/net && exec "$@"', "sh")


# A target that says its port, and to whoever speaks to it more than anybody can read, for 3 s.
ENDLESS = """
import socket, struct, time
target = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
target.bind(("127.0.0.1", 0))
target.settimeout(5)
print(target.getsockname()[1], flush=True)
_, source = target.recvfrom(100)
end = time.monotonic() + 3
while time.monotonic() < end:
    target.sendmsg([bytes(60)], [(socket.IPPROTO_UDP, 103, struct.pack("H", 1))], 0, source)
"""


def open_sockets(pid: int) -> set[str]:
    """The inodes of a process's sockets."""
    found = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since it was listed
            found.add(str(path.readlink()))
    return {link[8:-1] for link in found if link.startswith("socket:")}


def udp_sockets() -> set[str]:
    """The inodes of this network's UDP sockets of IPv4."""
    return {line.split()[9] for line in Path("/proc/net/udp").read_text().splitlines()[1:]}


def consents(sock: socket.socket) -> None:
    mine, theirs = decode_key(CLIENT), decode_key(public_key(SERVER))
    asyncio.run(consent.obtain(sock, mine, theirs, timeout=4))


@contextlib.contextmanager
def started(engine: str, prefix: tuple[str, ...] = (), **changes: Any) -> Iterator[Gateway]:
    gateway = Gateway(config_of(**changes), prefix, [engine])
    try:
        yield gateway
    finally:
        gateway.close()


@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        (NO_TOOLS, "nft is missing"),
        (NO_NAMESPACES, "this process can't have a user namespace: No space left on device"),
        (NO_NETWORKS, "this process can't have a network namespace: No space left on device"),
        (NO_TUN, "this kernel has no WireGuard, and /dev/net/tun: No such file or directory"),
    ],
)
def test_where_it_can_not_be_it_says_why(prefix: tuple[str, ...], words: str) -> None:
    with started("namespace", prefix) as asked:
        assert asked.first["event"] == "fault"
        assert asked.first["detail"].startswith(words)
        assert "\n  " in asked.first["detail"]  # the fix
        assert asked.close() == 125
    with started("auto", prefix) as other, connect(LOOPBACK, other.first["port"]) as sock:
        assert (other.first["event"], other.first["engine"]) == ("ready", "embedded")
        assert other.first["reason"] == words
        # And nothing of the first try listens any more.
        assert len(open_sockets(other.process.pid) & udp_sockets()) == 1
        consents(sock)


def test_where_it_can_be_auto_is_it() -> None:
    with started("auto") as gateway, connect(LOOPBACK, gateway.first["port"]) as sock:
        assert (gateway.first["engine"], gateway.first["reason"]) == ("namespace", "")
        consents(sock)


@pytest.mark.parametrize("engine", ["namespace", "auto"])
def test_a_port_that_is_taken_is_named(engine: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        with started(engine, listen=f"127.0.0.1:{port}") as gateway:
            assert gateway.first["event"] == "fault"
            assert f"UDP port {port}: Address already in use" in gateway.first["detail"]


def test_a_port_below_1024_is_bound_while_this_process_still_may() -> None:
    if os.geteuid() != 0:
        return
    with started("namespace", listen="127.0.0.1:443") as gateway, connect(LOOPBACK, 443) as sock:
        assert gateway.first["event"] == "ready", gateway.first
        consents(sock)


def test_another_address_of_such_a_port_takes_a_restart_and_changes_nothing() -> None:
    if os.geteuid() != 0:
        return
    with started("namespace", listen="127.0.0.1:443") as gateway:
        for listen in ("127.0.0.2:443", "127.0.0.1:444"):
            gateway.tell(config_of(listen=listen))
            assert "443" in gateway.event("fault")["detail"] or listen.endswith("444")
        with connect(LOOPBACK, 443) as sock:
            consents(sock)


def test_a_machine_without_ipv6_has_one_family(monkeypatch: pytest.MonkeyPatch) -> None:
    made = socket.socket

    def without(family: int = socket.AF_INET, *rest: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(97, "Address family not supported by protocol")
        return made(family, *rest)

    assert transparent.families() == [socket.AF_INET, socket.AF_INET6]
    monkeypatch.setattr(transparent.socket, "socket", without)
    assert transparent.families() == [socket.AF_INET]


@pytest.mark.alone
def test_a_target_that_sends_without_end_holds_up_nobody() -> None:
    """Its socket always has more: whoever reads it must let the others have their turn."""

    class Peers:
        def __init__(self) -> None:
            self.first = True

        async def read(self, count: int, /) -> bytes:
            if not self.first:
                await forever()
            self.first = False
            return b"begin"

        def write(self, data: bytes, /) -> None:
            pass

        async def drain(self) -> None:
            pass

        def write_eof(self) -> None:
            pass

    async def measured(port: int) -> float:
        flow = Flow(1, "cell", "udp", ipaddress.ip_address("127.0.0.1"), port)
        joined = asyncio.create_task(splice_datagrams(Peers(), flow, True))
        worst, end = 0.0, time.monotonic() + 1
        while time.monotonic() < end:
            begun = time.monotonic()
            await paced(0.001)
            worst = max(worst, time.monotonic() - begun)
        joined.cancel()
        await asyncio.gather(joined, return_exceptions=True)
        assert flow.bytes_in > 1000
        return worst

    with subprocess.Popen([sys.executable, "-c", ENDLESS], stdout=subprocess.PIPE) as target:
        assert target.stdout is not None
        try:
            assert asyncio.run(measured(int(target.stdout.readline()))) < 0.2
        finally:
            target.kill()


@pytest.mark.parametrize("error", [OSError(1, "Operation not permitted"), RuntimeError("threads")])
def test_whatever_the_namespace_lacks_the_embedded_engine_is_there(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    class Lacking:
        def __init__(self, *_: object, **__: object) -> None:
            raise error

    monkeypatch.setattr(private, "PrivateHost", Lacking)
    told: list[words.Event] = []
    config = parse_config(config_of())

    async def body() -> None:
        engine = await process.started(config, "auto", "", told.append, lambda: None)
        await engine.stop()
        with pytest.raises(type(error)):
            await process.started(config, "namespace", "", told.append, lambda: None)

    asyncio.run(body())
    (ready,) = told
    assert isinstance(ready, words.Ready)
    assert (ready.engine, ready.reason) == ("embedded", str(error))


def test_a_namespace_begins_with_none_of_the_machines_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That they are written; a machine that has them can't be made here. See test_engines.py."""
    written: dict[str, str] = {}
    monkeypatch.setattr(private, "sysctl", written.__setitem__)
    monkeypatch.setattr(private, "run_tool", lambda *_, **__: "")
    private.prepare_namespace()
    for of in ("all", "default"):
        for name in ("src_valid_mark", "rp_filter", "route_localnet", "forwarding"):
            assert written[f"net/ipv4/conf/{of}/{name}"] == "0"
