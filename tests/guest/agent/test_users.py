"""Users and groups by the text of /etc/passwd and /etc/group, which is hostile."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wgcell.errors import GuestError
from wgcell.guest.agent.users import LONGEST_TABLE, Identity, resolve

PASSWD = b"""root:x:0:0:root:/root:/bin/sh
# a comment
short:x:5
bad:x:-1:0::/:
bad:x:99999999999:0::/:
worse:x:12:x::/:
some:x:1000:100:Some One,,:/home/some:/bin/sh
some:x:1001:101::/second:/bin/sh
7:x:8:9::/seven:
\xff:x:20:20::/\xfe:/bin/sh
nohome:x:30:30:::"""
GROUP = b"""root:x:0:
users:x:100:
a:x:200:other,some
b:x:201:some
c:x:x:some
d:x:202:someone,awesome
"""


@pytest.mark.parametrize(
    ("user", "identity"),
    [
        ("root", Identity(0, 0, (), "/root")),
        ("0", Identity(0, 0, (), "/root")),
        ("some", Identity(1000, 100, (200, 201), "/home/some")),
        ("1000", Identity(1000, 100, (200, 201), "/home/some")),
        ("1001", Identity(1001, 101, (200, 201), "/second")),
        ("some:a", Identity(1000, 200, (), "/home/some")),
        ("some:200", Identity(1000, 200, (), "/home/some")),
        ("some:77", Identity(1000, 77, (), "/home/some")),
        ("555", Identity(555, 0, (), "")),
        ("555:users", Identity(555, 100, (), "")),
        ("7", Identity(8, 9, (), "/seven")),
        ("nohome", Identity(30, 30, (), "")),
        ("\udcff", Identity(20, 20, (), "/\udcfe")),
        ("2147483647", Identity(2147483647, 0, (), "")),
    ],
)
def test_names_and_numbers(user: str, identity: Identity) -> None:
    assert resolve(user, PASSWD, GROUP) == identity


@pytest.mark.parametrize(
    "user",
    ["none", "", ":", ":users", "some:none", "some:", "some:a:b", "bad", "worse", "short", "-1",
     "2147483648", "4294967295", "0x0", "\u0661", "some:-1", "some:4294967295"],
)  # fmt: skip
def test_what_is_none_is_named(user: str) -> None:
    with pytest.raises(GuestError, match=r"^no (user|group) .* in /etc/(passwd|group)$"):
        resolve(user, PASSWD, GROUP)


def test_without_tables_numbers_are_good_enough() -> None:
    assert resolve("5:6", b"", b"") == Identity(5, 6, (), "")


def test_what_is_read_and_kept_is_bounded() -> None:
    far = b"x" * LONGEST_TABLE + b"\nfar:x:5:5::/:\n"
    with pytest.raises(GuestError):
        resolve("far", far, b"")
    many = b"".join(b"g%d:x:%d:some\n" % (number, number) for number in range(5000))
    assert len(resolve("some", PASSWD, many).groups) == 1024


@given(st.text(max_size=20), st.binary(max_size=200), st.binary(max_size=200))
def test_no_text_raises_anything_but_guest_error(user: str, passwd: bytes, group: bytes) -> None:
    try:
        found = resolve(user, passwd, group)
    except GuestError:
        return
    for number in (found.uid, found.gid, *found.groups):
        assert 0 <= number < 2**31
