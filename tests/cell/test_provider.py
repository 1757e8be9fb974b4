"""The provider's configuration: read, refused, and never widened by a job."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wgcell.cell.job import HostLimits, Job, JobOptions
from wgcell.cell.jobfile import job_from_options, load_job
from wgcell.cell.provider import (
    GatewayEngine,
    Provider,
    apply_ceilings,
    load_provider,
)
from wgcell.cell.units import (
    duration_text,
    parse_duration,
    parse_rate,
    parse_size,
    rate_text,
    size_text,
)
from wgcell.errors import JobError
from wgcell.home import config_path

HOST = HostLimits(cpus=64, memory=2**40, disk=2**40)


def job(timeout: str | None = "1h", cpus: int = 2, memory: str = "2GiB", disk: str = "4GiB") -> Job:
    settings = {"timeout": timeout, "cpus": cpus, "memory": memory, "disk": disk}
    return job_from_options(JobOptions(command=("true",), settings=settings), HOST)


def test_no_file_is_the_defaults(tmp_path: Path) -> None:
    assert load_provider(tmp_path / "config.toml") == Provider()


def test_where_the_file_is() -> None:
    path = config_path({"XDG_CONFIG_HOME": "/home/me/conf"})
    assert path == Path("/home/me/conf/wgcell/config.toml")
    assert (
        config_path({"XDG_CONFIG_HOME": "relative"}) == Path.home() / ".config/wgcell/config.toml"
    )


def test_a_full_file(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(
        "allow_endpoints = ['192.0.2.0/24']\nallow_emulation = false\nrequire_walls = true\n"
        "allow_embedded_gateway = false\ngateway_engine = 'embedded'\n"
        "[ceilings]\ncpus = 2\nmemory = '1GiB'\ndisk = '2GiB'\ntimeout = '1h'\n"
    )
    assert load_provider(path) == Provider(
        allow_endpoints=(ipaddress.ip_network("192.0.2.0/24"),),
        allow_emulation=False,
        require_walls=True,
        allow_embedded_gateway=False,
        gateway_engine=GatewayEngine.EMBEDDED,
        ceilings={"cpus": 2, "memory": 2**30, "disk": 2**31, "timeout": 3600.0},
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "allow_endpoint = []",
            "unknown key 'allow_endpoint' (did you mean allow_endpoints?); allowed here: allow_emb",
        ),
        (
            "[ceilings]\ncpu = 1",
            "unknown key 'ceilings.cpu' (did you mean cpus?); allowed here: cpus, disk",
        ),
        ('"a\\u001bb" = 1', "unknown key 'a\\x1bb'"),
        ("allow_endpoints = ['lan']", "allow_endpoints: 'lan'"),
        ("allow_emulation = 'no'", "allow_emulation: "),
        ("gateway_engine = 'kernel'", "gateway_engine: found 'kernel'; allowed: auto, namespace"),
        ("[ceilings]\nmemory = '1'", "ceilings.memory: found '1'"),
        ("[ceilings]\ntimeout = 'soon'", "ceilings.timeout: found 'soon'"),
        ("[ceilings]\ncpus = 0", "ceilings.cpus"),
        ("=", "not TOML"),
    ],
)
def test_a_file_that_is_not_understood_is_no_licence(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(JobError) as caught:
        load_provider(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("ceilings", "key"),
    [
        ({"cpus": 1}, "resources.cpus"),
        ({"memory": 2**30}, "resources.memory"),
        ({"disk": 2**30}, "resources.disk"),
        ({"timeout": 60}, "timeout"),
    ],
)
def test_over_a_ceiling(ceilings: dict[str, object], key: str) -> None:
    with pytest.raises(JobError, match=key):
        apply_ceilings(job(), Provider(ceilings=ceilings))


def test_at_the_ceilings() -> None:
    apply_ceilings(
        job(), Provider(ceilings={"cpus": 2, "memory": 2**31, "disk": 2**32, "timeout": 3600.0})
    )


def test_defaults_that_nobody_asked_for_are_lowered() -> None:
    low = {"cpus": 1, "memory": 2**28, "disk": 2**29, "timeout": 60.0, "rate": 1e6, "quota": 2**30}
    plain = job_from_options(JobOptions(command=("true",)), HOST)
    lowered = apply_ceilings(plain, Provider(ceilings=low))
    assert (lowered.memory, lowered.disk) == (2**28, 2**29)
    assert (lowered.timeout, lowered.rate, lowered.quota) == (60.0, 1e6, 2**30)
    assert apply_ceilings(plain, Provider()) == plain
    asked = replace(plain, asked=frozenset({"memory"}))
    with pytest.raises(JobError, match=r"memory: found 512MiB; this provider allows .* 256MiB"):
        apply_ceilings(asked, Provider(ceilings=low))


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("", set()),
        ("timeout = '1h'\n[resources]\ncpus = 1\nquota = '1G'", {"timeout", "cpus", "quota"}),
    ],
)
def test_a_job_knows_which_limits_were_asked_for(
    tmp_path: Path, text: str, asked: set[str]
) -> None:
    (tmp_path / "job.toml").write_text("command = ['true']\n" + text)
    assert load_job(tmp_path / "job.toml", HOST).asked == asked


@given(st.integers(1, 2**45), st.integers(1, 86400 * 300), st.integers(64, 10**9))
def test_limits_are_told_as_a_job_file_has_them(size: int, seconds: int, kilobits: int) -> None:
    text = size_text(size)
    assert text == f"{size} bytes" or parse_size(text) == size
    assert parse_duration(duration_text(seconds)) == seconds
    assert parse_rate(rate_text(kilobits * 125)) == pytest.approx(kilobits * 125, rel=1e-4)


def test_the_embedded_gateway_can_be_forbidden() -> None:
    with pytest.raises(JobError, match="embedded gateway"):
        apply_ceilings(job(), Provider(allow_embedded_gateway=False))
