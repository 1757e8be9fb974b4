"""Consent, against boringtun (mitmproxy_rs) on loopback, and against what is no consent."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from hashlib import blake2s

import mitmproxy_rs
import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from tests.support.waiting import forever, lulled

from wgcell.cell import consent
from wgcell.cell.consent import HandshakeKeys, build_initiation, open_cookie, verify_response
from wgcell.cell.endpoint import connect
from wgcell.errors import ConsentError
from wgcell.gateway.model.keys import decode_key, generate_private_key, public_key

LOOPBACK = ipaddress.ip_address("127.0.0.1")
SERVER, CLIENT, OTHER = (generate_private_key() for _ in range(3))


def keys(private: str = CLIENT, peer: str = SERVER) -> HandshakeKeys:
    return HandshakeKeys(decode_key(private), decode_key(public_key(peer)))


async def with_server(body: Callable[[socket.socket], Awaitable[None]]) -> None:
    async def close(stream: mitmproxy_rs.Stream) -> None:
        stream.close()

    server = await mitmproxy_rs.wireguard.start_wireguard_server(
        "127.0.0.1", 0, SERVER, [public_key(CLIENT)], close, close
    )
    try:
        with connect(LOOPBACK, server.getsockname()[1]) as sock:
            await body(sock)
    finally:
        server.close()
        await server.wait_closed()


def test_a_real_server_consents_again_and_again_on_one_socket() -> None:
    async def body(sock: socket.socket) -> None:
        for _ in range(2):
            await consent.obtain(
                sock, decode_key(CLIENT), decode_key(public_key(SERVER)), timeout=4
            )
        assert sock.fileno() >= 0

    asyncio.run(with_server(body))


@pytest.mark.parametrize(
    ("private", "peer", "preshared"),
    [(CLIENT, OTHER, None), (OTHER, SERVER, None), (CLIENT, SERVER, bytes(31) + b"x")],
    ids=["not the endpoint's key", "a key it does not know", "another preshared key"],
)
def test_no_consent(private: str, peer: str, preshared: bytes | None) -> None:
    async def body(sock: socket.socket) -> None:
        with pytest.raises(ConsentError, match=r"no consent from 127\.0\.0\.1"):
            await consent.obtain(
                sock, decode_key(private), decode_key(public_key(peer)), preshared, timeout=0.4
            )

    asyncio.run(with_server(body))


def test_nobody_there() -> None:
    async def body() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
        with connect(LOOPBACK, port) as sock, pytest.raises(ConsentError, match="refused"):
            await consent.obtain(
                sock, decode_key(CLIENT), decode_key(public_key(SERVER)), timeout=0.3
            )

    asyncio.run(body())


@pytest.mark.alone
def test_two_refusals_a_second_apart_end_it() -> None:
    """Nobody listens: the kernel's own ICMP, once for each initiation."""

    async def body() -> float:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
        started = time.monotonic()
        with connect(LOOPBACK, port) as sock, pytest.raises(ConsentError, match="nothing listens"):
            await consent.obtain(sock, decode_key(CLIENT), decode_key(public_key(SERVER)))
        return time.monotonic() - started

    assert consent.REFUSED_AGAIN <= asyncio.run(body()) < consent.REKEY_TIMEOUT


def test_one_refusal_ends_nothing() -> None:
    """A server that starts anew: refused, then a real one on the same port."""

    async def body() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
        with connect(LOOPBACK, port) as sock:
            keys = decode_key(CLIENT), decode_key(public_key(SERVER))
            asking = asyncio.create_task(consent.obtain(sock, *keys))
            await lulled(consent.REFUSED_AGAIN / 4)
            assert not asking.done()

            async def close(stream: mitmproxy_rs.Stream) -> None:
                stream.close()

            server = await mitmproxy_rs.wireguard.start_wireguard_server(
                "127.0.0.1", port, SERVER, [public_key(CLIENT)], close, close
            )
            try:
                async with asyncio.timeout(consent.REKEY_TIMEOUT):
                    await asking
            finally:
                server.close()
                await server.wait_closed()

    asyncio.run(body())


@pytest.mark.parametrize("errors", [[errno.ECONNREFUSED] * 2, [errno.EHOSTUNREACH] * 3])
def test_what_is_no_two_refusals_is_waited_out(
    monkeypatch: pytest.MonkeyPatch, errors: list[int]
) -> None:
    """Forged ICMP for one initiation counts once, however often; a router's word never."""

    async def body() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
            silent.bind(("127.0.0.1", 0))
            told = list(errors)

            async def received(sock: socket.socket, size: int) -> bytes:
                if told:
                    raise OSError(told.pop(), "told")
                await forever()
                return b""

            monkeypatch.setattr(asyncio.get_running_loop(), "sock_recv", received)
            with connect(LOOPBACK, silent.getsockname()[1]) as sock:
                keys = decode_key(CLIENT), decode_key(public_key(SERVER))
                with pytest.raises(ConsentError, match=r"within 0\.8 s"):
                    await consent.obtain(sock, *keys, timeout=0.8, refused_again=0.5)

    asyncio.run(body())


