"""What the guest may say, and what the host holds its reports to."""

from __future__ import annotations

import base64
import ipaddress
import shutil
import socket
import subprocess
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.guests import CONFIG

from wgcell.errors import GuestError
from wgcell.guest import protocol, scripts, verify
from wgcell.guest.config import GuestConfig, encode_config, parse_config
from wgcell.guest.frames import Terminal
from wgcell.guest.walls import Wall


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"hello",
        b"hello -1",
        b"exit 256 0 0",
        b"exit 0",
        b"exit 0 -1 0",
        b"exit 0 0 99999999999999999999",
        b"outputs 1 0",
        b"outputs 1 0 " + b"g" * 64,
        b"outputs 1 256 " + b"0" * 64,
        b"oom x",
        b"done",
        b"report eA==x",
        b"report " + base64.b64encode(b"= keys\nall of them\n"),
        b"fault !",
        b"\xff",
        b"x" * 140_000,
    ],
)
def test_anything_else_is_refused(line: bytes) -> None:
    with pytest.raises(GuestError):
        protocol.parse(line)


def test_messages_are_read() -> None:
    assert protocol.parse(b"heartbeat 3 7") == protocol.Heartbeat(3, 7)
    text = base64.b64encode(b"no card").decode()
    assert protocol.parse(f"fault {text}".encode()) == protocol.Fault("no card")
    assert protocol.parse(b"exit 7 10 0") == protocol.Exited(7, 10, 0)
    outputs = protocol.parse(b"outputs 10240 0 " + b"a" * 64)
    assert outputs == protocol.Outputs(10240, 0, "a" * 64)
    victim = base64.b64encode(b"python3\n").decode()
    assert protocol.parse(f"oom 2 {victim}".encode()) == protocol.OutOfMemory(2, "python3")
    assert protocol.parse(b"oom 1") == protocol.OutOfMemory(1, "")


def test_a_report_is_read_by_its_sections() -> None:
    said = "= links\nfirst eth0\nfirst lo\n= firewall\ntable inet wgcell {\n\n}\n= routes\n"
    report = protocol.parse(b"report " + base64.b64encode(said.encode()))
    assert report == protocol.Report(
        {"links": "first eth0\nfirst lo", "firewall": "table inet wgcell {\n\n}", "routes": ""}
    )


TEXT = st.text(st.characters(codec="utf-8"), max_size=40)
NUMBER = st.integers(0, 2**53)
SUBJECT_TEXT = st.lists(st.text("abc: {}/", min_size=1, max_size=9), max_size=3).map("\n".join)


@given(
    st.one_of(
        st.builds(protocol.Hello, st.integers(0, 1000)),
        st.just(protocol.Ready()),
        st.builds(protocol.Heartbeat, NUMBER, st.integers(0, 2**63)),
        st.builds(protocol.Changed, st.sampled_from(protocol.CHANGES), TEXT),
        st.builds(protocol.Fault, TEXT.filter(bool)),
        st.builds(protocol.OutOfMemory, NUMBER, TEXT.map(str.strip)),
        st.builds(protocol.Exited, st.integers(0, 255), NUMBER, NUMBER),
        st.builds(
            protocol.Outputs,
            NUMBER,
            st.integers(0, 255),
            st.text("0123456789abcdef").map(lambda digits: (digits + "0" * 64)[:64]),
        ),
        st.dictionaries(st.sampled_from(protocol.REPORTS), SUBJECT_TEXT, min_size=1).map(
            protocol.Report
        ),
    )
)
def test_what_the_guest_says_is_what_the_host_reads(message: protocol.Message) -> None:
    line = protocol.encode(message)
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    assert protocol.parse(line) == message


HARD = ("python3", "a b", "$(id)", "", "x\\y", ":", "é", "-c", "'q'", "a\nb", "*", "\udcff")


@given(
    st.builds(
        replace,
        st.just(CONFIG),
        time=st.integers(0, 2**51).map(lambda eighths: eighths / 2**20),
        walls=st.frozensets(st.sampled_from(Wall)),
        preshared_key=st.none() | st.binary(min_size=32, max_size=32),
        addresses=st.lists(st.sampled_from(["10.99.0.2/32", "fd99::2/128"])).map(tuple),
        dns=st.lists(st.sampled_from(["10.99.0.1", "fd99::1"])).map(tuple),
        search=st.lists(st.sampled_from(["a.example", "b.example"])).map(tuple),
        hosts=st.lists(
            st.tuples(st.sampled_from(["a.example", "b"]), st.sampled_from(["10.99.0.5", "::1"]))
        ).map(tuple),
        mtu=st.integers(0, 65535),
        inputs=st.booleans(),
        stdin=st.booleans(),
        terminal=st.none() | st.builds(Terminal, st.integers(0, 65535), st.integers(0, 65535)),
        command=st.lists(st.sampled_from(HARD) | TEXT).map(tuple),
        environment=st.lists(st.tuples(st.sampled_from(["A", "é"]), TEXT)).map(tuple),
        outputs=st.lists(st.sampled_from(HARD)).map(tuple),
    )
)
def test_the_guest_reads_the_configuration_that_the_host_sends(
    config: GuestConfig,
) -> None:
    read = parse_config(encode_config(config).splitlines(keepends=True))
    assert abs(read.time - config.time) < 1e-5
    assert replace(read, time=config.time) == config


LINES = encode_config(CONFIG).splitlines()


