"""The guest runner: makes the battery's attacks in the guest, as root of a hostile machine.

It is carried into the guest with the modules that it imports, which need the standard library
alone. Before each case it prints the marks of the frames that it is about to send, one JSON object
a line, so that the host can look for them in its captures: the guest may be dead a moment later.

Its argument is a JSON file of tasks: the keys, the cases, and whether there is a session to sniff.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from pathlib import Path

from wgcell.prove.battery.bypass import BYPASSES, Bypass
from wgcell.prove.battery.case import Attacker, Case
from wgcell.prove.battery.cases import CASES
from wgcell.prove.battery.exhaustion import EXHAUSTIONS, Exhaustion
from wgcell.prove.battery.packets import mark_of
from wgcell.prove.battery.policy import CLOSED, DONE, POLICIES, PORT, TARGET, Ends, PolicyCase
from wgcell.relay import link

_CARD = "eth0"
_JUMBO = 9100
"""The card's MTU: room for frames that are too long for the link."""
_GATEWAY_IN_TUNNEL = "10.99.0.1"
_SNIFF_WITHIN = 20.0
"""Seconds."""
_COUNTER_AHEAD = 1000
"""How far the attacker's counter is ahead of the guest kernel's own."""
_ETH_P_ALL = 0x0003
_SERVE_WITHIN = 60.0
"""Seconds for the host to come to the published port, and for each of its words."""


def report(**fields: object) -> None:
    """Print one line to the host, at once."""
    print(json.dumps(fields), flush=True)


def shell(line: str) -> None:
    """Run a command, and discard its output. Raises OSError if it fails."""
    done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=20)  # noqa: S602
    if done.returncode != 0:
        raise OSError(f"{line}: {done.stderr.strip()[-200:]}")


def udp(host: str, port: int, data: bytes, device: str = "") -> None:
    """Send a datagram by the guest's own network stack."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        if device:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        sock.sendto(data, (host, port))


def raw_card() -> socket.socket | None:
    """A raw socket on the card; None where the guest's walls prevent it."""
    try:
        card = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        card.bind((_CARD, 0))
    except OSError as error:
        report(card=str(error))
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        shell(f"ip link set {_CARD} mtu {_JUMBO}")
    return card


def sniff(card: socket.socket, attacker: Attacker) -> None:
    """Learn the live session's indices and counter from the card, as any root can."""
    card.settimeout(0.5)
    deadline = time.monotonic() + _SNIFF_WITHIN
    theirs = ours = None
    while (theirs is None or ours is None) and time.monotonic() < deadline:
        _cause_traffic()
        with contextlib.suppress(TimeoutError):
            for _ in range(40):
                frame, (_, _, kind, *_) = card.recvfrom(4096)
                message = frame[link.HEADERS :]
                if message[:4] != b"\4\0\0\0":
                    continue
                index = int.from_bytes(message[4:8], "little")
                if kind == socket.PACKET_OUTGOING:
                    theirs = index
                    attacker.counter = int.from_bytes(message[8:16], "little") + _COUNTER_AHEAD
                else:
                    ours = index
    card.settimeout(None)
    if theirs is None or ours is None:
        report(card="no session was seen on it")
        return
    attacker.theirs, attacker.ours = theirs, ours
    report(session=[ours, theirs])


def _cause_traffic() -> None:
    """Messages in the tunnel, both ways."""
    with contextlib.suppress(OSError):
        udp(_GATEWAY_IN_TUNNEL, 9, b"x")
    with contextlib.suppress(OSError):
        subprocess.Popen(
            ["ping", "-c1", "-W1", _GATEWAY_IN_TUNNEL],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


def send_frames(case: Case, attacker: Attacker, card: socket.socket | None, pause: float) -> None:
    """Send a case's frames through the raw socket, ``pause`` seconds behind their marks."""
    probe = case.probe(attacker)
    report(case=case.name, marks=[mark_of(frame).hex() for frame in probe.frames])
    time.sleep(pause)
    if card is None:
        return
    for frame in (*probe.first, *probe.frames):
        try:
            card.send(frame)
        except OSError as error:
            report(case=case.name, refused=str(error))


def try_bypass(bypass: Bypass, pause: float) -> None:
    """Try a way out by the guest's own network stack, ``pause`` seconds behind its mark."""
    report(case=bypass.name, marks=[bypass.mark.hex()])
    time.sleep(pause)
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        bypass.act(shell, udp)


def exhaust(exhaustion: Exhaustion, attacker: Attacker, card: socket.socket | None) -> None:
    """Take all that the guest can get."""
    report(case=exhaustion.name, marks=[])
    if card is not None:
        exhaustion.act(card, attacker)


def change_policy(case: PolicyCase, served: socket.socket) -> None:
    """Send the control's mark until the host says that its rule is over; then the other mark."""
    report(case=case.name, marks=[case.after.hex()])
    with contextlib.suppress(OSError):
        client, _ = served.accept()
        with client:
            client.sendall(b"ready\n")
            client.settimeout(0.2)
            while not _closed(client):
                if case.ends is not Ends.NEVER_WAS:
                    with contextlib.suppress(OSError):
                        udp(*TARGET, case.before)
            client.settimeout(_SERVE_WITHIN)
            if case.ends is Ends.NEVER_WAS:
                client.sendall(case.after + b"\n")
            else:
                _try_target(case.after)
            client.sendall(DONE)


def _closed(client: socket.socket) -> bool:
    with contextlib.suppress(TimeoutError):
        return client.recv(len(CLOSED)) in (CLOSED, b"")
    return False


def _try_target(mark: bytes) -> None:
    """Send ``mark`` to the target by each protocol, also from the published port."""
    for port in (0, PORT):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("", port))
            for _ in range(5):
                with contextlib.suppress(OSError):  # refused by ICMP
                    sock.sendto(mark, TARGET)
                time.sleep(0.1)
        with contextlib.suppress(OSError):
            where = ("", port) if port else None
            with socket.create_connection(TARGET, 5, source_address=where) as stream:
                stream.sendall(mark)


def _serving() -> socket.socket:
    served = socket.create_server(("", PORT))
    served.settimeout(_SERVE_WITHIN)
    return served


def main() -> None:
    """Run every task, then stay for a while: a cell that is not ended ends by itself."""
    tasks = json.loads(Path(sys.argv[1]).read_text())
    attacker = Attacker(
        bytes.fromhex(tasks["guest_key"]),
        bytes.fromhex(tasks["endpoint_key"]),
        socket.inet_aton(tasks["host"]),
    )
    card = raw_card()
    if tasks["sniff"] and card is not None:
        sniff(card, attacker)
    frames = {case.name: case for case in CASES}
    bypasses = {bypass.name: bypass for bypass in BYPASSES}
    exhaustions = {exhaustion.name: exhaustion for exhaustion in EXHAUSTIONS}
    policies = {policy.name: policy for policy in POLICIES}
    served = _serving() if policies.keys() & set(tasks["cases"]) else None
    for name in tasks["cases"]:
        if name in policies and served is not None:
            change_policy(policies[name], served)
        elif name in frames:
            send_frames(frames[name], attacker, card, tasks["pause"])
        elif name in bypasses:
            try_bypass(bypasses[name], tasks["pause"])
        else:
            exhaust(exhaustions[name], attacker, card)
    time.sleep(tasks["stay"])
    report(done=True)


if __name__ == "__main__":
    main()
