"""The nftables engine on a host context that is none: its steps, and what a failed start leaves."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.gateways import config_of

from wgcell.errors import HostError
from wgcell.gateway import words
from wgcell.gateway.engines.nftables import engine as module
from wgcell.gateway.engines.nftables.device import Device
from wgcell.gateway.engines.nftables.engine import NftablesEngine
from wgcell.gateway.model.config import GatewayConfig
from wgcell.gateway.model.parsing import parse_config

STEPS = (
    "claim",
    "_set_up",
    "_open",
    "redirect_socket",
    "icmp_socket",
    "open_sockets",
    "PendingSyns",
)
"""The work of a start in its order, by the names of what the host runs."""


class FakeHost:
    """Runs nothing and makes unconnected sockets; fails at one step."""

    name, interface, any_address, proxies_udp, router = "fake", "fake0", True, True, True

    def __init__(self, fails_at: str = "") -> None:
        self.fails_at = fails_at
        self.steps: list[str] = []
        self.closed = 0

    def _step(self, name: str) -> None:
        self.steps.append(name)
        if name == self.fails_at:
            raise HostError(name)

    def _socket(self) -> socket.socket:
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def run(self, work: Callable[..., Any], *args: Any) -> Any:
        self._step(work.__name__)
        if work.__name__ == "_open":
            return [], []
        if work.__name__ == "open_sockets":
            return self._socket(), self._socket()
        makes_one = work.__name__ in ("redirect_socket", "icmp_socket", "PendingSyns")
        return self._socket() if makes_one else None

    async def run_aside(self, work: Callable[..., Any], *args: Any) -> Any:
        return self.run(work, *args)

    def claim(self, config: GatewayConfig) -> None:
        self._step("claim")

    def prepare(self, config: GatewayConfig, device: Device) -> None:
        raise AssertionError("only within `run`")

    def place(self, config: GatewayConfig) -> tuple[str, int]:
        return config.listen

    def ruleset(self, config: GatewayConfig) -> str:
        return ""

    def settings(self, config: GatewayConfig) -> str:
        return ""

    def redirect_sockets(self, config: GatewayConfig) -> list[socket.socket]:
        return []

    def destination(self, accepted: socket.socket, place: tuple[str, int]) -> Any:
        raise AssertionError("no connection comes")

    @contextlib.contextmanager
    def changing(self, before: GatewayConfig, after: GatewayConfig) -> Iterator[None]:
        self._step("changing")
        try:
            yield
        except BaseException:
            self.steps.append("changed back")
            raise

    def configuring(self, config: GatewayConfig, device: Device) -> Any:
        return contextlib.nullcontext()

    def close(self, device: Device) -> None:
        self.closed += 1


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("step", STEPS)
def test_a_start_that_fails_half_way_leaves_nothing(step: str) -> None:
    told: list[words.Event] = []

    async def body() -> None:
        host = FakeHost(step)
        before = open_descriptors()
        with pytest.raises(HostError, match=step):
            await NftablesEngine(parse_config(config_of()), told.append, host).start()
        assert host.closed == 1
        assert host.steps[-1] == step
        await asyncio.sleep(0)
        assert open_descriptors() == before
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(body())
    assert not told


def test_the_steps_of_a_start_and_of_an_end() -> None:
    told: list[words.Event] = []

    async def body() -> None:
        host = FakeHost()
        before = open_descriptors()
        engine = NftablesEngine(parse_config(config_of()), told.append, host)
        await engine.start()
        assert list(dict.fromkeys(host.steps)) == list(STEPS)
        assert [type(event) for event in told] == [words.Ready]
        await engine.stop()
        assert host.closed == 1
        assert open_descriptors() == before

    asyncio.run(body())


def test_a_change_that_fails_is_taken_back() -> None:
    """The former rules are applied again, and the host returns to its former place."""

    async def body() -> None:
        host = FakeHost()
        engine = NftablesEngine(parse_config(config_of()), lambda event: None, host)
        await engine.start()
        del host.steps[:]
        host.fails_at = "_configure"
        services = {"10.99.0.5:80": "127.0.0.1:8000"}
        with pytest.raises(HostError, match="_configure"):
            await engine.apply(parse_config(config_of(services=services)))
        took_back = ["_apply_rules", "_configure"]
        assert host.steps == ["changing", *took_back, *took_back, "changed back"]
        # What was half changed is set anew by the next change, whatever that is about.
        host.fails_at = ""
        del host.steps[:]
        await engine.apply(parse_config(config_of(rules=["allow 203.0.113.7:80"])))
        assert host.steps[:3] == ["changing", *took_back]
        await engine.stop()

    asyncio.run(body())


def test_other_rules_touch_neither_wireguard_nor_the_interface() -> None:
    async def body() -> None:
        host = FakeHost()
        engine = NftablesEngine(parse_config(config_of()), lambda event: None, host)
        await engine.start()
        del host.steps[:]
        await engine.apply(parse_config(config_of(rules=["allow 203.0.113.7:80"])))
        assert "_apply_rules" in host.steps and "_configure" not in host.steps
        await engine.stop()

    asyncio.run(body())


def test_a_missing_tool_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.programs, "find", lambda tool: None)
    host = FakeHost()
    with pytest.raises(HostError, match="ip is missing"):
        asyncio.run(NftablesEngine(parse_config(config_of()), print, host).start())
    assert not host.steps
