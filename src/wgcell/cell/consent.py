"""Consent: one WireGuard handshake of the supervisor's own, before any VM boots.

Only the holder of the endpoint's private key can produce the response that `verify_response`
accepts, so a cell can't be pointed at a third party. The handshake is Noise_IKpsk2 with X25519,
ChaCha20-Poly1305 and BLAKE2s, as in the WireGuard paper, section 5.4; names of the values follow
it. Nothing of this session is kept: the guest makes its own, on the same socket, with a later
timestamp.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import hmac
import os
import socket
import struct
import time
from dataclasses import dataclass, field
from hashlib import blake2s

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from wgcell.errors import ConsentError
from wgcell.wire.wireguard import COOKIE_REPLY_LENGTH, LABEL_MAC1, REKEY_TIMEOUT, RESPONSE_LENGTH

__all__ = [
    "HandshakeKeys",
    "HandshakeState",
    "build_initiation",
    "obtain",
    "open_cookie",
    "public_key",
    "verify_response",
    "with_cookie",
]

_CONSTRUCTION = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
_IDENTIFIER = b"WireGuard v1 zx2c4 Jason@zx2c4.com"
_LABEL_COOKIE = b"cookie--"
_TAI64_BASE = 0x400000000000000A  # TAI is 10 s ahead of UTC in 1970, as WireGuard counts it

_NO_NONCE = bytes(12)
REFUSED_AGAIN = 1.0
"""Seconds from an ICMP "port unreachable" to the initiation that asks whether it was meant.

One such message may be a server's that starts anew, or an attacker's on the path, who could as
well drop everything. Two, each for an initiation of its own, are taken at their word."""


@dataclass(frozen=True, slots=True)
class HandshakeKeys:
    """The keys of one side, 32 raw bytes each; ``preshared_key`` all zero where there is none."""

    private_key: bytes = field(repr=False)
    peer_public_key: bytes
    preshared_key: bytes = field(default=bytes(32), repr=False)


@dataclass(frozen=True, slots=True)
class HandshakeState:
    """The initiator's state until the response."""

    keys: HandshakeKeys = field(repr=False)
    sender_index: int
    ephemeral_private: bytes = field(repr=False)
    chaining_key: bytes = field(repr=False)
    hash: bytes
    mac1: bytes


def _hash(*parts: bytes) -> bytes:
    return blake2s(b"".join(parts)).digest()


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.new(key, data, blake2s).digest()


def _kdf(key: bytes, data: bytes, count: int) -> list[bytes]:
    """Kdf_n of the paper: HKDF with BLAKE2s, ``count`` outputs of 32 bytes."""
    secret = _hmac(key, data)
    outputs: list[bytes] = []
    previous = b""
    for number in range(1, count + 1):
        previous = _hmac(secret, previous + bytes([number]))
        outputs.append(previous)
    return outputs


def _mac(key: bytes, data: bytes) -> bytes:
    return blake2s(data, digest_size=16, key=key).digest()


def _dh(private: bytes, public: bytes) -> bytes:
    """X25519. Raises ValueError for a public key of small order."""
    return X25519PrivateKey.from_private_bytes(private).exchange(
        X25519PublicKey.from_public_bytes(public)
    )


def public_key(private_key: bytes) -> bytes:
    """The public key of a private one, 32 bytes each."""
    return X25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw()


