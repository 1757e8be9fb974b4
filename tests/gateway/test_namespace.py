"""The namespace engine where it can't be: said, and with ``auto`` the embedded one instead."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import pytest
from tests.gateway.conftest import CLIENT, SERVER, Gateway, config_of
from tests.gateway.test_door import LOOPBACK, connect

from wgcell.cell import consent
from wgcell.gateway.keys import decode_key, public_key

pytestmark = pytest.mark.namespaces

NO_TOOLS = ("env", "PATH=/nonexistent")
# A user namespace that may have none within it.
NO_NAMESPACES = ("unshare", "--user", "--map-root-user", "sh", "-c")
NO_NAMESPACES += ('echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"', "sh")
# One whose owner may not have a network: the failure comes after the first step.
NO_NETWORKS = ("unshare", "--user", "--map-root-user", "sh", "-c")
NO_NETWORKS += ('echo 0 > /proc/sys/user/max_net_namespaces && exec "$@"', "sh")
NO_TUN = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c")
NO_TUN += ('mount -t tmpfs none /dev/net && exec "$@"', "sh")


@contextlib.contextmanager
def started(engine: str, prefix: tuple[str, ...]) -> Iterator[Gateway]:
    gateway = Gateway(config_of(), prefix, [engine])
    try:
        yield gateway
    finally:
        gateway.close()


@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        (NO_TOOLS, "ip is missing"),
        (NO_NAMESPACES, "this process can't have a user namespace: No space left on device"),
        (NO_NETWORKS, "this process can't have a network namespace: No space left on device"),
        (NO_TUN, "this kernel has no WireGuard, and /dev/net/tun: No such file or directory"),
    ],
)
def test_where_it_can_not_be_it_says_why(prefix: tuple[str, ...], words: str) -> None:
    with started("namespace", prefix) as asked:
        assert asked.first["event"] == "fault"
        assert asked.first["detail"].startswith(words)
        assert "\n  " in asked.first["detail"]  # what mends it
        assert asked.close() == 125
    with started("auto", prefix) as other, connect(LOOPBACK, other.first["port"]) as sock:
        assert (other.first["event"], other.first["engine"]) == ("ready", "embedded")
        assert other.first["reason"] == words
        mine, theirs = decode_key(CLIENT), decode_key(public_key(SERVER))
        asyncio.run(consent.obtain(sock, mine, theirs, timeout=4))


def test_where_it_can_be_auto_is_it() -> None:
    with started("auto", ()) as gateway, connect(LOOPBACK, gateway.first["port"]) as sock:
        assert (gateway.first["engine"], gateway.first["reason"]) == ("namespace", "")
        mine, theirs = decode_key(CLIENT), decode_key(public_key(SERVER))
        asyncio.run(consent.obtain(sock, mine, theirs, timeout=4))
