"""WireGuard keys: X25519, in the base64 form that ``wg`` uses (RFC 7748, 32 bytes).

The library is loaded only where a key is computed: a process that only reads keys starts sooner.
"""

from __future__ import annotations

import base64
import binascii

from wgcell.errors import PolicyError

__all__ = ["decode_key", "generate_private_key", "public_key"]


def generate_private_key() -> str:
    """A new private key, base64."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return base64.b64encode(X25519PrivateKey.generate().private_bytes_raw()).decode()


def public_key(private_key: str) -> str:
    """The public key, base64, of a base64 private key. Raises `PolicyError` if it is no key."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    raw = X25519PrivateKey.from_private_bytes(decode_key(private_key)).public_key()
    return base64.b64encode(raw.public_bytes_raw()).decode()


def decode_key(text: str) -> bytes:
    """The 32 bytes of a base64 key. Raises `PolicyError`, without repeating the key."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != 32:
        raise PolicyError("a WireGuard key is 44 characters of base64, which this is not")
    return raw
