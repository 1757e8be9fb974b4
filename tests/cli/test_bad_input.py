"""What a user may get wrong: each says what, where and the hint, exits 125, and starts nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.vpnfiles import PRIVATE, vpn_file
from tests.support.zygotes import Typist

from wgcell.programs import path_of

VPN = vpn_file(endpoint="")


def run(typed: Typist, where: Path, *words: str) -> tuple[int, str]:
    done = typed(where, *words, WGCELL_STATE_DIR=str(where / "cells"))
    assert "Traceback" not in done.stderr
    cells = where / "cells"
    assert not cells.exists() or not list(cells.iterdir())
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("command = [\n", ["job.toml:2: "]),
        ('command = ["true"]\ncolour = 1\n', ["job.toml", "'colour'", "allowed here"]),
        ('command = ["true"]\ntimeout = "soon"\n', ["job.toml", "timeout", "soon"]),
        ('command = ["true"]\noutputs = ["../x"]\n', ["outputs", "../x"]),
        ('command = ["true"]\noutputs = ["/etc"]\n', ["outputs", "/etc"]),
        ('command = ["true"]\n[resources]\nmemory = "900TiB"\n', ["memory", "this machine has"]),
        ('command = ["true"]\n[resources]\ndisk = "900TiB"\n', ["disk", "this machine has"]),
        ('command = ["true"]\ninputs = ["absent"]\n', ["absent", "No such file"]),
        ('command = ["true"]\ninputs = ["out"]\n', ["out", "link"]),
        ('command = ["true"]\ninputs = ["pipe"]\n', ["pipe", "named pipe"]),
        ('command = ["true"]\nimage = "nope"\n', ["nope", "wgcell image build"]),
        ('command = ["true"]\n[gateway]\nallow = ["nowhere"]\n', ["gateway", "nowhere"]),
        (
            'command = ["true"]\n[gateway.services]\n"10.99.0.5:80" = "127.0.0.1:22"\n',
            ["loopback", "--service 10.99.0.5:80=127.0.0.1:22", "allow_targets"],
        ),
        ('command = ["true"]\n[policy]\nguest_walls = "off"\n', ["--guest-walls off"]),
        ('command = ["true"]\n[policy]\non_rogue = "freeze"\n', ["--on-rogue freeze"]),
    ],
)
@pytest.mark.process
def test_a_job_file(typed: Typist, tmp_path: Path, text: str, words: list[str]) -> None:
    (tmp_path / "job.toml").write_text(text)
    (tmp_path / "out").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "pipe")
    code, said = run(typed, tmp_path, "run", "job.toml")
    assert code == 125, said
    for word in words:
        assert word in said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (VPN, ["no Endpoint"]),
        (VPN + "Endpoint = 192.168.1.9:51820\n", ["private", "--allow-endpoint"]),
        (VPN + "Endpoint = 127.0.0.1:51820\n", ["loopback"]),
        (VPN + "Endpoint = 224.0.0.1:51820\n", ["multicast"]),
        (VPN + "Endpoint = 203.0.113.5:0\n", ["port 0"]),
        (VPN + "Endpoint = nowhere.invalid:51820\n", ["does not resolve"]),
        (VPN + "Endpoint = 203.0.113.5:1\n[Peer]\n", ["v.conf:8"]),
        (VPN.replace("[Peer]", "PostUp = reboot\n[Peer]"), ["v.conf:4", "PostUp"]),
        (VPN.replace(PRIVATE, "short", 1), ["v.conf:2", "PrivateKey"]),
    ],
)
@pytest.mark.process
def test_a_wg_quick_file(typed: Typist, tmp_path: Path, text: str, words: list[str]) -> None:
    (tmp_path / "v.conf").write_text(text)
    code, said = run(typed, tmp_path, "run", "--vpn", "v.conf", "--", "true")
    assert code == 125, said
    for word in words:
        assert word in said
    assert PRIVATE not in said


@pytest.mark.parametrize(
    ("words", "said_words"),
    [
        (["run"], ["command", "is empty"]),
        (["run", "ls"], ["no such job file", "wgcell run -- ls"]),
        (["run", "--memory", "lots", "--", "true"], ["lots", "2GiB"]),
        (["run", "--env", "A B", "--", "true"], ["--env", "'A B'", "NAME=VALUE or NAME"]),
        (["run", "--env-file", "absent", "--", "true"], ["absent", "No such file"]),
        (["run", "python3", "x.py"], ["wgcell run -- python3 x.py"]),
        (["run", "--cpus", "1", "python3", "-c", "a b"], ["wgcell run -- python3 -c 'a b'"]),
        (["run", "job.toml", "true"], ["two dashes: job.toml -- "]),
        (["run", "--service", "A", "--", "true"], ["--service", "INSIDE=OUTSIDE"]),
        (
            ["run", "--service", "10.99.0.1:80=127.0.0.1:80", "--", "true"],
            ["10.99.0.1 is the gateway's own address in the tunnel", "10.99.0.6:80 = 127.0.0.1:80"],
        ),
        (
            ["run", "--service", "[fd77:6763:656c::2]:80=[::1]:80", "--", "true"],
            ["the cell's own address in the tunnel", "[fd77:6763:656c::6]:80 = [::1]:80"],
        ),
        (
            ["run", "--service", "10.99.0.5:80=0.0.0.0:8000", "--", "true"],
            ["at 0.0.0.0 servers listen", "write 127.0.0.1:8000"],
        ),
        (["run", "--state-dir", "/proc/none", "--", "true"], ["/proc/none", "--state-dir"]),
        (["run", "--no-such-option"], ["--no-such-option", "--help"]),
        (["frobnicate"], ["frobnicate", "wgcell --help"]),
        (["stop", "nothing"], ["nothing", "wgcell ps --all"]),
        (["gateway", "run", "absent.toml"], ["absent.toml", "No such file"]),
    ],
)
def test_the_command_line(
    typed: Typist, tmp_path: Path, words: list[str], said_words: list[str]
) -> None:
    code, said = run(typed, tmp_path, *words)
    assert code == 125, said
    for word in said_words:
        assert word in said
    assert "exit code" not in said and "records in" not in said  # no cell was made


@pytest.mark.parametrize(
    ("words", "said_words"),
    [
        (["--output", "there"], ["there", "overwritten", "--force", "--output-dir"]),
        (["--output", "away/x"], ["away", "nothing is written through it"]),
        (["--output", "x", "--output-dir", "there/file"], ["there/file", "not a folder"]),
        (["--output", "/etc"], ["found '/etc'", "/work/etc"]),
        (["--sync", ".", "--output", "x"], ["--sync", "--output"]),
        (["--sync", "absent"], ["absent", "No such file"]),
        (["--input", "absent", "--input", "gone"], ["absent", "gone", "No such file"]),
        (["--input", "circle"], ["circle", "goes in a circle"]),
        (["--input", "there", "--input", "there/."], ["both be /work/there"]),
        (["--input", ".", "--exclude", "!"], ["--exclude", "'!'", ".gitignore"]),
        (["--input", "large", "--disk", "16MiB"], ["large", "--disk", "--exclude"]),
    ],
)
def test_inputs_and_outputs(
    typed: Typist, tmp_path: Path, words: list[str], said_words: list[str]
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there/file").touch()
    (tmp_path / "away").symlink_to("/")
    (tmp_path / "circle").symlink_to("circle")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(17 << 20)
    if words == ["--input", "there", "--input", "there/."]:
        (tmp_path / "there/there").touch()
    code, said = run(typed, tmp_path, "run", *words, "--", "true")
    assert code == 125, said
    for word in said_words:
        assert word in said


@pytest.mark.namespaces
def test_qemu_is_not_installed(tmp_path: Path) -> None:
    """No file is where it is: it is looked for in the system's folders whatever PATH says."""
    hidden = f'mount --bind /dev/null {path_of("qemu-system-x86_64")} && exec "$@"'
    unshare = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", hidden, "sh")
    argv = [*unshare, sys.executable, "-P", "-m", "wgcell", "run", "--state-dir", "cells"]
    done = subprocess.run(
        [*argv, "--", "true"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 125
    assert "apt-get install qemu-system-x86" in done.stderr
    assert not list((tmp_path / "cells").glob("*"))


@pytest.mark.parametrize(
    ("size", "words"),
    [("size=64k", ["No space left", "--state-dir"]), ("ro", ["Read-only", "--state-dir"])],
)
@pytest.mark.process
def test_a_state_folder_that_is_full_or_read_only(
    tmp_path: Path, size: str, words: list[str]
) -> None:
    place = tmp_path / "small"
    place.mkdir()
    fill = f"dd if=/dev/zero of={place}/filler bs=1k 2>/dev/null; " if "size" in size else ""
    wgcell = f"{sys.executable} -P -m wgcell run --state-dir {place}/cells -- true"
    script = f"mount -t tmpfs -o {size} none {place} && {{ {fill} {wgcell}; }}"
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 125, done.stderr
    for word in words:
        assert word in done.stderr


def test_help_teaches(typed: Typist, tmp_path: Path) -> None:
    done = typed(tmp_path, "run", "--help")
    assert done.returncode == 0
    for word in ("--allow", "--vpn", "--input", "python3 agent.py"):
        assert word in done.stdout