def test_the_answer_must_be_to_this_very_initiation() -> None:
    """A real response, then every way of it being another one."""

    async def body(sock: socket.socket) -> None:
        message, state = build_initiation(keys(), time.time_ns())
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(sock, message)
        async with asyncio.timeout(4):
            answer = await loop.sock_recv(sock, 2048)
        assert verify_response(state, answer)
        for place in range(76):
            # Byte 4-7 is the responder's own index: nothing seals it but mac1.
            changed = bytearray(answer)
            changed[place] ^= 1
            assert not verify_response(state, bytes(changed)), place
        assert not verify_response(state, answer + b"\0")
        assert not verify_response(state, answer[:-1])
        assert not verify_response(state, b"")
        _, other = build_initiation(keys(), time.time_ns(), sender_index=state.sender_index)
        assert not verify_response(other, answer)

    asyncio.run(with_server(body))


def test_the_shape_of_an_initiation() -> None:
    message, state = build_initiation(keys(), 1_700_000_000_123_456_789, sender_index=7)
    assert len(message) == 148
    assert message[:8] == struct.pack("<II", 1, 7)
    assert message[132:] == bytes(16)
    label = blake2s(b"mac1----" + decode_key(public_key(SERVER))).digest()
    assert message[116:132] == blake2s(message[:116], digest_size=16, key=label).digest()
    assert "private" not in repr(state)


def test_timestamps_are_tai64n_and_grow() -> None:
    assert consent.timestamp(0) == bytes.fromhex("400000000000000a00000000")
    assert consent.timestamp(10**9 + 5) == bytes.fromhex("400000000000000b00000005")
    assert consent.timestamp(999_999_999) < consent.timestamp(10**9)


def test_a_peer_key_of_small_order_is_no_key() -> None:
    with pytest.raises(ConsentError, match="public key"):
        build_initiation(HandshakeKeys(decode_key(CLIENT), bytes(32)), 0)


def test_hchacha20_as_the_draft_has_it() -> None:
    # draft-irtf-cfrg-xchacha-03, section 2.2.1.
    nonce = bytes.fromhex("000000090000004a0000000031415927")
    expected = "82413b4227b27bfed30e42508a877d73a0f9e4d58a74a853c12ec41326d3ecdc"
    assert consent._hchacha20(bytes(range(32)), nonce).hex() == expected


def test_a_cookie_is_opened_and_fills_mac2() -> None:
    message, state = build_initiation(keys(), 0)
    cookie, nonce = os.urandom(16), os.urandom(24)
    key = blake2s(b"cookie--" + decode_key(public_key(SERVER))).digest()
    subkey = consent._hchacha20(key, nonce[:16])
    sealed = ChaCha20Poly1305(subkey).encrypt(bytes(4) + nonce[16:], cookie, message[116:132])
    reply = struct.pack("<II", 3, state.sender_index) + nonce + sealed
    assert open_cookie(state, reply) == cookie
    assert open_cookie(state, reply[:-1] + bytes([reply[-1] ^ 1])) is None
    assert open_cookie(state, reply[:-1]) is None
    filled = consent.with_cookie(message, cookie)
    assert filled[:132] == message[:132]
    assert filled[132:] == blake2s(message[:132], digest_size=16, key=cookie).digest()


@pytest.mark.parametrize(
    "answer",
    [
        lambda initiation: b"junk",
        # Of the right shape and to the right index: each costs two Diffie-Hellmans to refuse.
        lambda initiation: struct.pack("<II", 2, 9) + initiation[4:8] + initiation[8:88],
        lambda initiation: struct.pack("<I", 3) + initiation[4:8] + initiation[8:64],
    ],
    ids=["junk", "responses", "cookie replies"],
)
def test_whoever_floods_instead_of_consenting_holds_up_nobody(
    answer: Callable[[bytes], bytes],
) -> None:
    """The socket is never empty: still everything else in the loop has its turns."""

    async def body() -> tuple[int, int]:
        loop = asyncio.get_running_loop()
        turns = received = 0
        last = b""

        async def sent(sock: socket.socket, message: bytes) -> None:
            nonlocal last
            last = message

        async def never_waits(sock: socket.socket, size: int) -> bytes:
            nonlocal received
            received += 1
            return answer(last)

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flooding,
            pytest.MonkeyPatch.context() as patched,
        ):
            flooding.bind(("127.0.0.1", 0))
            patched.setattr(loop, "sock_sendall", sent)
            patched.setattr(loop, "sock_recv", never_waits)
            other = asyncio.create_task(others())
            with connect(LOOPBACK, flooding.getsockname()[1]) as sock:
                keys = decode_key(CLIENT), decode_key(public_key(SERVER))
                with pytest.raises(ConsentError, match="no valid answer"):
                    await consent.obtain(sock, *keys, timeout=0.5)
            other.cancel()
        return turns, received

    turns, received = asyncio.run(body())
    assert received > 10
    assert turns >= received // 2
