"""Every key of a job file against a strict provider: a ceiling, a permission, or no harm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pytest
from tests.support.vpnfiles import vpn_file

from wgcell.cell import permissions, schema
from wgcell.cell.endpoint import vet as vet_endpoint
from wgcell.cell.job import HostLimits, Job, JobOptions
from wgcell.cell.jobfile import job_keys, load_job
from wgcell.cell.provider import CEILINGS, PERMISSIONS, Provider, apply_ceilings, load_provider
from wgcell.cell.rows import By
from wgcell.cell.settings import TABLE
from wgcell.cell.wgquick import load_vpn_config
from wgcell.errors import EndpointError, InputError, JobError
from wgcell.gateway.model import remarks
from wgcell.gateway.model.policy import Policy
from wgcell.gateway.model.rules import parse_rule
from wgcell.net import addresses
from wgcell.net.addresses import Network

HOST = HostLimits(cpus=64, memory=2**40, disk=2**40)
OWN = (addresses.network("45.0.0.7/32"), addresses.network("45.0.0.0/24"))

STRICT = """
require_walls = true
[ceilings]
cpus = 1
memory = "256MiB"
disk = "64MiB"
timeout = "1m"
rate = "1Mbit"
quota = "10MiB"
grace = "5s"
tunnel_timeout = "1m"
verify_timeout = "1m"
"""


def own() -> Sequence[Network]:
    return OWN


@dataclass(frozen=True, slots=True)
class Asks:
    """What a stranger's file says for a key."""

    harmful: tuple[str, ...] = ()
    """Each is refused by the strict provider."""
    plain: tuple[str, ...] = ()
    """Each is taken by the strict provider."""
    permitted: str = ""
    """In the provider's configuration: then all of ``harmful`` are taken."""


