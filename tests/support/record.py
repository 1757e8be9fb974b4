"""Record a real tunnel through a rekey, as its relay sees it.

``python -m tests.support.record boringtun|wireguard-go``, in the repository's folder.

::

    a network namespace of its own, lo only
      wgcell run --vpn (Linux's WireGuard in a VM) -- UDP on lo --> the endpoint -- echo service
                                                        ^ captured here

The endpoint is ``wgcell gateway run`` (boringtun) or Debian's wireguard-go. Writes NAME.pcapng and
NAME.json with the two *public* keys to ``tests/relay/recordings``; the private ones are made here
and forgotten. Needs root for the namespace, and the guest's image. Takes three minutes.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.vpnfiles import vpn_file

from wgcell.gateway.model.keys import generate_private_key, public_key
from wgcell.relay.evidence import CapturedFrame, pcapng

HERE = Path(__file__).parents[1] / "relay/recordings"
WGCELL = str(Path(sys.executable).with_name("wgcell"))
PORT, SERVICE, MTU = 51999, 8007, 1420
GUEST_ADDRESS, SERVICE_ADDRESS = "10.99.0.2", "10.99.0.5"
CONSENT = 2
"""The first messages are the supervisor's own handshake; the relay is not there yet."""
SECONDS = 165
PACKET_OUTGOING = 4

# A trickle through REKEY_AFTER_TIME, a few packets that fill the MTU, and the trickle's end.
WORKLOAD = f"""
import socket, time
s = socket.create_connection(("{SERVICE_ADDRESS}", 80), 20)
def ask(data):
    s.sendall(data); left = len(data)
    while left: left -= len(s.recv(left))
ask(bytes(6000))
end = time.monotonic() + {SECONDS}
while time.monotonic() < end: ask(b"x"); time.sleep(1.2)
ask(bytes(6000))
"""


def echo(server: socket.socket) -> None:
    while True:
        connection, _ = server.accept()
        with connection:
            while data := connection.recv(65536):
                connection.sendall(data)


def raw(key: str) -> str:
    return base64.b64decode(key).hex()


@contextmanager
def boringtun(folder: Path, private: str, guest: str) -> Iterator[None]:
    file = folder / "gateway.toml"
    file.write_text(
        f'listen = "127.0.0.1:{PORT}"\nprivate_key = "{private}"\npeers = ["{guest}"]\n'
        f'[services]\n"{SERVICE_ADDRESS}:80" = "127.0.0.1:{SERVICE}"\n'
    )
    argv = [WGCELL, "gateway", "run", str(file)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    print(process.stdout.readline(), end="")
    yield
    process.terminate()
    process.wait(10)


@contextmanager
def wireguard_go(folder: Path, private: str, guest: str) -> Iterator[None]:
    name = f"wgr{os.getpid()}"
    control = Path(f"/var/run/wireguard/{name}.sock")
    environment = {**os.environ, "WG_PROCESS_FOREGROUND": "1", "LOG_LEVEL": "error"}
    process = subprocess.Popen(["wireguard-go", name], env=environment)
    while not control.exists():
        time.sleep(0.05)
    with socket.socket(socket.AF_UNIX) as uapi:
        uapi.connect(str(control))
        uapi.sendall(
            f"set=1\nprivate_key={raw(private)}\nlisten_port={PORT}\npublic_key={raw(guest)}\n"
            f"allowed_ip={GUEST_ADDRESS}/32\n\n".encode()
        )
        assert b"errno=0" in uapi.recv(100)
    for command in (
        f"address add {SERVICE_ADDRESS}/24 dev {name}",
        f"link set {name} mtu {MTU} up",
    ):
        subprocess.run(["ip", *command.split()], check=True)
    yield
    process.terminate()
    process.wait(10)
    control.unlink(missing_ok=True)


def capture(into: list[CapturedFrame]) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as tap:
        tap.bind(("lo", 0))
        while True:
            frame, (_, _, kind, *_) = tap.recvfrom(65536)
            ports = [int.from_bytes(frame[at : at + 2], "big") for at in (34, 36)]
            if kind == PACKET_OUTGOING and frame[23] == socket.IPPROTO_UDP and PORT in ports:
                sender = "endpoint" if ports[0] == PORT else "guest"
                into.append(CapturedFrame(frame, time.time(), sender))


def record(name: str) -> int:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    guest, endpoint = generate_private_key(), generate_private_key()
    frames: list[CapturedFrame] = []
    # The echo service: what wireguard-go's own address answers is port 80 of the namespace.
    port = SERVICE if name == "boringtun" else 80
    server = socket.create_server(("0.0.0.0", port))
    for target, argument in ((echo, server), (capture, frames)):
        threading.Thread(target=target, args=(argument,), daemon=True).start()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        vpn = folder / "guest.conf"
        vpn.write_text(
            vpn_file(
                private=guest,
                public=public_key(endpoint),
                address=f"{GUEST_ADDRESS}/32",
                allowed="10.99.0.0/24",
                endpoint=f"127.0.0.1:{PORT}",
                interface=f"MTU = {MTU}",
            )
        )
        argv = [WGCELL, "run", "--vpn", str(vpn), "--allow-endpoint", "127.0.0.1/32"]
        argv += ["--state-dir", temporary, "--", "python3", "-c", WORKLOAD]
        serve = boringtun if name == "boringtun" else wireguard_go
        with serve(folder, endpoint, public_key(guest)):
            code = subprocess.run(argv, timeout=SECONDS + 150, check=False).returncode
    (HERE / f"{name}.pcapng").write_bytes(pcapng(frames[CONSENT:]))
    keys = {"guest": public_key(guest), "endpoint": public_key(endpoint), "mtu": MTU}
    (HERE / f"{name}.json").write_text(json.dumps(keys, indent=1) + "\n")
    print(f"{name}: exit code {code}, {len(frames)} messages")
    return code


def main() -> int:
    name = sys.argv[1]
    if os.environ.get("WGCELL_RECORDING") != "1":
        os.environ["WGCELL_RECORDING"] = "1"
        argv = [sys.executable, "-m", "tests.support.record", name]
        os.execvp("unshare", ["unshare", "--net", *argv])
    return record(name)


if __name__ == "__main__":
    sys.exit(main())
