"""Runs in the guest: plays the battery from inside, as root of a machine that is wholly hostile.

It is carried in with the modules it imports, none of which needs anything but the standard
library. What it is about to send it says on its output first, one JSON object a line, so that the
host can look for those very bytes outside: the guest may be dead a moment later.

Its orders are a JSON file: the keys, the cases, and whether there is a live session to sniff.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from pathlib import Path

from wgcell.prove.battery import CASES, Case, Scene
from wgcell.prove.bypass import BYPASSES, Bypass
from wgcell.prove.exhaustion import EXHAUSTIONS, Exhaustion
from wgcell.prove.marks import mark_of

CARD = "eth0"
PATIENCE = 20.0


def say(**words: object) -> None:
    """One line to the host, at once."""
    print(json.dumps(words), flush=True)


def shell(line: str) -> None:
    """A command; what it prints is for nobody. Raises OSError if it fails."""
    done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=20)  # noqa: S602
    if done.returncode != 0:
        raise OSError(f"{line}: {done.stderr.strip()[-200:]}")


def udp(host: str, port: int, data: bytes, device: str = "") -> None:
    """A datagram of the guest's own network stack."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        if device:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        sock.sendto(data, (host, port))


def raw_card() -> socket.socket | None:
    """A raw socket on the card, or None where this guest may not have one."""
    try:
        card = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        card.bind((CARD, 0))
    except OSError as error:
        say(card=str(error))
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        shell(f"ip link set {CARD} mtu 9100")
    return card


def sniff(card: socket.socket, scene: Scene) -> None:
    """Learn the live session's indices and counter from the card, as any root can."""
    card.settimeout(0.5)
    deadline = time.monotonic() + PATIENCE
    theirs = ours = None
    while (theirs is None or ours is None) and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            udp("10.99.0.1", 9, b"x")
        with contextlib.suppress(OSError):
            subprocess.Popen(
                ["ping", "-c1", "-W1", "10.99.0.1"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        with contextlib.suppress(TimeoutError):
            for _ in range(40):
                frame, (_, _, kind, *_) = card.recvfrom(4096)
                message = frame[42:]
                if message[:4] != b"\4\0\0\0":
                    continue
                index = int.from_bytes(message[4:8], "little")
                if kind == socket.PACKET_OUTGOING:
                    theirs = index
                    scene.counter = int.from_bytes(message[8:16], "little") + 1000
                else:
                    ours = index
    card.settimeout(None)
    if theirs is None or ours is None:
        say(card="no session was seen on it")
        return
    scene.theirs, scene.ours = theirs, ours
    say(session=[ours, theirs])


def play_frames(case: Case, scene: Scene, card: socket.socket | None, pause: float) -> None:
    """A case's frames, through a raw socket."""
    probe = case.probe(scene)
    say(case=case.name, marks=[mark_of(frame).hex() for frame in probe.frames])
    time.sleep(pause)
    if card is None:
        return
    for frame in (*probe.first, *probe.frames):
        try:
            card.send(frame)
        except OSError as error:
            say(case=case.name, refused=str(error))


def play_bypass(bypass: Bypass, pause: float) -> None:
    """A case that uses the guest's own network stack."""
    say(case=bypass.name, marks=[bypass.mark.hex()])
    time.sleep(pause)
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        bypass.act(shell, udp)


def play_exhaustion(exhaustion: Exhaustion, scene: Scene, card: socket.socket | None) -> None:
    """A case that takes all it can get."""
    say(case=exhaustion.name, marks=[])
    if card is not None:
        exhaustion.act(card, scene)


def main() -> None:
    """Play what was ordered, then stay a moment: a cell that lives on ends by itself."""
    orders = json.loads(Path(sys.argv[1]).read_text())
    scene = Scene(
        bytes.fromhex(orders["guest_key"]),
        bytes.fromhex(orders["endpoint_key"]),
        socket.inet_aton(orders["host"]),
    )
    card = raw_card()
    if orders["sniff"] and card is not None:
        sniff(card, scene)
    frames = {case.name: case for case in CASES}
    bypasses = {bypass.name: bypass for bypass in BYPASSES}
    exhaustions = {exhaustion.name: exhaustion for exhaustion in EXHAUSTIONS}
    for name in orders["cases"]:
        if name in frames:
            play_frames(frames[name], scene, card, orders["pause"])
        elif name in bypasses:
            play_bypass(bypasses[name], orders["pause"])
        else:
            play_exhaustion(exhaustions[name], scene, card)
    time.sleep(orders["stay"])
    say(done=True)


if __name__ == "__main__":
    main()