ASKS = {
    # A key without a row here fails the first test.
    "name": Asks(plain=("name = 'x'",)),
    "command": Asks(plain=("command = ['sh', '-c', 'rm -rf /']",)),
    "image": Asks(plain=("image = 'other'",)),
    "inputs": Asks(harmful=("inputs = ['../x']", "inputs = ['/etc']"), plain=("inputs = ['a']",)),
    "exclude": Asks(plain=("exclude = ['*']",)),
    "outputs": Asks(harmful=("outputs = ['../x']",), plain=("outputs = ['.']",)),
    "timeout": Asks(
        ("timeout = '365d'", "timeout = 61"), ("timeout = 60",), "[ceilings]\ntimeout = '365d'"
    ),
    "grace": Asks(("grace = '10m'", "grace = 6"), ("grace = 5",), "[ceilings]\ngrace = '10m'"),
    "env": Asks(plain=("env = { LD_PRELOAD = '/x', PATH = '/y' }",)),
    "resources.cpus": Asks(("resources.cpus = 2",), ("resources.cpus = 1",), "[ceilings]\ncpus=2"),
    "resources.memory": Asks(
        ("resources.memory = '1GiB'",),
        ("resources.memory = '128MiB'",),
        "[ceilings]\nmemory = '1GiB'",
    ),
    "resources.disk": Asks(
        ("resources.disk = '1GiB'",), ("resources.disk = '16MiB'",), "[ceilings]\ndisk = '1GiB'"
    ),
    "resources.rate": Asks(
        ("resources.rate = '1Gbit'",), ("resources.rate = '1Mbit'",), "[ceilings]\nrate = '1Gbit'"
    ),
    "resources.quota": Asks(
        ("resources.quota = '1GiB'",),
        ("resources.quota = '1MiB'",),
        "[ceilings]\nquota = '1GiB'",
    ),
    "vpn.config": Asks(
        ("vpn.config = 'lan.conf'",),
        ("vpn.config = 'public.conf'",),
        "allow_endpoints = ['192.168.1.9']",
    ),
    "gateway.allow": Asks(
        (
            *("gateway.allow = ['192.168.1.9:80']", "gateway.allow = ['127.0.0.1:22/tcp']"),
            *("gateway.allow = ['169.254.169.254:80']", "gateway.allow = ['168.63.129.16:80']"),
            *("gateway.allow = ['45.0.0.7:1-65535']", "gateway.allow = ['45.0.0.8/32:*']"),
            *("gateway.allow = ['[::1]:80']", "gateway.allow = ['[::ffff:127.0.0.1]:80']"),
            "gateway.allow = ['8.8.8.8:53', '[fd00:ec2::254]:80']",
        ),
        (
            # Ranges and names open nothing that is protected, see tests/gateway/test_policy.py.
            *("gateway.allow = ['8.8.8.8:53']", "gateway.allow = ['example.com:443', '*:443']"),
            "gateway.allow = ['192.168.0.0/16:80']",
        ),
        "allow_targets = ['0.0.0.0/0:*', '[::/0]:*']",
    ),
    "gateway.services": Asks(
        tuple(
            f"gateway.services = {{ '10.99.0.5:80' = '{target}' }}"
            for target in (
                *("127.0.0.1:22", "192.168.1.9:80", "169.254.169.254:80", "45.0.0.7:80"),
                *("[::1]:80", "localhost:80", "router.lan:80", "example.com:80", "LOCALHOST:80"),
            )
        ),
        ("gateway.services = { '10.99.0.5:80' = '8.8.8.8:53' }",),
        "allow_targets = ['0.0.0.0/0:*', '[::/0]:*', 'localhost:80', '*.lan:80', 'example.com:80']",
    ),
    "gateway.publish": Asks(
        tuple(
            f"gateway.publish = ['{port}']"
            for port in (
                *("8080:80", "0:80", "127.0.0.1:80:80", "0.0.0.0:8080:80", "[::1]:8080:80"),
                *("[::]:8080:80", "192.168.1.9:22:22"),
            )
        ),
        permitted="allow_publish = ['0.0.0.0/0:*', '[::/0]:*']",
    ),
    "hosts": Asks(
        ("hosts = { 'a b' = '127.0.0.1' }", "hosts = { a = '127.0.0.1 b' }"),
        ("hosts = { 'localhost' = '192.168.1.9', 'a.example.com' = '::1' }",),
    ),
    "policy.on_rogue": Asks(
        ("policy.on_rogue = 'freeze'",), ("policy.on_rogue = 'terminate'",), "allow_freeze = true"
    ),
    "policy.tunnel_timeout": Asks(
        ("policy.tunnel_timeout = '365d'", "policy.tunnel_timeout = 61"),
        ("policy.tunnel_timeout = 60",),
    ),
    "policy.verify_timeout": Asks(
        ("policy.verify_timeout = '365d'", "policy.verify_timeout = 61"),
        ("policy.verify_timeout = 60",),
    ),
    "policy.guest_walls": Asks(
        ("policy.guest_walls = 'off'",),
        ("policy.guest_walls = 'on'",),
        "allow_guest_walls_off = true",
    ),
}


def provider_of(folder: Path, text: str) -> Provider:
    path = folder / "config.toml"
    path.write_text(text)
    return load_provider(path)


def asked(folder: Path, text: str, provider: Provider, options: JobOptions | None = None) -> Job:
    """What `wgcell run job.toml` does with a file before anything has started."""
    (folder / "lan.conf").write_text(vpn_file())
    (folder / "public.conf").write_text(vpn_file().replace("192.168.1.9", "8.8.8.8"))
    path = folder / "job.toml"
    path.write_text(text if "command" in text else f"command = ['true']\n{text}")
    job = apply_ceilings(load_job(path, HOST, options), provider)
    permissions.vet(job, provider, own)
    if job.vpn is not None:
        vpn = load_vpn_config(job.vpn)
        address = addresses.address(vpn.endpoint_host)
        vet_endpoint(address, vpn.endpoint_port, provider.allow_endpoints, OWN)
    return job


def test_each_key_has_a_row_here_and_in_the_table() -> None:
    assert set(job_keys()) == set(ASKS) == {row.key for row in TABLE}
    assert len(TABLE) == len(ASKS)


