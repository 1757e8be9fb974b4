"""When a cell gets a fresh socket, and where that may lead."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.waiting import forever, soon

from wgcell.cell import consent, renewal
from wgcell.cell.core.events import AddressMet
from wgcell.cell.events import EventLog
from wgcell.cell.renewal import Renewal
from wgcell.cell.roaming import Roaming, first_consenting, reach
from wgcell.errors import ConsentError, EndpointError

A, B, C, D, E, F = (ip_address(f"192.0.2.{n}") for n in range(1, 7))
OWN, OTHER = "198.51.100.1", "198.51.100.2"


def way() -> Renewal:
    return Renewal(A, OWN, 100.0)


@pytest.mark.parametrize(
    ("source", "unanswered", "now", "due"),
    [
        (OWN, 0, 1000.0, False),
        (OWN, 1, 1000.0, False),
        (OWN, 2, 1000.0, True),
        (OWN, 2, 129.0, False),
        (OTHER, 0, 101.0, True),
        (OTHER, 2, 101.0, True),
        (None, 2, 1000.0, False),
        (None, 0, 1000.0, False),
    ],
)
def test_when_a_socket_is_due(source: str | None, unanswered: int, now: float, due: bool) -> None:
    assert way().due(source, unanswered, now) is due


@pytest.mark.parametrize(
    ("source", "found", "order"),
    [
        (OTHER, (B, A, C), (A, B, C)),  # the host has moved: most likely the endpoint has not
        (OWN, (B, A, C), (B, C, A)),  # nobody answers: it may be elsewhere
        (OTHER, (B, C), (B, C)),
        (OWN, (A,), (A,)),
        (OWN, (), ()),
        (OWN, (B, C, D, E, F, A), (B, C, D, E, A)),
    ],
)
def test_in_which_order(
    source: str, found: tuple[IPv4Address, ...], order: tuple[IPv4Address, ...]
) -> None:
    assert way().order(found, source) == order


@pytest.mark.parametrize(
    ("asked", "after", "due"),
    [
        (True, renewal.LOOK, False),
        (True, renewal.AGAIN + 1, True),
        (False, renewal.LOOK, True),  # no way, or no name: a moved host is on its way up
    ],
)
def test_a_moved_host_does_not_ask_strangers_without_a_pause(
    asked: bool, after: float, due: bool
) -> None:
    one = way()
    assert one.due(OTHER, 0, 101.0)
    one.refused(101.0, asked=asked)
    assert one.due(OTHER, 0, 101.0 + after) is due


@given(found=st.lists(st.sampled_from([A, B, C, D, E, F]), unique=True), moved=st.booleans())
def test_only_what_was_found_is_tried_and_only_who_consented_need_not(
    found: list[IPv4Address], moved: bool
) -> None:
    one = way()
    tried = one.order(found, OTHER if moved else OWN)
    assert set(tried) <= set(found)
    assert len(tried) <= renewal.MOST_ASKED + 1
    assert [address for address in tried if not one.must_consent(address)] == [
        address for address in tried if address == A
    ]


# The supervisor's part, with a relay that writes down what it is handed.


class Relay:
    def __init__(self) -> None:
        self.handed: list[tuple[tuple[str, int], bool]] = []

    def replace_udp(self, fresh: socket.socket, *, met: bool) -> None:
        with fresh:
            self.handed.append((fresh.getpeername(), met))


def renewed(
    tmp_path: Path,
    found: Callable[[], tuple[Any, ...]],
    obtain: Callable[..., Awaitable[None]],
    monkeypatch: pytest.MonkeyPatch,
    source: str = OWN,
) -> tuple[Relay, list[dict[str, Any]], Renewal]:
    """One renewal of a cell at 127.0.0.1:9 on this machine's loopback."""
    relay, told = Relay(), []
    log = EventLog(tmp_path / "events.jsonl", told.append)
    vpn = SimpleNamespace(endpoint_port=9, private_key=b"", peer_public_key=b"", preshared_key=None)
    known = Renewal(ip_address("127.0.0.1"), source, 0.0)
    monkeypatch.setattr(consent, "obtain", obtain)
    fed: list[Any] = []
    roaming = Roaming(relay, vpn, known, log.log_bounded, fed.append, found)  # type: ignore[arg-type]
    asyncio.run(roaming.renew(OWN))
    log.close()
    assert fed == [AddressMet()] * any(met for _, met in relay.handed), "the guest's clock"
    return relay, told, known


HERE, THERE, ELSEWHERE = (ip_address(f"127.0.0.{n}") for n in (1, 2, 3))


async def consents(sock: socket.socket, *keys: object) -> None:
    """Whoever it is."""


async def silent(sock: socket.socket, *keys: object) -> None:
    raise ConsentError(f"no consent from {sock.getpeername()[0]}")


