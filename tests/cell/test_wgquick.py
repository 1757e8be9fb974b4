"""wg-quick files: what is read, what is refused and on which line, and that keys stay hidden."""

from __future__ import annotations

import base64
import hashlib
import io
import ipaddress
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.examples import examples
from tests.support.shown import is_text
from tests.support.vpnfiles import PRIVATE, PUBLIC, SHARED

from wgcell.cell import endpoint, wgquick
from wgcell.cell.wgquick import load_vpn_config, parse_vpn_config
from wgcell.cell.wgquick.sections import QUICK, WG
from wgcell.cli.terminal import complain
from wgcell.errors import EndpointError, VpnConfigError, WgcellError

KNOWN = [
    *QUICK.values(),
    *(name for keys in WG.values() for name, _ in keys.values()),
    "Colour",
]
GOOD = f"""[Interface]
PrivateKey = {PRIVATE}
Address = 10.0.0.2/32, 2001:db8::2/128  # both
[Peer]
PublicKey = {PUBLIC}
AllowedIPs = 0.0.0.0/0, ::/0
Endpoint = vpn.example.com:51820
"""


def test_a_plain_file_gets_the_defaults() -> None:
    config = parse_vpn_config(GOOD)
    assert config.private_key == bytes(range(32))
    assert config.peer_public_key == bytes(range(32, 64))
    assert (config.endpoint_host, config.endpoint_port) == ("vpn.example.com", 51820)
    assert [str(address) for address in config.addresses] == ["10.0.0.2/32", "2001:db8::2/128"]
    assert (config.mtu, config.keepalive, config.dns) == (1420, 25, ())
    assert config.preshared_key is None


def test_everything_given_is_read() -> None:
    text = GOOD.replace("[Peer]", "DNS=192.0.2.53\nMTU=1280\nListenPort=1\n[PEER]")
    text += f"PresharedKey={SHARED}\npersistentkeepalive = 7\n"
    config = parse_vpn_config(text.replace("vpn.example.com", "[2001:db8::9]"))
    assert [str(address) for address in config.dns] == ["192.0.2.53"]
    assert (config.mtu, config.keepalive) == (1280, 7)
    assert config.preshared_key == bytes(range(64, 96))
    assert config.endpoint_host == "2001:db8::9"


def test_no_secret_in_repr() -> None:
    shown = repr(parse_vpn_config(GOOD + f"PresharedKey={SHARED}\n"))
    assert repr(bytes(range(32))) not in shown
    assert repr(bytes(range(64, 96))) not in shown


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        *[
            (GOOD.replace("[Peer]", f"{key} = true\n[Peer]"), 4, key)
            for key in ("PreUp", "PostUp", "PreDown", "PostDown", "SaveConfig", "Table", "FwMark")
        ],
        (GOOD + "[Peer]\n", 8, "second [Peer]"),
        (GOOD + "[Other]\n", 8, "unknown section"),
        (GOOD + "Colour = blue\n", 8, "unknown key in [Peer]"),
        (GOOD + "MTU = 1300\n", 8, "MTU belongs into [Interface]"),
        (GOOD + "nonsense\n", 8, "KEY = VALUE"),
        (GOOD + "PublicKey =\n", 8, "no value"),
        ("PrivateKey = x\n" + GOOD, 1, "before any"),
        (GOOD.replace("Endpoint", "#Endpoint"), 8, "no Endpoint"),
        (GOOD.replace(PUBLIC, PUBLIC[:-2] + "=="), 5, "PublicKey is not a WireGuard key"),
        (GOOD.replace(PRIVATE, "secret"), 2, "PrivateKey is not a WireGuard key"),
        (GOOD.replace(":51820", ""), 7, "Endpoint"),
        (GOOD.replace(":51820", ":65536"), 7, "Endpoint"),
        (GOOD.replace("vpn.example.com", "[fe80::1%eth0]"), 7, "Endpoint"),
        (GOOD.replace("10.0.0.2/32", "10.0.0.2/33"), 3, "Address"),
        (GOOD.replace("::/0", "all"), 6, "AllowedIPs"),
        (GOOD.replace("[Peer]", "MTU = large\n[Peer]"), 4, "MTU"),
        (GOOD.replace("0.0.0.0/0, ::/0", "10.0.0.2/32"), 8, "has no address that"),
        (GOOD.replace("0.0.0.0/0, ::/0", "127.0.0.0/8,ff00::/8"), 8, "has no address that"),
        (GOOD.replace(PRIVATE, base64.b64encode(bytes(32)).decode()), 8, "all zeros"),
        ("", 1, "no PrivateKey"),
    ],
)
def test_refused_with_its_line(text: str, line: int, words: str) -> None:
    with pytest.raises(VpnConfigError) as caught:
        parse_vpn_config(text, "wg0.conf")
    assert str(caught.value).startswith(f"wg0.conf:{line}: ")
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "wg0.conf"
    path.write_bytes(b"#" * 300_000)
    with pytest.raises(VpnConfigError, match="256 KiB"):
        load_vpn_config(path)
    with pytest.raises(VpnConfigError, match="No such file"):
        load_vpn_config(tmp_path / "missing.conf")