def test_each_row_names_what_there_is() -> None:
    ceilings = {row.name for row in CEILINGS}
    permitted = {*PERMISSIONS, *(column.name for column in fields(Provider))}
    for row in TABLE:
        if row.by is By.HARMLESS:
            assert row.why.endswith(".") and len(row.why.split()) > 4, row
        else:
            assert row.why in (ceilings if row.by is By.CEILING else permitted), row
            assert ASKS[row.key].harmful, row
    # A limit that nothing asks for would be no limit.
    assert {row.why for row in TABLE if row.by is By.CEILING} == ceilings


@pytest.mark.parametrize("key", ASKS)
def test_a_strict_provider_is_not_widened(tmp_path: Path, key: str) -> None:
    strict = provider_of(tmp_path, STRICT)
    for text in ASKS[key].harmful:
        with pytest.raises(InputError) as caught:
            asked(tmp_path, text, strict)
        assert key.rpartition(".")[2] in str(caught.value) or isinstance(
            caught.value, EndpointError
        )
    for text in ASKS[key].plain:
        asked(tmp_path, text, strict)


@pytest.mark.parametrize("key", [key for key, asks in ASKS.items() if asks.permitted])
def test_what_the_provider_permits_is_taken(tmp_path: Path, key: str) -> None:
    permitting = provider_of(tmp_path, ASKS[key].permitted)
    for text in ASKS[key].harmful:
        asked(tmp_path, text, permitting)


@pytest.mark.parametrize("key", [row.key for row in TABLE if row.by is By.PERMISSION])
def test_a_provider_without_a_file_permits_none_of_it(tmp_path: Path, key: str) -> None:
    for text in ASKS[key].harmful:
        with pytest.raises(InputError):
            asked(tmp_path, text, Provider())


@pytest.mark.parametrize(
    ("permitted", "port", "taken"),
    [
        ("127.0.0.1:8000-8009", "8000:80", True),
        ("127.0.0.1:8000-8009", "8010:80", False),
        ("127.0.0.1:8000-8009", "0:80", False),
        ("127.0.0.1:*", "0:80", True),
        ("127.0.0.1:8000-8009", "0.0.0.0:8000:80", False),
        ("127.0.0.1:8000-8009/udp", "8000:80", False),
        ("0.0.0.0/0:8000", "192.168.1.9:8000:80", True),
        ("0.0.0.0/0:8000", "[::1]:8000:80", False),
    ],
)
def test_where_a_job_file_may_publish(
    tmp_path: Path, permitted: str, port: str, taken: bool
) -> None:
    provider, text = provider_of(tmp_path, f"allow_publish = ['{permitted}']"), f"['{port}']"
    if taken:
        asked(tmp_path, f"gateway.publish = {text}", provider)
    else:
        with pytest.raises(JobError, match="is a port of this machine's"):
            asked(tmp_path, f"gateway.publish = {text}", provider)
    # What is typed is the person's own word, also of the same port.
    options = JobOptions(publish=(port,))
    asked(tmp_path, f"gateway.publish = {text}", Provider(), options)


@pytest.mark.parametrize("text", ["example.com:80", "*:80", "8080", "127.0.0.1"])
def test_where_may_be_published_is_an_address_and_ports(tmp_path: Path, text: str) -> None:
    with pytest.raises(JobError, match="allow_publish: "):
        provider_of(tmp_path, f"allow_publish = ['{text}']")


def test_a_time_of_a_job_file_is_finite_without_any_ceiling(tmp_path: Path) -> None:
    for key, most in (
        *(("policy.tunnel_timeout", 3600), ("policy.verify_timeout", 3600)),
        *(("grace", 600), ("timeout", 365 * 86400)),
    ):
        asked(tmp_path, f"{key} = {most}", Provider())
        for longer in (most + 1, "'365d1s'", "inf", "nan", 1e300):
            with pytest.raises(JobError, match="allowed"):
                asked(tmp_path, f"{key} = {longer}", Provider())


def test_wgcells_own_times_are_not_lengthened_by_a_ceiling(tmp_path: Path) -> None:
    job = asked(
        tmp_path, "", Provider(ceilings={"tunnel_timeout": 3600.0, "verify_timeout": 3600.0})
    )
    assert (job.tunnel_timeout, job.verify_timeout) == (None, None)


