"""A WireGuard peer made of bytes: one session, IPv4, and just enough UDP and TCP."""

from __future__ import annotations

import socket
import struct
import time

import dns.message
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from tests.support.gateways import CLIENT, SERVER
from tests.support.waiting import pace

from wgcell.cell import consent
from wgcell.gateway.model.keys import decode_key, public_key

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16


def checksum(raw: bytes) -> int:
    total = sum(
        struct.unpack(f">{len(raw + bytes(len(raw) % 2)) // 2}H", raw + bytes(len(raw) % 2))
    )
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


class Peer:
    """10.99.0.2: one WireGuard session, IPv4, and just enough UDP and TCP."""

    def __init__(self, sock: socket.socket, key: str = CLIENT) -> None:
        self.sock = sock
        self.source = "10.99.0.2"
        sock.settimeout(20)
        keys = consent.HandshakeKeys(decode_key(key), decode_key(public_key(SERVER)))
        message, state = consent.build_initiation(keys, time.time_ns())
        sock.send(message)
        answer = sock.recv(2048)
        assert consent.verify_response(state, answer)
        ephemeral = answer[12:44]
        (chain,) = consent._kdf(state.chaining_key, ephemeral, 1)
        (chain,) = consent._kdf(chain, consent._dh(state.ephemeral_private, ephemeral), 1)
        (chain,) = consent._kdf(chain, consent._dh(keys.private_key, ephemeral), 1)
        chain = consent._kdf(chain, keys.preshared_key, 3)[0]
        self.seal, self.open = map(ChaCha20Poly1305, consent._kdf(chain, b"", 2))
        self.index = answer[4:8]
        self.counter = 0

    def send(self, protocol: int, destination: str, payload: bytes) -> None:
        source, target = socket.inet_aton(self.source), socket.inet_aton(destination)
        if protocol == 6:
            pseudo = source + target + struct.pack(">HH", 6, len(payload)) + payload
            payload = payload[:16] + struct.pack(">H", checksum(pseudo)) + payload[18:]
        header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0)
        total = checksum(header + source + target)
        packet = header[:10] + struct.pack(">H", total) + source + target + payload
        packet += bytes(-len(packet) % 16)
        nonce = bytes(4) + struct.pack("<Q", self.counter)
        sealed = self.seal.encrypt(nonce, packet, b"")
        self.sock.send(struct.pack("<I", 4) + self.index + nonce[4:] + sealed)
        self.counter += 1

    def receive(self, protocol: int) -> bytes:
        while True:
            raw = self.sock.recv(2048)
            packet = self.open.decrypt(bytes(4) + raw[8:16], raw[16:], b"")
            if packet and packet[9] == protocol:
                return packet[20 : struct.unpack_from(">H", packet, 2)[0]]

    def ask(self, name: str, kind: str) -> dns.message.Message:
        query = dns.message.make_query(name, kind).to_wire()
        self.send(17, "10.99.0.1", struct.pack(">HHHH", 5353, 53, 8 + len(query), 0) + query)
        return dns.message.from_wire(self.receive(17)[8:])

    def tcp(
        self, address: str, port: int, data: bytes = b"", slow: float = 0, until: int = 0
    ) -> tuple[bytes, int]:
        """Connect, send ``data``, and return what came until the other side ended, and how.

        With ``until``, return after so many bytes.
        """
        seq, ack, got = 1000, 0, b""

        def segment(flags: int, payload: bytes = b"") -> None:
            header = struct.pack(">HHIIBBHHH", 4000, port, seq, ack, 0x50, flags, 65535, 0, 0)
            self.send(6, address, header + payload)

        segment(SYN)
        seq += 1
        while True:
            raw = self.receive(6)
            number, flags = struct.unpack_from(">I", raw, 4)[0], raw[13]
            payload = raw[(raw[12] >> 4) * 4 :]
            if flags & RST:
                return got, RST
            if flags & SYN:
                ack = number + 1
                pace(slow)
                segment(ACK)
                if data:
                    segment(PSH | ACK, data)
                    seq += len(data)
            elif number == ack:
                got += payload
                ack += len(payload)
                if flags & FIN:
                    ack += 1
                    segment(FIN | ACK)
                    return got, FIN
                if until and len(got) >= until:
                    return got, 0
                if payload:
                    segment(ACK)