def timestamp(now_ns: int) -> bytes:
    """TAI64N of a Unix time in nanoseconds, 12 bytes."""
    return struct.pack(">QI", _TAI64_BASE + now_ns // 10**9, now_ns % 10**9)


def build_initiation(
    keys: HandshakeKeys,
    now_ns: int,
    *,
    ephemeral_private: bytes | None = None,
    sender_index: int | None = None,
) -> tuple[bytes, HandshakeState]:
    """A handshake initiation (148 bytes, paper section 5.4.2) and what to remember of it.

    ``now_ns`` is Unix time in nanoseconds. The last two arguments are random unless given.
    Raises `EndpointError` if the peer's key is no usable public key.
    """
    ephemeral = ephemeral_private or X25519PrivateKey.generate().private_bytes_raw()
    index = int.from_bytes(os.urandom(4), "little") if sender_index is None else sender_index
    responder = keys.peer_public_key
    chain = _hash(_CONSTRUCTION)
    digest = _hash(_hash(chain, _IDENTIFIER), responder)
    ephemeral_public = public_key(ephemeral)
    (chain,) = _kdf(chain, ephemeral_public, 1)
    digest = _hash(digest, ephemeral_public)
    try:
        chain, key = _kdf(chain, _dh(ephemeral, responder), 2)
        sealed_static = ChaCha20Poly1305(key).encrypt(
            _NO_NONCE, public_key(keys.private_key), digest
        )
        digest = _hash(digest, sealed_static)
        chain, key = _kdf(chain, _dh(keys.private_key, responder), 2)
    except ValueError:
        raise ConsentError("the endpoint's public key is not a usable X25519 key") from None
    sealed_timestamp = ChaCha20Poly1305(key).encrypt(_NO_NONCE, timestamp(now_ns), digest)
    digest = _hash(digest, sealed_timestamp)
    body = struct.pack("<II", 1, index) + ephemeral_public + sealed_static + sealed_timestamp
    mac1 = _mac(_hash(LABEL_MAC1, responder), body)
    return body + mac1 + bytes(16), HandshakeState(keys, index, ephemeral, chain, digest, mac1)


def verify_response(state: HandshakeState, message: bytes) -> bool:
    """Whether ``message`` is the endpoint's own answer to our initiation (paper 5.4.3)."""
    if len(message) != RESPONSE_LENGTH:
        return False
    kind, _sender, receiver = struct.unpack_from("<III", message)
    if kind != 2 or receiver != state.sender_index:
        return False
    own = public_key(state.keys.private_key)
    if not hmac.compare_digest(_mac(_hash(LABEL_MAC1, own), message[:60]), message[60:76]):
        return False
    ephemeral_public, sealed_nothing = message[12:44], message[44:60]
    (chain,) = _kdf(state.chaining_key, ephemeral_public, 1)
    digest = _hash(state.hash, ephemeral_public)
    try:
        (chain,) = _kdf(chain, _dh(state.ephemeral_private, ephemeral_public), 1)
        (chain,) = _kdf(chain, _dh(state.keys.private_key, ephemeral_public), 1)
        chain, tau, key = _kdf(chain, state.keys.preshared_key, 3)
        ChaCha20Poly1305(key).decrypt(_NO_NONCE, sealed_nothing, _hash(digest, tau))
    except (InvalidTag, ValueError):
        return False
    return True


def open_cookie(state: HandshakeState, message: bytes) -> bytes | None:
    """The cookie (16 bytes) of a cookie reply to our initiation, or None (paper 5.4.7)."""
    if len(message) != COOKIE_REPLY_LENGTH:
        return None
    kind, receiver = struct.unpack_from("<II", message)
    if kind != 3 or receiver != state.sender_index:
        return None
    key = _hash(_LABEL_COOKIE, state.keys.peer_public_key)
    subkey = _hchacha20(key, message[8:24])
    try:
        # XChaCha20-Poly1305 is ChaCha20-Poly1305 under a subkey made of the nonce's first half.
        return ChaCha20Poly1305(subkey).decrypt(
            bytes(4) + message[24:32], message[32:64], state.mac1
        )
    except InvalidTag:
        return None


def with_cookie(initiation: bytes, cookie: bytes) -> bytes:
    """``initiation`` with its mac2 filled in under ``cookie`` (paper 5.4.4)."""
    return initiation[:132] + _mac(cookie, initiation[:132])


def _hchacha20(key: bytes, nonce: bytes) -> bytes:
    """HChaCha20 (draft-irtf-cfrg-xchacha, section 2.2): key 32 bytes, nonce 16, result 32."""
    words = list(struct.unpack("<16L", b"expand 32-byte k" + key + nonce))

    def quarter(a: int, b: int, c: int, d: int) -> None:
        for one, two, three, bits in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            words[one] = (words[one] + words[two]) & 0xFFFFFFFF
            mixed = words[three] ^ words[one]
            words[three] = ((mixed << bits) | (mixed >> (32 - bits))) & 0xFFFFFFFF

    for _ in range(10):
        for column in range(4):
            quarter(column, column + 4, column + 8, column + 12)
        for column in range(4):
            quarter(
                column,
                4 + (column + 1) % 4,
                8 + (column + 2) % 4,
                12 + (column + 3) % 4,
            )
    return struct.pack("<8L", *words[:4], *words[12:])


async def obtain(
    sock: socket.socket,
    private_key: bytes,
    peer_public_key: bytes,
    preshared_key: bytes | None = None,
    timeout: float = 14.0,
    refused_again: float = REFUSED_AGAIN,
) -> None:
    """Return once the endpoint has consented, over ``sock`` (connected UDP, non-blocking).

    Sends an initiation at 0, 5, 10 … s, each with its own timestamp, until ``timeout`` seconds
    have passed. The next initiation honours a cookie reply. If no server listens there, the
    endpoint's machine says so by ICMP: the second refusal, ``refused_again`` s after the first,
    ends the attempt. A message of another machine (host or network unreachable) does not. Raises
    `ConsentError`. The socket stays open and connected: the relay inherits it, so that the endpoint
    sees one source port.
    """
    keys = HandshakeKeys(private_key, peer_public_key, preshared_key or bytes(32))
    asking = _Asking(sock, keys, refused_again)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while (left := deadline - loop.time()) > 0:
        if await asking.once(loop.time() + min(REKEY_TIMEOUT, left)):
            return
    host, port = sock.getpeername()[:2]
    raise ConsentError(
        f"no consent from {host}:{port} within {timeout:g} s: {asking.seen}",
        hint=f"check that a WireGuard server with public key {_shown(peer_public_key)} listens "
        "there, and that it knows this job's key as a peer",
    )


class _Asking:
    """One endpoint, asked again and again; the latest cookie, and the number of refusals."""

    def __init__(self, sock: socket.socket, keys: HandshakeKeys, refused_again: float) -> None:
        self.seen = "nothing came back"
        """The endpoint's latest answer that was no consent, in words."""
        self._sock, self._keys, self._refused_again = sock, keys, refused_again
        self._loop = asyncio.get_running_loop()
        self._cookie: bytes | None = None
        self._refused = 0

    async def once(self, until: float) -> bool:
        """Send an initiation; whether the endpoint has consented by ``until``.

        Raises `ConsentError` at the second refusal.
        """
        message, state = build_initiation(self._keys, time.time_ns())
        if self._cookie is not None:
            message = with_cookie(message, self._cookie)
        try:
            await _send(self._loop, self._sock, message)
        except OSError as error:
            self.seen = f"sending failed: {error.strerror or error}"
        counted = False
        while (wait := until - self._loop.time()) > 0:
            try:
                async with asyncio.timeout(wait):
                    answer = await self._loop.sock_recv(self._sock, 2048)
            except TimeoutError:
                break
            except OSError as error:
                # An ICMP unreachable, reported on the connected socket. Nobody listens, for now.
                self.seen = f"the last word was: {error.strerror or error}"
                if _is_refusal(error) and not counted:
                    counted = True
                    self._count_refusal()
                    until = min(until, self._loop.time() + self._refused_again)
                await asyncio.sleep(min(0.2, max(wait, 0)))
                continue
            if verify_response(state, answer):
                return True
            self._cookie = open_cookie(state, answer) or self._cookie
            self.seen = "a datagram came back that was no valid answer"
            # Without this a flood, which a stranger can send, would hold the loop.
            await asyncio.sleep(0)
        return False

    def _count_refusal(self) -> None:
        self._refused += 1
        if self._refused == 2:
            raise _refusal(self._sock, self._keys.peer_public_key)


async def _send(loop: asyncio.AbstractEventLoop, sock: socket.socket, message: bytes) -> None:
    """Send. The kernel may report an earlier datagram's refusal now, which does not count for this
    one."""
    try:
        await loop.sock_sendall(sock, message)
    except ConnectionRefusedError:
        await loop.sock_sendall(sock, message)


def _shown(key: bytes) -> str:
    return base64.b64encode(key).decode()


def _is_refusal(error: OSError) -> bool:
    """Whether it is ICMP's "port unreachable"."""
    return error.errno == errno.ECONNREFUSED


def _refusal(sock: socket.socket, peer_public_key: bytes) -> ConsentError:
    host, port = sock.getpeername()[:2]
    return ConsentError(
        f"no consent from {host}:{port}: its machine says, twice, that nothing listens there",
        hint=f"start the WireGuard server with public key {_shown(peer_public_key)}, or correct "
        "the Endpoint's port",
    )