def test_any_bytes_may_stand_in_a_comment(tmp_path: Path) -> None:
    path = tmp_path / "wg0.conf"
    path.write_bytes(b"\xef\xbb\xbf#" + bytes(range(11, 256)) + b"\n" + GOOD.encode())
    assert load_vpn_config(path) == parse_vpn_config(GOOD)


@pytest.mark.parametrize(
    ("head", "field", "value", "said"),
    [
        ("MTU = 9000", "mtu", 1420, "wg0.conf:4: MTU 9000 is 1420 here: more than fits"),
        ("MTU = 0", "mtu", 1420, "wg0.conf:4: MTU 0 is 1420 here"),
        (
            "MTU = 1200",
            "mtu",
            1280,
            "wg0.conf:4: MTU 1200 is 1280 here: less than a tunnel with IPv6",
        ),
        ("MTU = 1400", "mtu", 1400, ""),
        ("MTU =", "mtu", 1420, ""),
        ("DNS = corp.example.com, ~.", "search", ("corp.example.com",), ""),
        ("DNS = 1.2.3", "dns", (), "wg0.conf:4: DNS has a word that is no address and no domain"),
        ("DNS = 192.0.2.53", "dns", (ipaddress.ip_address("192.0.2.53"),), ""),
    ],
)
def test_what_is_taken_otherwise_than_written_is_said(
    head: str, field: str, value: object, said: str
) -> None:
    config = parse_vpn_config(GOOD.replace("[Peer]", f"{head}\n[Peer]"), "wg0.conf")
    assert getattr(config, field) == value
    assert len(config.remarks) == bool(said)
    for remark in config.remarks:
        assert remark.startswith(said)


def test_a_resolver_that_the_tunnel_does_not_lead_to_is_said() -> None:
    text = GOOD.replace("0.0.0.0/0, ::/0", "10.0.0.0/24").replace(
        "[Peer]", "DNS = 10.0.0.1, 1.1.1.1\n[Peer]"
    )
    config = parse_vpn_config(text, "wg0.conf")
    (remark,) = config.remarks
    assert remark.startswith("wg0.conf:4: DNS 1.1.1.1 lies outside AllowedIPs: ")
    assert [str(one) for one in config.dns] == ["10.0.0.1", "1.1.1.1"]
    assert not parse_vpn_config(text.replace(", 1.1.1.1", "")).remarks


def test_networks_are_joined_and_not_too_many() -> None:
    def config_of(networks: list[str]) -> str:
        return GOOD.replace("0.0.0.0/0, ::/0", ",".join(networks))

    several = ["10.0.0.0/9", "10.128.0.0/9", "10.7.0.0/16", "::ffff:10.0.0.0/104", "10.0.0.0/8"]
    config = parse_vpn_config(config_of(several))
    joined = ["10.0.0.0/8", "::ffff:10.0.0.0/104"]  # Python 3.13 writes the second so, too
    assert list(config.allowed_ips) == [ipaddress.ip_network(one) for one in joined]
    many = [f"10.{n >> 7}.{(n & 127) << 1}.0/24" for n in range(wgquick.MOST_NETWORKS + 1)]
    assert len(parse_vpn_config(config_of(many[1:])).allowed_ips) == wgquick.MOST_NETWORKS
    with pytest.raises(VpnConfigError, match="1025 networks"):
        parse_vpn_config(config_of(many))


