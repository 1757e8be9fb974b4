"""Job files and command lines: what is read, and a table of bad input with its words."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.shown import is_text

from wgcell.cell.environment import environment
from wgcell.cell.inputs import Input
from wgcell.cell.job import GatewayAsked, HostLimits, Job, JobOptions, Landing, OnRogue
from wgcell.cell.jobfile import _build, _checked, job_from_options, load_job
from wgcell.cell.jobsource import JobSource
from wgcell.cell.launch import guest_config
from wgcell.cell.own_gateway import OwnGateway
from wgcell.cell.units import parse_duration, parse_size
from wgcell.cell.wgquick import load_vpn_config
from wgcell.errors import InputFileError, JobError, VpnConfigError
from wgcell.guest.walls import Wall

HOST = HostLimits(cpus=4, memory=8 * 2**30, disk=100 * 2**30)
FULL = """
name = "train"
command = ["python3", "train.py"]
image = "debian"
inputs = ["train.py", "data/"]
outputs = ["results/", "logs/./last.txt"]
timeout = "2h"
[env]
TOKEN = "hush"
[resources]
cpus = 2
memory = "2GiB"
disk = "4GiB"
[vpn]
config = "requester.conf"
[policy]
on_rogue = "freeze"
"""


def load(folder: Path, text: str, options: JobOptions | None = None) -> Job:
    path = folder / "job.toml"
    path.write_text(text)
    return load_job(path, HOST, options)


def test_a_full_file(tmp_path: Path) -> None:
    job = load(tmp_path, FULL)
    assert job == Job(
        name="train",
        command=("python3", "train.py"),
        image="debian",
        inputs=(
            Input(tmp_path / "train.py", beneath=tmp_path),
            Input(tmp_path / "data", beneath=tmp_path),
        ),
        outputs=("results", "logs/last.txt"),
        timeout=7200.0,
        env=(("TOKEN", "hush"),),
        cpus=2,
        memory=2 * 2**30,
        disk=4 * 2**30,
        vpn=tmp_path / "requester.conf",
        gateway=None,
        on_rogue=OnRogue.FREEZE,
        guest_walls=frozenset(Wall),
    )


def test_public_is_json_and_holds_no_secret(tmp_path: Path) -> None:
    job = load(tmp_path, FULL)
    text = json.dumps(job.public())
    assert "TOKEN" in text
    assert "hush" not in text
    assert "hush" not in repr(job)


def test_no_tunnel_at_all_is_the_gateway_with_nothing_open(tmp_path: Path) -> None:
    job = load(tmp_path, 'command = ["true"]')
    assert (job.vpn, job.gateway) == (None, GatewayAsked())
    assert job.name == "job"


def test_the_command_line_alone(tmp_path: Path) -> None:
    options = JobOptions(
        command=("/usr/bin/Python3.11", "-c", "pass"),
        inputs=(Path("/elsewhere/data.csv"),),
        allow=("api.example.com:443",),
        services=(("10.99.0.5:80", "127.0.0.1:8000"),),
        settings={"timeout": "90"},
    )
    job = job_from_options(options, HOST, tmp_path)
    assert job.name == "python3-11"
    assert job.inputs == (Input(Path("/elsewhere/data.csv")),)
    assert job.timeout == 90.0
    assert job.gateway == GatewayAsked(
        ("api.example.com:443",), (("10.99.0.5:80", "127.0.0.1:8000"),)
    )


def test_options_win_over_the_file_and_lists_add_up(tmp_path: Path) -> None:
    options = JobOptions(
        command=("true",),
        settings={"cpus": 1, "memory": "1GiB"},
        outputs=("more",),
        vpn=Path("/other.conf"),
    )
    job = load(tmp_path, FULL, options)
    assert (job.command, job.cpus, job.memory) == (("true",), 1, 2**30)
    assert job.outputs == ("results", "logs/last.txt", "more")
    assert job.vpn == Path("/other.conf")


C = 'command = ["true"]\n'


@pytest.mark.parametrize(
    ("text", "outputs"),
    [
        ("['/work/results/', './results']", ("results",)),
        ("['.']", (".",)),
        ("['/work']", (".",)),
        ("['logs/*.txt', 'a?/[bc]']", ("logs/*.txt", "a?/[bc]")),
    ],
)
def test_outputs_in_every_form(tmp_path: Path, text: str, outputs: tuple[str, ...]) -> None:
    job = load(tmp_path, C + f"outputs = {text}")
    assert (job.outputs, job.landing) == (outputs, None)


def test_inputs_by_name_and_by_contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    job = load(tmp_path, C + "inputs = ['.', 'data/.', 'data/']")
    assert [(one.path, one.contents) for one in job.inputs] == [
        (tmp_path, True),
        (tmp_path / "data", True),
        (tmp_path / "data", False),
    ]
    assert {one.beneath for one in job.inputs} == {tmp_path}
    typed = job_from_options(JobOptions(command=("true",), inputs=(".", "a/.", "..", "a/")), HOST)
    assert [one.contents for one in typed.inputs] == [True, True, True, False]
    assert {one.beneath for one in typed.inputs} == {None}
    for wrong in ("", "/"):
        with pytest.raises(JobError):
            job_from_options(JobOptions(command=("true",), inputs=(wrong,)), HOST)


@pytest.mark.parametrize("key", ["inputs = ['data']", "inputs = ['data/x']", "vpn.config = 'data'"])
@pytest.mark.parametrize("target", ["../home", "/etc", "..", "real/../../home"])
def test_a_job_file_reaches_nothing_by_a_link(tmp_path: Path, key: str, target: str) -> None:
    folder = tmp_path / "job"
    (folder / "real").mkdir(parents=True)
    (folder / "data").symlink_to(target)
    with pytest.raises(JobError, match="a link out of the job file's own folder"):
        load(folder, C + key)


def test_where_outputs_land(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = C + "outputs = ['results']"
    assert load(tmp_path, file).landing is None
    typed = JobOptions(outputs=("more/",))
    assert load(tmp_path, file, typed).landing == Landing(tmp_path, ("more",))
    elsewhere = JobOptions(outputs=("more/",), output_dir=Path("there"))
    assert load(tmp_path, file, elsewhere).landing == Landing(
        tmp_path / "there", ("results", "more")
    )
    with pytest.raises(JobError, match="no output is named"):
        load(tmp_path, C, JobOptions(output_dir=Path("there")))


def test_a_synced_folder_goes_in_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = job_from_options(JobOptions(command=("true",), sync=Path(".")), HOST)
    assert job.inputs == (Input(tmp_path, contents=True),)
    assert (job.outputs, job.landing) == ((".",), Landing(tmp_path, (".",), synced=True))
    for more in (
        JobOptions(command=("true",), sync=Path("."), outputs=("x",)),
        JobOptions(command=("true",), sync=Path("."), output_dir=Path("x")),
    ):
        with pytest.raises(JobError, match="--sync"):
            job_from_options(more, HOST)


def test_excludes_add_up(tmp_path: Path) -> None:
    job = load(tmp_path, C + "exclude = ['*.log']", JobOptions(excludes=("/tmp",)))
    assert job.excludes == ("*.log", "/tmp")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name =\n", "job.toml:1: not TOML"),
        ('command = ["true"\n', "job.toml:2: not TOML"),
        ("a = 1\nb = = 2\n", "job.toml:2: not TOML"),
        (C + "colour = 1", "unknown key 'colour'"),
        (
            C + "[resources]\ncpu = 1",
            "unknown key 'resources.cpu' (did you mean cpus?); allowed here: cpus, disk",
        ),
        (C + "[resources]\ncpus = '2'", "resources.cpus: found '2'"),
        (C + "[resources]\ncpus = 0", "allowed: 1-4"),
        (C + "[resources]\ncpus = 5", "allowed: 1-4"),
        (C + "[resources]\nmemory = 2048", "resources.memory: found 2048"),
        (C + "[resources]\nmemory = '2'", "allowed: a number and KiB"),
        (C + "[resources]\nmemory = '1MiB'", "at least 128MiB"),
        (C + "[resources]\nmemory = '9GiB'", "this machine has 8192MiB"),
        (C + "[resources]\ndisk = '1TiB'", "this machine has 102400MiB"),
        ("name = 'x'", "command: is empty"),
        ("command = []", "command: is empty"),
        ("command = 'true'", "command: found 'true'"),
        ('command = ["a\\u0000"]', "NUL"),
        (C + "name = 'Train'", "name: found 'Train'"),
        (C + "name = '-x'", "name: found '-x'"),
        (C + f"name = '{'x' * 33}'", "name: found"),
        (C + "name = '../x'", "name: found"),
        (C + "image = '../x'", "image: found"),
        (C + "outputs = ['../x']", "outputs: found '../x'"),
        (C + "outputs = ['a/../../x']", "outputs: found"),
        (C + "outputs = ['/etc']", "outputs: found '/etc'"),
        (C + "outputs = ['']", "outputs: found"),
        (C + "outputs = ['/workshop/x']", "name it x or /work/x"),
        (C + "outputs = ['a/**']", "one * for each level"),
        (C + 'outputs = ["a\\nb"]', "outputs: found"),
        (C + "inputs = ['/etc/shadow']", "inputs: found '/etc/shadow'"),
        (C + "inputs = ['../x']", "inputs: found '../x'"),
        (C + "inputs = ['']", "inputs: found ''"),
        (C + "exclude = '*.log'", "exclude: found '*.log'"),
        (C + "inputs = ['a/x', 'b/x']", "would both be /work/x"),
        (C + "timeout = '2 hours'", "timeout: found '2 hours'"),
        (C + "timeout = 0", "timeout: found 0"),
        (C + "timeout = -1", "timeout: found -1"),
        (C + "timeout = nan", "timeout: found nan"),
        (C + "timeout = true", "timeout: found True"),
        (C + "[env]\n'A=B' = 'x'", "env: found the name 'A=B'"),
        (C + "[vpn]\nconfig = '/etc/wg0.conf'", "vpn.config: found '/etc/wg0.conf'"),
        (C + "[vpn]\n", "vpn.config"),
        (C + "[vpn]\nconfig = 'a'\n[gateway]\n", "exactly one tunnel"),
        (C + "[gateway]\nallow = ['example.com']", "gateway.allow: rule 'example.com' has no port"),
        (C + "[gateway.services]\nx = 'y'", "gateway.services: service"),
        (C + "[gateway.services]\n'10.99.0.2:1' = 'x:1'", "is the cell's own address"),
        (C + "[gateway.services]\na = 'x:1'\n'A:1' = 'x:2'", "two services are at 10.99.0.6:1"),
        (C + "[gateway]\npublish = ['80']", "gateway.publish: found '80'; allowed: [ADDRESS:]"),
        (C + "[gateway]\npublish = ['8080:80', '8080:81']", "127.0.0.1:8080 is published twice"),
        (C + "[hosts]\n'a b' = '::1'", "hosts: found the name 'a b'"),
        (C + "[hosts]\na = 'example.com'", "hosts: found 'example.com' for a"),
        (C + "[policy]\non_rogue = 'ignore'", "allowed: terminate, freeze"),
        (C + "[policy]\nguest_walls = 'maybe'", "allowed: on, off"),
    ],
)
def test_bad_input_names_the_file_the_key_and_what_is_allowed(
    tmp_path: Path, text: str, words: str
) -> None:
    with pytest.raises(JobError) as caught:
        load(tmp_path, text)
    assert words in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "job.toml"))


@pytest.mark.parametrize("content", [b"\xff", b"a = " + b"[" * 5000, b"#" * (2 << 20)])
def test_files_that_are_no_job(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "job.toml").write_bytes(content)
    with pytest.raises(JobError):
        load_job(tmp_path / "job.toml", HOST)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="No such file"):
        load_job(tmp_path / "job.toml", HOST)


def test_vpn_and_allow_exclude_each_other() -> None:
    options = JobOptions(command=("true",), vpn=Path("a.conf"), allow=("192.0.2.1:80",))
    with pytest.raises(JobError, match="one tunnel"):
        job_from_options(options, HOST)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *(("2GiB", 2**31), ("1.5GiB", 3 * 2**29), ("1GB", 10**9), ("512 MiB", 2**29)),
        *(("2G", 2**31), ("2g", 2**31), ("512m", 2**29), ("1.5gib", 3 * 2**29), ("1 gb", 10**9)),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("2h", 7200),
        ("90s", 90),
        ("1h30m", 5400),
        ("1d", 86400),
        ("45", 45),
        (45, 45),
        (0.5, 0.5),
        ("1.5h", 5400),
        ("0.5s", 0.5),
    ],
)
def test_durations(value: str | float, seconds: float) -> None:
    assert parse_duration(value) == seconds


def test_this_host_has_something(tmp_path: Path) -> None:
    host = HostLimits.of_this_host(tmp_path / "not" / "yet")
    assert host.cpus >= 1
    assert host.memory > 2**20
    assert host.disk > 0


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_bytes(b"\xef\xbb\xbf" + b'command = ["true"]\n')
    assert load_job(tmp_path / "job.toml", HOST).command == ("true",)


def test_a_strangers_tilde_leads_nowhere(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"inputs: found '~/\.ssh'; allowed: a path below"):
        load(tmp_path, C + "inputs = ['~/.ssh']")


def test_the_environment_as_docker_has_it(tmp_path: Path) -> None:
    file = tmp_path / "vars"
    file.write_bytes(b"\xef\xbb\xbf# a comment\r\n\r\nA=1 = 2\r\n  B\nC=\nD='q'\n")
    caller = {"B": "mine", "H": "home"}
    found, unset = environment(["H", "A=3", "N"], [file], caller)
    assert dict(found) == {"A": "3", "B": "mine", "C": "", "D": "'q'", "H": "home"}
    assert unset == ("N",)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"A=1\nB C=2\n", "vars:2: found the name 'B C'"), (b"\nA=\xff\n", "vars:2: not UTF-8")],
)
def test_an_environment_file_that_is_none(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "vars").write_bytes(content)
    with pytest.raises(JobError, match=words):
        environment([], [tmp_path / "vars"], {})


text = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)


@given(st.recursive(text, lambda inner: st.dictionaries(text, inner, min_size=1, max_size=2)))
def test_no_key_or_value_of_a_job_file_forges_a_line(tree: object) -> None:
    raw = tree if isinstance(tree, dict) else {"name": tree, "env": {tree: ""}, "timeout": tree}
    source = JobSource("job.toml", JobOptions())
    with pytest.raises(JobError) as caught:
        _build(source, _checked(source, raw), Path("/"), "job", HOST, JobOptions(command=("x",)))
        source.fail("nothing", "was wrong")
    with pytest.raises(JobError, match=r"^job\.toml: a; b: c; d$"):
        source.fail("a\nb", "c\nd")
    for line in str(caught.value).splitlines():
        assert line.startswith(("job.toml: ", "  ")), line
        assert is_text(line, but="\t"), line


@pytest.mark.parametrize("swapped", ["way", "way/vpn.conf"])
def test_a_vpn_file_swapped_for_a_link_meanwhile_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swapped: str
) -> None:
    """Looked at, then changed: as inputs are, it is opened folder by folder beneath the job's."""
    job_folder, home = tmp_path / "job", tmp_path / "home"
    for place in (job_folder / "way", home):
        place.mkdir(parents=True)
        (place / "vpn.conf").write_text("[Interface]\n")
    job = load(job_folder, C + "[vpn]\nconfig = 'way/vpn.conf'")
    assert job.vpn is not None and job.vpn_beneath == job_folder
    with pytest.raises(VpnConfigError, match="has no PrivateKey"):  # the control: it is read
        load_vpn_config(job.vpn, job.vpn_beneath)
    resolve = os.path.realpath

    def resolved_then_swapped(path: os.PathLike[str], *, strict: bool = False) -> str:
        real = resolve(path, strict=strict)
        if str(path).endswith("vpn.conf") and not (job_folder / swapped).is_symlink():
            (job_folder / swapped).rename(job_folder / "away")
            target = home if swapped == "way" else home / "vpn.conf"
            (job_folder / swapped).symlink_to(target)
        return real

    monkeypatch.setattr(os.path, "realpath", resolved_then_swapped)
    with pytest.raises((VpnConfigError, InputFileError)) as caught:
        load_vpn_config(job.vpn, job.vpn_beneath)
    assert "PrivateKey" not in str(caught.value)
    monkeypatch.undo()
    with pytest.raises((VpnConfigError, InputFileError)):  # the link stands, seen in time
        load_vpn_config(job.vpn, job.vpn_beneath)
    typed = load(job_folder, C, JobOptions(vpn=home / "vpn.conf"))
    assert typed.vpn_beneath is None