TYPED = JobOptions(
    allow=("192.168.1.9:80",),
    services=(("10.99.0.5:80", "127.0.0.1:22"), ("10.99.0.6:80", "localhost:80")),
    settings={"on_rogue": "freeze", "guest_walls": "off"},
)


def test_what_a_person_types_is_his_own_word(tmp_path: Path) -> None:
    job = asked(tmp_path, "", Provider(), TYPED)
    assert job.gateway is not None and "192.168.1.9:80" in job.gateway.allow
    # The same in the file changes nothing, and what is beside it is looked at.
    same = "gateway.allow = ['192.168.1.9:80']\npolicy.on_rogue = 'freeze'\n"
    asked(tmp_path, same + "gateway.services = { '10.99.0.5:80' = '[::1]:1' }", Provider(), TYPED)
    more = "gateway.allow = ['192.168.1.9:80', '192.168.1.9:81']"
    with pytest.raises(JobError, match=r"'192\.168\.1\.9:81' is private"):
        asked(tmp_path, more, Provider(), TYPED)


def test_who_requires_every_wall_gets_them_whoever_asks(tmp_path: Path) -> None:
    walls = Provider(require_walls=True, permissions=frozenset({"allow_guest_walls_off"}))
    for text, options in (("policy.guest_walls = 'off'", None), ("", TYPED)):
        with pytest.raises(JobError, match="requires every wall"):
            asked(tmp_path, text, walls, options)
    asked(tmp_path, "", walls, replace(TYPED, settings={"on_rogue": "freeze"}))


@pytest.mark.parametrize(
    ("listed", "target", "taken"),
    [
        ("192.168.1.9:80", "192.168.1.9:80", True),
        ("192.168.1.9:80", "192.168.1.9:81", False),
        ("192.168.1.9:80-90", "192.168.1.9:85", True),
        ("192.168.1.0/24:80", "192.168.1.9:80", True),
        ("192.168.1.9:80/udp", "192.168.1.9:80", False),
        ("a.lan:80", "A.lan:80", True),
        ("a.lan:80", "b.lan:80", False),
        ("*.lan:80", "b.lan:80", True),
        ("*.lan:80", "lan:80", False),
    ],
)
def test_the_providers_list_permits_what_it_says(
    tmp_path: Path, listed: str, target: str, taken: bool
) -> None:
    provider = provider_of(tmp_path, f"allow_targets = ['{listed}']")
    text = f"gateway.services = {{ '10.99.0.5:80' = '{target}' }}"
    if taken:
        asked(tmp_path, text, provider)
    else:
        with pytest.raises(JobError, match="allow_targets"):
            asked(tmp_path, text, provider)


@pytest.mark.parametrize("text", ["*:80", "x", "fe80::1%x:80", "[fe80::1%x]:80"])
def test_a_list_of_the_providers_that_is_none(tmp_path: Path, text: str) -> None:
    with pytest.raises(JobError, match="allow_targets"):
        provider_of(tmp_path, f"allow_targets = ['{text}']")


def test_a_rule_needs_all_its_ports_and_protocols_on_the_list(tmp_path: Path) -> None:
    for listed, rule, taken in (
        ("192.168.1.9:1-100", "192.168.1.9:50-100", True),
        ("192.168.1.9:1-100", "192.168.1.9:50-101", False),
        ("192.168.1.9:80/tcp", "192.168.1.9:80/tcp", True),
        ("192.168.1.9:80/tcp", "192.168.1.9:80", False),
        ("192.168.1.9:*", "192.168.1.9:*", True),
    ):
        provider = provider_of(tmp_path, f"allow_targets = ['{listed}']")
        try:
            asked(tmp_path, f"gateway.allow = ['{rule}']", provider)
            assert taken, rule
        except JobError:
            assert not taken, rule