@pytest.mark.parametrize(
    "lines",
    [
        [],
        LINES[:-1],
        [*LINES[1:]],
        [LINES[0], *LINES],
        [b"colour blue", *LINES],
        [b"env " + base64.b64encode(b"=x"), *LINES],
        [b"arg !", *LINES],
        [b"host a", *LINES],
        [b"host a  ::1", *LINES],
        [b"host a ::1 b", *LINES],
        [b"wg_preshared_key " + base64.b64encode(b"short"), *LINES],
        [line.replace(b"1.000000", b"1") for line in LINES],
        [line.replace(b"walls ", b"walls roof,") for line in LINES],
        [line.replace(b"1420", b"99999") for line in LINES],
        [line.replace(b"inputs no", b"inputs perhaps") for line in LINES],
        [line.replace(b"stdin no", b"stdin perhaps") for line in LINES],
        [line for line in LINES if not line.startswith(b"stdin")],
        [b"terminal 24", *LINES],
        [b"terminal 24 65536", *LINES],
        [b"terminal 24 80 ", *LINES],
        [b"terminal 24 80", b"terminal 24 80", *LINES],
        [b"wg_preshared_key " + base64.b64encode(b"s" * 32)] * 2 + LINES,
        [line.replace(b"hostname cell", b"hostname \xff") for line in LINES],
    ],
)
def test_a_configuration_that_is_none_is_refused(lines: list[bytes]) -> None:
    with pytest.raises(GuestError):
        parse_config(lines)


def test_the_guest_reads_the_hosts_orders_and_no_others() -> None:
    sent = [
        *(protocol.RELEASE, protocol.TERMINATE, protocol.KILL),
        *(protocol.closed("stderr"), protocol.tunnel_mtu(1380), protocol.clock(1.5)),
        protocol.RECONNECT,
    ]
    assert list(map(protocol.parse_order, sent)) == [
        *(protocol.Release(), protocol.Terminate(), protocol.Kill()),
        *(protocol.Closed("stderr"), protocol.TunnelMtu(1380), protocol.Clock(1.5)),
        protocol.Reconnect(),
    ]
    for line in (b"", b"stop", b"closed stdin", b"mtu -1", b"time 1", b"time 1.5", b"release now"):
        with pytest.raises(GuestError):
            protocol.parse_order(line)


ROUTES = (
    "eth0 0040A8C0 FCFFFFFF\nwg0 00000000 00000000\n"
    "lo 00000000000000000000000000000001 80\nwg0 ff000000000000000000000000000000 08"
)


def test_reports_as_asked_match_and_a_change_is_named() -> None:
    reports = {**verify.expected(CONFIG), "routes": ROUTES}
    assert verify.mismatch(CONFIG, reports) is None
    assert "firewall" in (verify.mismatch(CONFIG, {**reports, "firewall": ""}) or "")


@pytest.mark.parametrize(
    ("routes", "said"),
    [
        (f"{ROUTES}\neth0 00000000 00000000", "over eth0"),
        (f"{ROUTES}\neth0 20010db8000000000000000000000000 20", "over eth0"),
        (f"{ROUTES}\neth1 0000000A 000000FF", "over 'eth1'"),
        (f"{ROUTES}\n", None),
        ("eth0 0040A8C0 FCFFFFFF\nwg0 ff000000000000000000000000000000 08", "into the tunnel"),
        ("", "into the tunnel"),
    ],
)
def test_a_route_that_is_too_much_is_named(routes: str, said: str | None) -> None:
    wrong = verify.mismatch(CONFIG, {**verify.expected(CONFIG), "routes": routes})
    assert wrong is None if said is None else said in (wrong or "")


NETWORKS = st.lists(
    st.builds(
        lambda bits, length, four: ipaddress.ip_network(
            (bits >> (96 if four else 0), length % (33 if four else 129)), strict=False
        ),
        st.integers(0, (1 << 128) - 1) | st.integers(0xFFFF << 32, (0x10000 << 32) - 1),
        st.integers(0, 128),
        st.booleans(),
    ),
    min_size=1,
    max_size=6,
    unique=True,
)


def as_wg_writes(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> str:
    """inet_ntop(3) writes an IPv4 address at the end of some, where Python does not."""
    family = socket.AF_INET if network.version == 4 else socket.AF_INET6
    text = socket.inet_ntop(family, network.network_address.packed)
    return f"{text}/{network.prefixlen}"


@given(NETWORKS, st.randoms(use_true_random=False), st.data())
def test_an_honest_guests_networks_match_in_any_order_and_spelling_and_no_others(
    networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network],
    random: Random,
    data: st.DataObject,
) -> None:
    config = replace(CONFIG, allowed_ips=tuple(map(str, networks)))
    seen = [as_wg_writes(network) for network in networks]
    random.shuffle(seen)

    def said(texts: list[str]) -> str | None:
        asked = verify.expected(config)
        key, endpoint, _, keepalive = asked["wireguard"].split(" ")
        report = f"{key} {endpoint} {','.join(texts)} {keepalive}"
        return verify.mismatch(config, {**asked, "wireguard": report, "routes": ROUTES})

    assert said(seen) is None
    assert said([*seen, "192.0.2.77/32"]) or "192.0.2.77/32" in seen
    assert said(seen[1:] or ["(none)"])
    odd = data.draw(st.text("0123456789abcdef:./%, ", max_size=9))
    assert said([odd, *seen[1:]]) or odd.strip("0")  # nothing raises


@pytest.mark.process
def test_scripts_pass_shellcheck() -> None:
    folder = Path(protocol.__file__).parent
    shellcheck = shutil.which("shellcheck")
    assert shellcheck, "shellcheck is a required development tool"
    shells = {"collect", "init"}
    ours = {place for place in scripts() if "." not in place.rpartition("/")[2]}
    assert {place.rpartition("/")[2] for place in ours} == shells
    files = [str(folder / name) for name in sorted(shells)]
    done = subprocess.run(
        [shellcheck, "-x", "-s", "sh", *files], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
