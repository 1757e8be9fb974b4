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

from wgcell.errors import GuestError
from wgcell.guest import protocol, scripts
from wgcell.guest.walls import Wall

CONFIG = protocol.GuestConfig(
    time=1, hostname="cell", walls=frozenset(Wall), private_key=b"k" * 32,
    peer_public_key=b"p" * 32, preshared_key=None, addresses=("10.99.0.2/32",),
    allowed_ips=("0.0.0.0/0",), mtu=1420, keepalive=25, dns=(), probe="10.99.0.1",
    inputs=False, command=("true",), environment=(), outputs=(),
)  # fmt: skip


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


def test_a_plain_word_needs_no_decoding_and_no_other_goes_plain() -> None:
    words = ("python3", "a b", "$(id)", "", "x\\y", ":", "é", "-c", "'q'", "a\nb", "*")
    lines = protocol.encode_config(replace(CONFIG, command=words)).decode().splitlines()
    sent = [line.removeprefix("arg ") for line in lines if line.startswith("arg ")]
    plain = {word for word in sent if word.startswith(":")}
    assert plain == {":python3", ":-c", "::"}
    others = [base64.b64decode(word).decode() for word in sent if word not in plain]
    assert others == [word for word in words if f":{word}" not in plain]


ROUTES = (
    "eth0 0040A8C0 FCFFFFFF\nwg0 00000000 00000000\n"
    "lo 00000000000000000000000000000001 80\nwg0 ff000000000000000000000000000000 08"
)


def test_reports_as_asked_match_and_a_change_is_named() -> None:
    reports = {**protocol.expected(CONFIG), "routes": ROUTES}
    assert protocol.mismatch(CONFIG, reports) is None
    assert "firewall" in (protocol.mismatch(CONFIG, {**reports, "firewall": ""}) or "")


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
    wrong = protocol.mismatch(CONFIG, {**protocol.expected(CONFIG), "routes": routes})
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
        asked = protocol.expected(config)
        key, endpoint, _, keepalive = asked["wireguard"].split(" ")
        report = f"{key} {endpoint} {','.join(texts)} {keepalive}"
        return protocol.mismatch(config, {**asked, "wireguard": report, "routes": ROUTES})

    assert said(seen) is None
    assert said([*seen, "192.0.2.77/32"]) or "192.0.2.77/32" in seen
    assert said(seen[1:] or ["(none)"])
    odd = data.draw(st.text("0123456789abcdef:./%, ", max_size=9))
    assert said([odd, *seen[1:]]) or odd.strip("0")  # nothing raises


@pytest.mark.system
def test_scripts_pass_shellcheck() -> None:
    folder = Path(protocol.__file__).parent
    shellcheck = shutil.which("shellcheck")
    assert shellcheck, "shellcheck is a required development tool"
    shells = {"agent", "clock", "collect", "init", "workload"}
    assert {place.rpartition("/")[2] for place in scripts() if "." not in place} == shells
    files = [str(folder / name) for name in sorted(shells)]
    done = subprocess.run(
        [shellcheck, "-x", "-s", "sh", *files], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