async def must_not_be_asked(sock: socket.socket, *keys: object) -> None:
    raise AssertionError("asked")


def test_the_same_endpoint_need_not_consent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay, told, _ = renewed(tmp_path, lambda: (HERE,), must_not_be_asked, monkeypatch, OTHER)
    assert relay.handed == [(("127.0.0.1", 9), False)]
    assert told[-1]["event"] == "socket_renewed"


def test_another_address_consents_first_and_the_relay_is_told_that_it_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay, told, known = renewed(tmp_path, lambda: (THERE,), consents, monkeypatch)
    assert relay.handed == [(("127.0.0.2", 9), True)]
    assert known.address == THERE
    assert [event["event"] for event in told] == ["consent_asked", "socket_renewed"]


def test_an_address_that_does_not_consent_is_not_handed_to_the_relay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    relay, told, known = renewed(tmp_path, lambda: (THERE, ELSEWHERE), silent, monkeypatch)
    assert relay.handed == []
    assert known.address == HERE
    assert told[-1]["event"] == "endpoint_refused"
    assert "127.0.0.2" in told[-1]["reason"] and "127.0.0.3" in told[-1]["reason"]
    assert not known.due(OWN, 2, known.at + renewal.AGAIN)
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_name_with_many_addresses_has_few_of_them_asked_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each costs a stranger three initiations, and the cell 14 s."""
    asked = []

    async def silent_too(sock: socket.socket, *keys: object) -> None:
        asked.append(sock.getpeername()[0])
        raise ConsentError("no consent")

    monkeypatch.setattr(consent, "obtain", silent_too)
    many = tuple(ip_address(f"127.0.1.{n}") for n in range(1, 200))
    log = EventLog(tmp_path / "events.jsonl", lambda event: None)
    vpn = SimpleNamespace(endpoint_port=9, private_key=b"", peer_public_key=b"", preshared_key=None)
    with pytest.raises(ConsentError):
        asyncio.run(first_consenting(many, vpn, log.log_bounded))  # type: ignore[arg-type]
    log.close()
    assert asked == [f"127.0.1.{n}" for n in range(1, renewal.MOST_ASKED + 1)]


def test_the_next_address_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def only_elsewhere(sock: socket.socket, *keys: object) -> None:
        if sock.getpeername()[0] != "127.0.0.3":
            await silent(sock)

    relay, _, known = renewed(tmp_path, lambda: (THERE, ELSEWHERE), only_elsewhere, monkeypatch)
    assert relay.handed == [(("127.0.0.3", 9), True)]
    assert known.address == ELSEWHERE


def test_a_name_that_leads_where_no_cell_may_go_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused() -> tuple[Any, ...]:
        raise EndpointError("the endpoint 192.168.9.9 is private")

    relay, told, _ = renewed(tmp_path, refused, must_not_be_asked, monkeypatch)
    assert relay.handed == []
    assert told == [told[0]] and "192.168.9.9" in told[0]["reason"]


def test_a_resolver_that_hangs_does_not_keep_an_ended_cell_from_going(tmp_path: Path) -> None:
    """Whoever owns the name decides how long it takes to resolve."""
    entered, gate = threading.Event(), threading.Event()
    waited: list[bool] = []

    def hangs() -> tuple[Any, ...]:
        entered.set()
        waited.append(gate.wait(20))
        raise EndpointError("it does not resolve")

    async def body() -> None:
        vpn: Any = SimpleNamespace(endpoint_port=9)
        nothing: Any = lambda *args, **fields: None  # noqa: E731
        roaming = Roaming(Relay(), vpn, way(), nothing, nothing, hangs)
        renewing = asyncio.create_task(roaming.renew(OWN))
        await soon(entered.is_set)
        renewing.cancel()
        await asyncio.gather(renewing, return_exceptions=True)

    asyncio.run(body())
    gate.set()
    assert waited in ([], [True])


def test_a_cell_that_ends_while_it_asks_leaves_no_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asyncio.Event()

    async def waits(sock: socket.socket, *keys: object) -> None:
        asked.set()
        await forever()

    async def body() -> None:
        monkeypatch.setattr(consent, "obtain", waits)
        nothing: Any = lambda *args, **fields: None  # noqa: E731
        vpn = SimpleNamespace(
            endpoint_port=9, private_key=b"", peer_public_key=b"", preshared_key=None
        )
        before = len(os.listdir("/proc/self/fd"))
        task = asyncio.create_task(reach(HERE, vpn, nothing))  # type: ignore[arg-type]
        await asked.wait()
        assert len(os.listdir("/proc/self/fd")) == before + 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert len(os.listdir("/proc/self/fd")) == before

    asyncio.run(body())
