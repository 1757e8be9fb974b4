"""Keys, in the form and with the results of ``wg``."""

from __future__ import annotations

import base64

import pytest

from wgcell.errors import PolicyError
from wgcell.gateway.model.keys import decode_key, generate_private_key, public_key


def test_a_public_key_is_curve25519_of_the_private_one() -> None:
    # RFC 7748, section 5.2: one iteration, the scalar 9 on the base point 9.
    private = "09" + "00" * 31
    public = "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"
    encoded = base64.b64encode(bytes.fromhex(private)).decode()
    assert decode_key(public_key(encoded)).hex() == public


def test_keys_differ_and_are_44_characters() -> None:
    first, second = generate_private_key(), generate_private_key()
    assert first != second
    assert len(first) == 44


@pytest.mark.parametrize("text", ["", "secret", "A" * 44, "AAAA", "é" * 44])
def test_what_is_no_key_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(PolicyError) as caught:
        decode_key(text)
    assert not text or text not in str(caught.value)