_KEYS = [base64.b64encode(hashlib.sha256(bytes([n])).digest()).decode() for n in range(8)]
_PAIRS = list(zip(_KEYS[::2], _KEYS[1::2], strict=True))
_BROKEN = [*("\n", " ", "=", "[", "\n[", "\n#", ",", ":"), *(f"\n{key} = " for key in KNOWN)]


@pytest.mark.parametrize("gone", [0, 1, 22])
@pytest.mark.parametrize("into", [*_BROKEN, ""])
def test_no_piece_of_a_key_is_ever_shown(into: str, gone: int) -> None:
    """A file is broken at each place: wrapped, joined, cut, the rest of a key under another one."""
    # Other keys in each case: what is shown of one would be of any.
    private, shared = _PAIRS[(_BROKEN.index(into) if into else gone) % len(_PAIRS)]
    text = GOOD.replace(PRIVATE, private) + f"PresharedKey = {shared}\n"
    pieces = {key[at : at + 4] for key in (private, shared) for at in range(len(key) - 3)}
    for at in range(len(text)):
        said = told(text[:at] + into + text[at + gone :])
        assert not any(piece in said for piece in pieces), said


@pytest.mark.parametrize("place", [f"{key} = {{}}" for key in KNOWN] + ["{}", "[{}]", "Key {}"])
@pytest.mark.parametrize("section", ["", "[Interface]\n", "[Peer]\n"])
def test_a_key_in_a_wrong_place_is_not_shown(place: str, section: str) -> None:
    for key in _KEYS:
        for value in (key, key[:20], key[20:], f"{key}:51820", f"10.0.0.2/{key}", f"a,{key}"):
            said = told(section + place.format(value) + "\n" + GOOD)
            pieces = {key[at : at + 4] for at in range(len(key) - 3)}
            assert not any(piece in said for piece in pieces), said


def told(text: str) -> str:
    """All that reading ``text`` says."""
    try:
        return " ".join(parse_vpn_config(text, "f").remarks)
    except VpnConfigError as error:
        return f"{error} {error.hint}"


_LINES = st.sampled_from([*GOOD.splitlines(), "MTU = ٣", "DNS =", "=", "[", "]", "Endpoint=:"])


@settings(max_examples=examples(300), deadline=None)
@given(st.one_of(st.text(), st.lists(_LINES | st.text(max_size=20)).map("\n".join)))
def test_the_parser_raises_nothing_but_its_error(text: str) -> None:
    try:
        config = parse_vpn_config(text)
    except VpnConfigError:
        return
    assert 576 <= config.mtu <= 1420
    assert 1 <= config.keepalive <= 65535


WITHOUT = GOOD[: GOOD.index("Endpoint")]
odd = st.text(st.characters(codec="utf-8"), max_size=20)


@given(odd, odd)
def test_no_text_of_a_strangers_file_forges_a_line(one: str, two: str) -> None:
    """Whatever stands for a key, a value, an endpoint with a scope id, or the whole file."""
    for text in (
        one,
        f"[{one}]",
        f"[Interface]\n{one} = {two}",
        f"[Interface]\nAddress = {one}",
        f"{WITHOUT}Endpoint = [fe80::1%{one}]:{two}\n",
        f"{WITHOUT}Endpoint = {one}:5\nAllowedIPs = {two}",
    ):
        try:
            vpn = parse_vpn_config(text, "v.conf")
            host = ipaddress.ip_address(vpn.endpoint_host)
            endpoint.vet(host, vpn.endpoint_port, (), ())
        except (VpnConfigError, EndpointError) as error:
            complained = shown(error)
            assert complained.startswith("wgcell: ")
            assert "\nwgcell: " not in complained
            assert is_text(complained, but="\n\t"), complained
        except ValueError:
            pass  # a name: what a resolver makes of it is another test's


def shown(error: WgcellError) -> str:
    said = io.StringIO()
    before, sys.stderr = sys.stderr, said
    try:
        complain(error)
    finally:
        sys.stderr = before
    return said.getvalue()
