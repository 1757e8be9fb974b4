"""A requester's side in a network namespace: a gateway, a service behind it, a wg-quick file."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.vpnfiles import vpn_file

from wgcell.gateway.model.keys import generate_private_key, public_key

WGCELL = (sys.executable, "-P", "-m", "wgcell")
INSIDE = ("ip", "netns", "exec")


def ip(*words: str) -> None:
    """ip(8). Raises CalledProcessError."""
    subprocess.run(["ip", *words], check=True)


@contextmanager
def requester(
    namespace: str, folder: Path, endpoint: str, service: str, listen: str = "0.0.0.0"
) -> Iterator[Path]:
    """The wg-quick file of a cell whose ``endpoint`` is a gateway in ``namespace``.

    ``service`` is Python that serves on port 8000 of loopback there: 10.99.0.5:80 to the cell.
    """
    config, vpn = written(folder, endpoint, listen)
    with serving(namespace, config, service):
        yield vpn


def written(folder: Path, endpoint: str, listen: str = "0.0.0.0") -> tuple[Path, Path]:
    """A gateway's configuration, and the wg-quick file of its only peer."""
    ours, theirs = generate_private_key(), generate_private_key()
    config, vpn = folder / "gateway.toml", folder / "vpn.conf"
    config.write_text(
        f'listen = "{listen}:51820"\nprivate_key = "{theirs}"\n'
        'services = { "10.99.0.5:80" = "127.0.0.1:8000" }\n'
        f'[peers.cell]\npublic_key = "{public_key(ours)}"\naddress = "10.99.0.2"\n'
    )
    config.chmod(0o600)
    vpn.write_text(
        vpn_file(
            private=ours,
            public=public_key(theirs),
            address="10.99.0.2/32",
            endpoint=f"{endpoint}:51820",
            interface="MTU = 1420",
        )
    )
    return config, vpn


@contextmanager
def serving(namespace: str, config: Path, service: str) -> Iterator[None]:
    """A gateway and a service in ``namespace``, once the gateway is ready."""
    server = subprocess.Popen([*INSIDE, namespace, sys.executable, "-c", service])
    gateway = subprocess.Popen(
        [*INSIDE, namespace, *WGCELL, "gateway", "run", str(config)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert gateway.stdout is not None and json.loads(gateway.stdout.readline())
        yield
    finally:
        for process in (gateway, server):
            process.terminate()
            process.communicate()