def test_this_machines_networks_are_asked_for_only_where_they_matter(tmp_path: Path) -> None:
    def never() -> Sequence[Network]:
        raise AssertionError("asked")

    for text in ("", "gateway.allow = ['example.com:443', '10.0.0.0/8:80', '*:443']"):
        path = tmp_path / "job.toml"
        path.write_text(f"command = ['true']\n{text}")
        permissions.vet(load_job(path, HOST), Provider(), never)


def test_no_rule_that_is_passed_opens_what_is_protected(tmp_path: Path) -> None:
    """What the table lets through is asked of the policy itself."""
    for text in ASKS["gateway.allow"].plain:
        job = asked(tmp_path, text, Provider())
        assert job.gateway is not None
        policy = Policy(tuple(map(parse_rule, job.gateway.allow)), protected=OWN)
        for text in ("192.168.1.9", "127.0.0.1", "169.254.169.254", "45.0.0.7", "::1"):
            decision = policy.evaluate(addresses.address(text), 80, "tcp", ("example.com",))
            assert decision.action.value == "refuse"


def test_a_file_of_many_rules_is_read_and_remarked_upon_in_time(tmp_path: Path) -> None:
    """1,024 rules took 30 s: each was compared with each, and both with every special range."""
    rules = [f"45.{n // 250}.{n % 250}.0/24:443" for n in range(1024)]
    job = asked(tmp_path, f"gateway.allow = {rules}", Provider())
    assert job.gateway is not None

    class Counted(tuple[object, ...]):
        looks = 0

        def __iter__(self):  # type: ignore[no-untyped-def]
            Counted.looks += 1
            return super().__iter__()

    protected = Counted((addresses.network("45.0.0.0/24"),))
    said = remarks.of_rules(tuple(map(parse_rule, job.gateway.allow)), protected)  # type: ignore[arg-type]
    assert len(said) == 1 and "opens nothing" in said[0]
    assert Counted.looks <= 4 * 1024  # not 1,024 times 1,024
    with pytest.raises(JobError, match="1025 of them; allowed: at most 1024"):
        asked(tmp_path, f"gateway.allow = {[*rules, 'example.com:1']}", Provider())
    services = {f"10.99.1.{n}:80": "8.8.8.8:80" for n in range(1, 255)}
    lines = "\n".join(f"'{inside}' = '{outside}'" for inside, outside in services.items())
    asked(tmp_path, f"[gateway.services]\n{lines}", Provider())
    with pytest.raises(JobError, match="allowed: at most 256"):
        lines += "".join(f"\n'10.99.2.{n}:80' = '8.8.8.8:80'" for n in range(10))
        asked(tmp_path, f"[gateway.services]\n{lines}", Provider())


def test_a_file_that_is_wrong_in_all_ways_is_told_in_few_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guesses: list[str] = []

    def guess(key: str, *known: object) -> str:
        guesses.append(key)
        return key

    monkeypatch.setattr(schema, "unknown_key", guess)
    (tmp_path / "job.toml").write_text("".join(f"x{n} = 1\n" for n in range(20_000)))
    with pytest.raises(JobError, match="and 19980 more like these") as caught:
        load_job(tmp_path / "job.toml", HOST)
    assert len(str(caught.value).splitlines()) == 21
    assert len(guesses) == 20  # each takes milliseconds
    (tmp_path / "job.toml").write_text("#" * (256 * 1024 + 1))
    with pytest.raises(JobError, match="larger than 256KiB"):
        load_job(tmp_path / "job.toml", HOST)


def test_a_refusal_names_the_providers_file_where_it_really_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "conf"))
    there = str(tmp_path / "conf/wgcell/config.toml")
    provider = provider_of(tmp_path, "[ceilings]\ncpus = 1")
    for text in (
        "policy.on_rogue = 'freeze'",
        "policy.guest_walls = 'off'",
        "gateway.allow = ['192.168.1.9:80']",
        "gateway.services = { '10.99.0.5:80' = '127.0.0.1:22' }",
        "gateway.publish = ['8080:80']",
        "vpn.config = 'lan.conf'",
        "resources.cpus = 2",
    ):
        with pytest.raises(InputError) as caught:
            asked(tmp_path, text, provider)
        assert there in caught.value.hint
