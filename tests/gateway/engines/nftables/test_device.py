"""How wireguard-go is waited for."""

from __future__ import annotations

import socket
from pathlib import Path

from wgcell.gateway.engines.nftables import device


def test_a_socket_that_has_a_name_and_does_not_listen_is_waited_for(tmp_path: Path) -> None:
    """And it stays: wg(8) would delete it here, and wireguard-go end for that."""
    control = tmp_path / "wg.sock"
    assert not device._accepts(control)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(control))
        assert not device._accepts(control)
        assert control.exists()
        server.listen()
        assert device._accepts(control)
    assert not device._accepts(control)  # of one that was killed
