"""Our reading of wg-quick files against wg-quick's and wg's own, in both directions.

What the tools refuse we refuse. What they take we take, with the same meaning, unless it would act
on this machine, or lacks what a cell needs, or is one of the deviations that `wgcell.cell.wgquick`
lists; each of those has a row in `DEVIATIONS`, so that the list is true.
"""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.support.examples import examples
from tests.support.vpnfiles import OTHER, PRIVATE, PUBLIC, SHARED
from tests.support.wgquick_tools import HOSTS, Meaning, RealTools

from wgcell.cell import probe
from wgcell.cell.wgquick import DEFAULT_KEEPALIVE, DEFAULT_MTU, VpnConfig, parse_vpn_config
from wgcell.errors import VpnConfigError

pytestmark = pytest.mark.namespaces

ZERO = base64.b64encode(bytes(32)).decode()
PEER = f"[Peer]\nPublicKey = {PUBLIC}\nEndpoint = vpn.example.com:51820\n"
HEAD = f"[Interface]\nPrivateKey = {PRIVATE}\nAddress = 10.0.0.2/32\n"
GOOD = f"{HEAD}{PEER}AllowedIPs = 0.0.0.0/0\n"


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealTools]:
    made = RealTools(tmp_path_factory.mktemp("oracle"))
    with contextlib.closing(made):
        assert made.ask(GOOD.encode()) is not None
        yield made


def ours(raw: bytes) -> VpnConfig | str:
    try:
        return parse_vpn_config(raw)
    except VpnConfigError as error:
        return str(error)


def compare(tools: RealTools, raw: bytes) -> str:
    """Both readings of a file: "same", "both refuse", or why ours may refuse what the tools take.

    Fails for any other difference.
    """
    theirs, mine = tools.ask(raw), ours(raw)
    if theirs is None:
        assert isinstance(mine, str), f"taken, though the tools refuse it: {raw!r}"
        return "both refuse"
    if isinstance(mine, str):
        why = useless(theirs) or deviation(theirs, raw)
        assert why, f"{mine}, though the tools take it: {raw!r}"
        return why
    assert not useless(theirs), f"taken, though it is {useless(theirs)}: {raw!r}"
    assert meaning(mine) == meant(theirs), raw
    return "same"


def allowed(theirs: Meaning) -> tuple[str, ...]:
    text = theirs.peers[0][3]
    return () if text == "(none)" else tuple(text.split(","))


def useless(theirs: Meaning) -> str:
    """Why a cell has no use for a file that the tools take, by their word; empty if it has."""
    if theirs.acts:
        return "acts"
    if not theirs.private_key or not theirs.addresses or len(theirs.peers) != 1:
        return "lacks"
    if theirs.peers[0][2] == "(none)" or not allowed(theirs):
        return "lacks"
    addresses = [ipaddress.ip_interface(one) for one in sorted(theirs.addresses)]
    networks = [ipaddress.ip_network(one) for one in allowed(theirs)]
    return "" if probe.choose(addresses, networks) else "leads nowhere"


def deviation(theirs: Meaning, raw: bytes) -> str:
    """Which of the listed deviations is in the file; empty for none."""
    quad = r"(0|[1-9][0-9]{0,2})(\.(0|[1-9][0-9]{0,2})){3}"
    for word in theirs.words:
        address, _, length = word.partition("/")
        if re.match("0[0-9]", length) or (":" not in address and not re.fullmatch(quad, address)):
            return "address"
    lines = [re.sub(rb"#.*|[ \t\v\f\r\0]", b"", line).lower() for line in raw.split(b"\n")]
    for line in lines:
        if line.startswith((b"endpoint=", b"listenport=")):
            port = re.split(rb"[:=]", line)[-1]
            if not port.isdigit() or int(port) > 65535:
                return "port"
            if b"%" in line:
                return "scope id"
        if line.startswith(b"fwmark=0x") and re.search(rb"0x.*[x+-]", line[9:]):
            return "fwmark"
    return ""