@pytest.mark.parametrize(
    ("typed", "place"),
    [
        ({"settings": {"memory": "2"}}, "--memory: found '2'"),
        ({"settings": {"timeout": "soon"}}, "--timeout: found 'soon'"),
        ({"settings": {"on_rogue": "keep"}}, "--on-rogue: found 'keep'"),
        ({"allow": ("a.example.com",)}, "--allow: rule 'a.example.com' has no port"),
        ({"services": (("8000", "x:1"),)}, "--service: service '8000' = 'x:1'"),
        ({"name": "A"}, "--name: found 'A'"),
        ({"publish": ("x:80",)}, "--publish: found 'x:80'"),
        ({"hosts": (("a", "b"),)}, "--add-host: found 'b' for a; allowed: an IP address"),
    ],
)
def test_what_was_typed_is_called_as_it_was_typed(
    tmp_path: Path, typed: dict[str, Any], place: str
) -> None:
    """With a job file and without one; the file's own words are called by its keys."""
    options = JobOptions(command=("true",), **typed)
    path = tmp_path / "job.toml"
    path.write_text("[gateway]\nallow = ['b.example.com:443']")
    for read in (lambda: job_from_options(options, HOST), lambda: load_job(path, HOST, options)):
        with pytest.raises(JobError) as caught:
            read()
        assert str(caught.value).startswith(f"command line: {place}")


def test_what_is_typed_of_lists_and_tables_joins_the_files(tmp_path: Path) -> None:
    text = C + "[hosts]\na = '192.0.2.1'\nb = '192.0.2.2'\n[gateway]\npublish = ['0:80', '8080:80']"
    typed = JobOptions(hosts=(("b", "192.0.2.3"),), publish=("0:81", "8080:80"))
    job = load(tmp_path, text, typed)
    assert job.hosts == (("a", "192.0.2.1"), ("b", "192.0.2.3")) and job.gateway is not None
    assert job.gateway.publish == ("0:80", "8080:80", "0:81")
    # What was typed as well is the person's word.
    assert job.gateway.file_publish == ("0:80",)
    tunnel = OwnGateway.fresh(six=False).tunnel("127.0.0.1", 51820)
    assert guest_config(job, tunnel, 1420).hosts == job.hosts


def test_a_setting_that_there_is_not(tmp_path: Path) -> None:
    options = JobOptions(command=("true",), settings={"memroy": "2GiB"})
    with pytest.raises(JobError, match=r"'memroy' \(did you mean memory\?\); allowed here: cpus"):
        job_from_options(options, HOST)
