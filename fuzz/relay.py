"""The relay's parsers and the whole relay under atheris.

The invariant, for any bytes at all:

1. nothing raises;
2. a payload leaves a frame only if scapy, which shares no line with us, finds in that frame an
   IPv4 packet without options or fragments, from the guest to the gateway, UDP on the tunnel's
   ports, every length and IPv4's checksum right, and that very payload (UDP's checksum is free);
3. what leaves the whole relay is one of 148, 92, 64 or at least 32 bytes, its first byte 1 to 4
   and the next three zero;
4. nothing leaves behind a cut.

    pip install -e '.[dev,fuzz]'
    python fuzz/relay.py -runs=10000000 fuzz/seeds

``python fuzz/relay.py --seeds`` writes the seeds anew, from the battery.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import FunctionType, ModuleType

from wgcell.prove.battery.case import MTU, Attacker, Injection
from wgcell.prove.battery.cases import CASES
from wgcell.prove.battery.probes import tunnel
from wgcell.relay import link
from wgcell.relay.classify import classify
from wgcell.relay.framing import prefixed
from wgcell.relay.relay import Arrived, Command, Relay, Send
from wgcell.relay.session import SessionTable

GUEST, ENDPOINT = b"g" * 32, b"e" * 32
SEEDS = Path(__file__).parent / "seeds"
LENGTHS = {1: 148, 2: 92, 3: 64}


class Broken(Exception):
    """The invariant does not hold."""


def check_frame(frame: bytes) -> None:
    """1 and 2."""
    payload = classify(frame)
    if isinstance(payload, bytes | bytearray | memoryview):
        check_by_scapy(frame, bytes(payload))


def check_by_scapy(frame: bytes, payload: bytes) -> None:
    """2: an honest frame, dissected and built anew by another hand, is the same frame."""
    from scapy.layers.inet import IP, UDP
    from scapy.layers.l2 import Ether

    packet = Ether(frame)
    if packet.type != 0x0800 or not (packet.haslayer(IP) and packet.haslayer(UDP)):
        raise Broken("scapy finds no UDP in it")
    ip, udp = packet[IP], packet[UDP]
    if (ip.src, ip.dst, udp.sport, udp.dport) != ("192.168.64.2", "192.168.64.1", 51820, 51820):
        raise Broken("it is not the tunnel's")
    if (packet.src, packet.dst) != (link.GUEST_MAC_TEXT, link.GATEWAY_MAC_TEXT):
        raise Broken("its MAC addresses are not the link's")
    if ip.options or ip.frag or ip.flags.MF or ip.ihl != 5 or ip.version != 4:
        raise Broken("options or a fragment")
    if frame[42:] != payload:
        raise Broken("that is not the payload")
    del ip.len, ip.chksum, udp.len
    built = bytes(packet)
    if built != frame:
        raise Broken("a length or a checksum is wrong")


def check_relay(data: bytes) -> None:
    """1, 3 and 4: the first byte says how the rest is cut into writes and replies."""
    relay = Relay(SessionTable(GUEST, ENDPOINT, MTU))
    step = data[0] + 1 if data else 1
    cut = False
    for now, at in enumerate(range(1, len(data), step)):
        piece = data[at : at + step]
        inward = now % 3 == 2
        commands = (
            relay.inbound([Arrived(piece, (piece,))], now) if inward else out(relay, piece, now)
        )
        for command in commands:
            if isinstance(command, Send):
                if cut:
                    raise Broken("something left behind a cut")
                for payload in command.payloads:
                    check_shape(bytes(payload))
        cut = cut or relay.cut


def out(relay: Relay, piece: bytes, now: float) -> list[Command]:
    """Bytes of QEMU's stream into the relay."""
    relay.room()[: len(piece)] = piece
    return relay.outbound(len(piece), now)


def check_shape(payload: bytes) -> None:
    """3."""
    kind = payload[0] if payload else 0
    right = len(payload) >= 32 if kind == 4 else LENGTHS.get(kind) == len(payload)
    if not right or payload[1:4] != bytes(3):
        raise Broken(f"no WireGuard message left: {payload[:40].hex()}")


def check(data: bytes) -> None:
    """One input: an even first byte makes it a frame, an odd one a stream."""
    if data and data[0] & 1:
        check_relay(data[1:])
    else:
        check_frame(data[1:])


def write_seeds() -> None:
    """One file a case of the battery, as a frame, and one as a stream of an honest cell."""
    SEEDS.mkdir(exist_ok=True)
    for case in CASES:
        if case.injection is Injection.FRAMES:
            frame = case.probe(Attacker(GUEST, ENDPOINT, bytes(4), ours=7, theirs=9)).frames[0]
            (SEEDS / case.name).write_bytes(b"\0" + frame)
    attacker = Attacker(GUEST, ENDPOINT, bytes(4))
    honest = prefixed(tunnel(attacker.initiation()))
    (SEEDS / "honest").write_bytes(b"\1\xff" + honest + prefixed(tunnel(attacker.initiation())))


def functions_of(module: ModuleType) -> list[FunctionType]:
    """Every function and method that is the module's own: atheris is to see their branches."""
    owners = [module, *(one for one in vars(module).values() if isinstance(one, type))]
    return [
        one
        for owner in owners
        for one in vars(owner).values()
        if isinstance(one, FunctionType) and one.__module__ == module.__name__
    ]


def main() -> None:
    """Fuzz until atheris has enough."""
    if "--seeds" in sys.argv:
        write_seeds()
        return
    import atheris

    for name, module in list(sys.modules.items()):
        if name.startswith(("wgcell.relay.", "wgcell.wire.")):
            for part in functions_of(module):
                atheris.instrument_func(part)
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