def meaning(mine: VpnConfig) -> dict[str, object]:
    host = HOSTS.get(mine.endpoint_host.rstrip(".").lower(), mine.endpoint_host)
    return {
        "private": clamped(mine.private_key),
        "public": mine.peer_public_key,
        "shared": mine.preshared_key,
        "endpoint": (ipaddress.ip_address(host), mine.endpoint_port),
        "allowed": set(mine.allowed_ips),
        "keepalive": mine.keepalive,
        "addresses": set(mine.addresses),
        "dns": mine.dns,
        "search": mine.search,
        "mtu": mine.mtu,
    }


def meant(theirs: Meaning) -> dict[str, object]:
    ((public, shared, endpoint, _, _, _, _, keepalive, *_),) = theirs.peers
    host, _, port = endpoint.rpartition(":")
    networks = [ipaddress.ip_network(one) for one in allowed(theirs)]
    addresses = {ipaddress.ip_interface(one) for one in theirs.addresses}
    joined = {
        network
        for version in (4, 6)
        for network in ipaddress.collapse_addresses(
            [one for one in networks if one.version == version]  # type: ignore[type-var]
        )
    }
    least = 1280 if any(one.version == 6 for one in (*networks, *addresses)) else 576
    servers = [server for word in theirs.dns if (server := address(word)) is not None]
    # What is more than a host's name is no search domain that a resolver could use.
    search = [word for word in theirs.search if re.fullmatch(r"[\w.-]+", word, re.ASCII)]
    return {
        "private": base64.b64decode(theirs.private_key),
        "public": base64.b64decode(public),
        "shared": None if shared == "(none)" else base64.b64decode(shared),
        "endpoint": (ipaddress.ip_address(host.strip("[]")), int(port)),
        "allowed": joined,
        "keepalive": DEFAULT_KEEPALIVE if keepalive == "off" else int(keepalive),
        "addresses": addresses,
        "dns": tuple(dict.fromkeys(servers)),
        "search": tuple(dict.fromkeys(search)),
        "mtu": min(max(theirs.mtu, least), DEFAULT_MTU) if theirs.mtu else DEFAULT_MTU,
    }


