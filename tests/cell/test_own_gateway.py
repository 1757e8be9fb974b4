"""A cell's own gateway: what it is told, and what is looked at before anything starts."""

from __future__ import annotations

import socket

import pytest

from wgcell.cell.job import GatewayAsked
from wgcell.cell.own_gateway import OwnGateway, check_published
from wgcell.cell.provider import GatewayEngine
from wgcell.errors import HostError
from wgcell.gateway.model.parsing import configured


def test_what_a_job_asks_for_is_what_the_gateway_reads() -> None:
    asked = GatewayAsked(
        ("api.example.com:443",),
        (("10.99.0.5:80", "127.0.0.1:8000"), ("db", "127.0.0.1:5432")),
        publish=("8080:80", "[::1]:0:22"),
    )
    for six in (False, True):
        config = configured(OwnGateway.fresh(six=six).configuration(asked, ()))
        (peer,) = config.peers
        assert [one.text for one in peer.published] == ["127.0.0.1:8080:80", "[::1]:0:22"]
        places = [(str(one.address), one.port, one.name) for one in config.services]
        assert places == [("10.99.0.5", 80, ""), ("10.99.0.6", 5432, "db.internal")]
        assert len(peer.addresses) == 1 + six


@pytest.mark.parametrize("address", ["127.0.0.1", "[::1]"])
def test_a_port_in_use_is_an_error_before_anything_starts(address: str) -> None:
    family = socket.AF_INET6 if "[" in address else socket.AF_INET
    with socket.create_server((address.strip("[]"), 0), family=family) as taken:
        port = taken.getsockname()[1]
        asked = GatewayAsked(publish=("0:80", f"{address}:{port}:80"))
        with pytest.raises(HostError) as caught:
            check_published(asked, GatewayEngine.AUTO)
    assert caught.value.message == (
        f"--publish {address}:{port}:80: {address}:{port}: Address already in use"
    )
    assert caught.value.hint == "choose another port, or 0 for any that is free"
    check_published(asked, GatewayEngine.AUTO)  # free again


def test_the_embedded_engine_can_not_and_the_error_names_what_can() -> None:
    check_published(GatewayAsked(), GatewayEngine.EMBEDDED)
    with pytest.raises(HostError, match="needs the gateway's namespace engine") as caught:
        check_published(GatewayAsked(publish=("0:80",)), GatewayEngine.EMBEDDED)
    assert 'gateway_engine = "auto" or "namespace" in ' in caught.value.hint


def test_an_address_that_is_not_this_machines_is_named() -> None:
    with pytest.raises(HostError, match="8080: Cannot assign requested address"):
        check_published(GatewayAsked(publish=("192.0.2.77:8080:80",)), GatewayEngine.AUTO)