def address(word: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(word) if "%" not in word else None
    return None


def clamped(key: bytes) -> bytes:
    """A Curve25519 key as `wg show` tells it."""
    return bytes([key[0] & 248, *key[1:31], (key[31] & 127) | 64])


def within(head: str = "", peer: str = "", allowed_ips: str = "AllowedIPs = 0.0.0.0/0") -> str:
    """A good file with lines more."""
    return f"{HEAD}{head}\n{PEER}{peer}\n{allowed_ips}\n"


# What is the same to both. A row that the tools refuse, or that is refused by us, fails.
SAME = {
    "as it is": GOOD,
    "search domains": within("DNS = 192.0.2.53, corp.example.com example.com"),
    "search domains alone": within("DNS = corp.example.com"),
    "a domain that systemd-resolved routes": within("DNS = 192.0.2.53, ~., ~example.com"),
    "DNS that is none": within("DNS = 1.2.3.4.5, 192.0.2.53, https://dns.example.com/q, a/b"),
    "DNS twice": within("DNS = 192.0.2.53\nDNS=2001:db8::53,192.0.2.53"),
    "DNS without =": within("DNS"),
    "empty values": within("DNS =\nAddress =\nMTU =\nTable =\nPostUp =\nPreDown = # nothing"),
    "MTU of 0": within("MTU = 0"),
    "MTU in base 16, 8": within("MTU = 0x500\nMTU = 02400"),
    "MTU that is too large": within("MTU = 9000"),
    "MTU that is too small": within("MTU = 68"),
    "MTU below IPv6's": within("MTU = 1200", allowed_ips="AllowedIPs = 0.0.0.0/0, ::/0"),
    "MTU twice": within("MTU = 1300\nMTU ="),
    "FwMark": within(
        "FwMark = 0xca6c\nFwMark = 51820\nFwMark = off\nfwmark=0\nFwMark = 0x000000000000a"
    ),
    "Table off": within("Table = off"),
    "Table auto": within("table = 1234\ntable = auto"),
    "SaveConfig false": within("SaveConfig = true\nSaveConfig = False"),
    "trailing commas": within("Address = ,fd00::2/128,,\nDNS = 192.0.2.53,"),
    "spaces between": within("Address = fd00::2/128 10.0.0.3/32\tfd00::3/64"),
    "no prefix length, a netmask": within("Address = 10.0.0.9, fd00::9, 10.1.0.9/255.255.255.0"),
    "one address with two lengths": within("Address = 10.0.0.2/24"),
    "0.0.0.0": within("Address = 0.0.0.0/8"),
    "bare IPv6 endpoint": within(peer="Endpoint = 2001:db8:9::7:51820"),
    "IPv6 endpoint": within(peer="Endpoint = [2001:db8:9::7]:51820"),
    "brackets around others": within(peer="Endpoint = [192.0.2.9]:1\nEndpoint=[vpn.example.com]:2"),
    "spaces in an endpoint": within(peer="End point = vpn.exa mple.com : 5 1820"),
    "Latin-1": within("# B\xfcro, Z\xfcrich\xa0"),
    "a comment behind": within("DNS = 192.0.2.53#a = b"),
    "letter case": GOOD.replace("PrivateKey", "PRIVATEKEY").replace("[Peer]", "[pEER]"),
    "carriage returns": within("MTU = 1300\nDNS = 192.0.2.53").replace("\n", "\r\n"),
    "other spaces": within("\v\fMTU\t=\f1300\v\n \t[Interface]\v"),
    "NUL bytes": within("MT\0U = 13\x0000"),
    "a section again": within(
        peer="AllowedIPs = 0.0.0.0/0\n[Interface]\nMTU = 1300\n[ Interface ]\nListenPort = 0",
        allowed_ips="",
    ),
    "keys again": within(
        f"PrivateKey = {OTHER}",
        f"PublicKey = {OTHER}\nPresharedKey={SHARED}\nPresharedKey={OTHER}\n"
        "Endpoint = 192.0.2.9:1\nPersistentKeepalive = 5\nPersistentKeepalive = 015",
    ),
    "keepalive off": within(peer="PersistentKeepalive = OFF"),
    "a shared key of zeros": within(peer=f"PresharedKey = {ZERO}"),
    "spaces in a key": GOOD.replace(PRIVATE, f"{PRIVATE[:9]} {PRIVATE[9:20]}\t{PRIVATE[20:]}"),
    "networks added up": within(peer="AllowedIPs = 10.0.0.0/8, 10.0.0.0/8, 10.1.2.3/8,::/0"),
    "halves": within(allowed_ips="AllowedIPs = 0.0.0.0/1,128.0.0.0/1,::/1,8000::/1"),
    "no prefix": within(allowed_ips="AllowedIPs = 192.0.2.9, 2001:db8::1, 10.0.0.0/08"),
    "mapped": within(allowed_ips="AllowedIPs = 0.0.0.0/0,::ffff:192.0.2.0/120,::192.0.2.1/128"),
    "split": within(allowed_ips="AllowedIPs = 192.0.2.0/24"),
    "no line's end": GOOD.rstrip("\n"),
}

# What both refuse.
REFUSED = {
    "nothing known": within("Colour = blue"),
    "a key in the other section": within(peer="MTU = 1300"),
    "a key behind [ Interface ]": within("[ Interface ]\nMTU = 1300"),
    "before a section": "MTU = 1300\n" + GOOD,
    "no peer's key": GOOD.replace("PublicKey", "#"),
    "no value": within(peer="AllowedIPs ="),
    "a comma too much in AllowedIPs": within(peer="AllowedIPs = 10.0.0.0/8,"),
    "spaces between AllowedIPs": within(peer="AllowedIPs = 10.0.0.0/8 10.0.0.0/8"),
    "a netmask in AllowedIPs": within(peer="AllowedIPs = 10.0.0.0/255.0.0.0"),
    "octal in AllowedIPs": within(peer="AllowedIPs = 010.0.0.0/8"),
    "too long a prefix": within(peer="AllowedIPs = 10.0.0.0/33"),
    "too long a prefix of an address": within("Address = 10.0.0.2/33"),
    "a host mask": within("Address = 10.0.0.2/0.0.0.255"),
    "an address that is none": within("Address = corp.example.com"),
    "Address without =": within("Address"),
    "the same address": within("Address = 10.0.0.2"),
    "the same IPv6 address": within("Address = fd00::2/64, fd00::2/128"),
    "multicast": within("Address = ff02::5/64"),
    "IPv6's loopback": within("Address = ::1/128"),
    "a key that is too short": within(peer=f"PresharedKey = {SHARED[:-2]}="),
    "bits behind a key": within(peer=f"PresharedKey = {SHARED[:-2]}9="),
    "MTU that is none": within("MTU = large"),
    "MTU of two": within("MTU = 1300 1400"),
    "MTU below 0": within("MTU = -5"),
    "SaveConfig that is neither": within("SaveConfig = yes"),
    "FwMark that is none": within("FwMark = 0X10"),
    "FwMark of no digit": within("FwMark = 0x"),
    "FwMark too large": within("FwMark = 4294967296"),
    "keepalive too long": within(peer="PersistentKeepalive = 65536"),
    "keepalive that is none": within(peer="PersistentKeepalive = on"),
    "no port": within(peer="Endpoint = vpn.example.com"),
    "no port behind IPv6": within(peer="Endpoint = 2001:db8::9"),
    "a bracket alone": within(peer="Endpoint = [2001:db8::9:51820"),
    "an unknown section": within(peer="[Other]"),
    "a section that does not end": within(peer="[Peer"),
    "a hook of the peer's": within(peer="PostUp = true"),
}
# What the tools take, and we don't.
ACTS = {
    name: within(line)
    for name, line in {
        "PreUp": "PreUp = true",
        "PostUp": "PostUp =\nPostUp = true",
        "PreDown": "predown = true",
        "PostDown": "PostDown",
        "SaveConfig": "SaveConfig = TRUE",
        "Table": "Table = 1234",
    }.items()
} | {"Table, in capitals": within("Table = OFF")}
LACKS = {
    "PrivateKey": within().replace("PrivateKey", "#"),
    "PrivateKey, all zeros": within(f"PrivateKey = {ZERO}"),
    "Address": within().replace("Address", "#"),
    "Endpoint": within().replace("Endpoint", "#"),
    "AllowedIPs": within(allowed_ips=""),
    "[Peer]": HEAD,
    "everything": "",
    "[Peer], alone": within() + f"[Peer]\nPublicKey = {OTHER}",
    "leads nowhere": within(allowed_ips="AllowedIPs = 2001:db8::/32"),
    "leads nowhere but home": within(allowed_ips="AllowedIPs = 10.0.0.2/32"),
}
DEVIATIONS = {
    "octal": within("Address = 010.0.0.3"),
    "hexadecimal": within("Address = 0x0a.0.0.3"),
    "parts left out": within("Address = 10.3/32"),
    "a zero before the length": within("Address = 10.0.0.3/032"),
    "a port above 65535": within("ListenPort = 65537"),
    "an endpoint's port above 65535": within(peer="Endpoint = vpn.example.com:65537"),
    "a service": within("ListenPort = domain"),
    "a service's endpoint": within(peer="Endpoint = vpn.example.com:domain"),
    "scope id": within(peer="Endpoint = [fe80::1%lo]:51820"),
}


@pytest.mark.parametrize("text", SAME.values(), ids=SAME)
def test_what_both_take_has_one_meaning(tools: RealTools, text: str) -> None:
    assert compare(tools, text.encode("latin-1")) == "same"


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_what_the_tools_refuse_is_refused(tools: RealTools, text: str) -> None:
    assert compare(tools, text.encode("latin-1")) == "both refuse"


@pytest.mark.parametrize(
    ("what", "text"),
    [
        *(("acts", text) for text in ACTS.values()),
        *(("lacks|leads nowhere", text) for text in LACKS.values()),
        *(("address|port|scope id", text) for text in DEVIATIONS.values()),
    ],
    ids=[*ACTS, *LACKS, *DEVIATIONS],
)
def test_what_only_the_tools_take_is_listed(tools: RealTools, what: str, text: str) -> None:
    assert re.fullmatch(what, compare(tools, text.encode("latin-1")))


# Files as they are made of lines: good ones, bad ones, and letters that are out of place.

_VALUES = {
    "PrivateKey": [PRIVATE, OTHER, ZERO, PRIVATE[:-1]],
    "PublicKey": [PUBLIC, OTHER, PUBLIC[:20]],
    "PresharedKey": [SHARED, ZERO],
    "Address": [
        "10.0.0.2/32",
        "10.0.0.2",
        "fd00::2/64, 10.7.0.2/24",
        "",
        "fe80::2/64,",
        "10.0.0.2/33",
    ],
    "DNS": ["192.0.2.53", "2001:db8::53,192.0.2.54", "corp.example.com 192.0.2.53", "", "~."],
    "MTU": ["1420", "1280", "0", "", "9000", "0x500", "1.5"],
    "ListenPort": ["51820", "0", "x"],
    "FwMark": ["off", "0xca6c", "51820", "-1"],
    "Table": ["off", "auto", "", "51"],
    "SaveConfig": ["false", "true", "maybe"],
    "PostUp": ["", "true"],
    "PreDown": ["", "# nothing"],
    "AllowedIPs": [
        "0.0.0.0/0",
        "0.0.0.0/0, ::/0",
        "10.0.0.0/8,10.0.0.0/8",
        "::ffff:192.0.2.0/120, 192.0.2.7",
        "192.0.2.9/24,",
        "",
    ],
    "Endpoint": [
        "vpn.example.com:51820",
        "SIX.example.com.:51820",
        "192.0.2.9:0",
        "[2001:db8::9]:51820",
        "2001:db8::9:51820",
        "192.0.2.9",
    ],
    "PersistentKeepalive": ["25", "0", "off", "65536"],
    "Colour": ["blue"],
}
_COMMENTS = st.sampled_from(["", "", "", " # x = y", "#\xfc", " ;", "\r", "\t"])
_SPACES = st.sampled_from(["", " ", "\t", "  ", "\v"])


def _case(text: str) -> st.SearchStrategy[str]:
    return st.sampled_from([text, text, text.lower(), text.upper()])


def _line(key: str, good: bool) -> st.SearchStrategy[str]:
    values = _VALUES[key][:1] if good else _VALUES[key]
    return st.builds(
        "{}{}{}={}{}{}".format,
        *(_SPACES, _case(key), _SPACES, _SPACES, st.sampled_from(values), _COMMENTS),
    )


_ANY = st.sampled_from(sorted(_VALUES)).flatmap(lambda key: _line(key, good=False))
_LINES = st.lists(
    _ANY | st.sampled_from(["", "# \xe9", "[Interface]", "[ Interface ]"]), max_size=3
)
_HEADS = st.sampled_from(["PrivateKey", "Address"])


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """A good file, with odd lines more, and now and then a letter changed."""
    lines = [
        draw(_case("[Interface]")),
        *draw(_LINES),
        *(draw(_line(key, good=True)) for key in ("PrivateKey", "Address")),
        *draw(_LINES),
        draw(_case("[Peer]")),
        *draw(_LINES),
        *(draw(_line(key, good=True)) for key in ("PublicKey", "Endpoint", "AllowedIPs")),
        *draw(_LINES),
    ]
    text = draw(st.sampled_from(["\n", "\n", "\r\n"])).join(lines)
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        place = draw(st.integers(0, len(text)))
        letter = draw(st.sampled_from([*" \t\n,=#:/.019afx\r\0\xe9-[]", ""]))
        text = text[:place] + letter + text[place + draw(st.integers(0, 1)) :]
    return text.encode("latin-1")


@settings(
    max_examples=examples(int(os.environ.get("WGCELL_WGQUICK_FILES", "150"))),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@example(raw=GOOD.encode())
@given(raw=files())
def test_any_file_means_to_us_what_it_means_to_the_tools(tools: RealTools, raw: bytes) -> None:
    compare(tools, raw)


def test_the_collected_files(tools: RealTools) -> None:
    """Of each kind that is met with, in its own layout; see the folder's README."""
    for path in sorted((Path(__file__).parent / "wgquick").glob("*.conf")):
        raw = path.read_bytes()
        expected = "acts" if path.name.startswith("acts-") else "same"
        expected = "both refuse" if path.name.startswith("refused-") else expected
        assert compare(tools, raw) == expected, path.name
