"""Programs are found wherever Debian has them, whatever PATH the caller has."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.gateways import config_of, order_of

from wgcell import programs
from wgcell.gateway import words

SOURCE = Path(programs.__file__).parent
PATHS = {"an ordinary user's": {"PATH": "/usr/bin:/bin"}, "none": {}, "empty": {"PATH": ""}}
NEEDED = (
    *("qemu-system-x86_64", "bwrap", "unshare", "true", "mke2fs", "ip", "nft", "wg"),
    *("wireguard-go", "mmdebstrap", "mkfs.erofs", "tar", "cpio", "depmod", "apt-cache"),
    *("apt-get", "dpkg-deb", "lz4", "xz", "zstd"),
)


SPAWNS = re.compile(
    r"subprocess\.(run|Popen|call|check_call|check_output|getoutput|getstatusoutput)"
    r"|asyncio\.(subprocess\.)?create_subprocess_(exec|shell)"
    r"|os\.(exec\w+|spawn\w+|posix_spawnp?|system|popen)|pty\.spawn|multiprocessing\..+"
    r"|(typer|click)\.(launch|edit|echo_via_pager)|\w+\.pager"
)
OTHERS = {
    "prove/runners/guest.py": "runs in a guest, whose environment the image makes",
    "guest/agent/": "runs in a guest, with programs of the initramfs and the job's environment",
}
"""Files and folders that start programs in another way, and why that is right."""


def _files() -> list[Path]:
    """Those that must not."""
    every = {str(path.relative_to(SOURCE)): path for path in SOURCE.rglob("*.py")}
    return [path for name, path in every.items() if not name.startswith(tuple(OTHERS))]


def _started(argv: list[str], environment: dict[str, str], text: str = "") -> str:
    done = subprocess.run(
        [sys.executable, *argv],
        env=environment,
        input=text,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.stdout


@pytest.mark.parametrize("environment", PATHS.values(), ids=PATHS)
@pytest.mark.process
def test_everything_is_found_whatever_the_path(environment: dict[str, str]) -> None:
    code = "import json, sys; from wgcell.programs import find\n"
    code += "print(json.dumps([name for name in sys.argv[1:] if find(name) is None]))"
    assert json.loads(_started(["-c", code, *NEEDED], environment)) == []


@pytest.mark.namespaces
@pytest.mark.parametrize("environment", PATHS.values(), ids=PATHS)
def test_the_better_engine_starts_whatever_the_path(environment: dict[str, str]) -> None:
    order = words.ORDERS.line(order_of(config_of())).decode()
    said = _started(["-m", "wgcell.gateway", "auto"], environment, order)
    ready = json.loads(said.splitlines()[0])
    assert (ready["event"], ready["engine"], ready["reason"]) == ("ready", "namespace", "")


def _program(path: Path, text: str = "#!/bin/sh\n") -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_a_users_own_folder_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = _program(tmp_path / "mine" / "ip")
    monkeypatch.setenv("PATH", f"{mine.parent}:/usr/bin")
    assert programs.find("ip") == str(mine)
    assert programs.environment()["PATH"].split(":")[:2] == [str(mine.parent), "/usr/bin"]


@pytest.mark.parametrize("where", ["", ".", "open", "open/../open", "/dev/shm", "nowhere"])
def test_what_anybody_may_have_put_there_is_not_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    planted = _program(tmp_path / "open" / "wgcell-test-program")
    _program(tmp_path / "wgcell-test-program")
    monkeypatch.chdir(tmp_path)
    folder = str(tmp_path / where) if where.startswith("open") else where
    monkeypatch.setenv("PATH", folder)
    if where.startswith("open"):
        # The control: as long as only its owner may write there, it is found.
        assert programs.find(planted.name) is not None
        planted.parent.chmod(0o1777)
    assert programs.find(planted.name) is None
    assert programs.path_of(planted.name) == f"/bin/{planted.name}"
    assert folder not in programs.environment()["PATH"].split(":")


def test_no_folder_and_no_other_file_is_a_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "a-folder").mkdir()
    (tmp_path / "a-text").write_text("")
    assert programs.find("a-folder") is None
    assert programs.find("a-text") is None
    assert programs.find("nul\0") is None


def _looks(path: Path) -> list[str]:
    """Where a file looks for programs by itself: ``which``, and a bare name that is executed."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name.split(".")[-1] == "which":
            found.append(f"{path.name}:{node.lineno} {name}")
        if name.startswith(("subprocess.", "asyncio.create_subprocess", "os.exec", "os.posix")):
            first = node.args[0] if node.args else node
            heads = first.elts[:1] if isinstance(first, ast.List | ast.Tuple) else [first]
            if any(isinstance(h, ast.Constant) and "/" not in str(h.value) for h in heads):
                found.append(f"{path.name}:{node.lineno} {ast.unparse(first)}")
    for node in ast.walk(ast.parse(path.read_text())):
        # An argv that is executed later; for those of an image build, image/commands.py looks.
        if isinstance(node, ast.List | ast.Tuple) and node.elts and path.parent.name != "image":
            head = node.elts[0]
            if isinstance(head, ast.Constant) and head.value in NEEDED and len(node.elts) > 1:
                found.append(f"{path.name}:{node.lineno} {ast.unparse(node)}")
    return found


def test_nothing_else_looks_for_programs(tmp_path: Path) -> None:
    files = [path for path in _files() if path.name != "programs.py"]
    assert [line for path in files for line in _looks(path)] == []
    # The control: each of these would be found.
    bad = tmp_path / "bad.py"
    for text in (
        "shutil.which('nft')",
        "subprocess.run(['nft', '-f'])",
        "argv = ['mke2fs', '-q']",
        "asyncio.create_subprocess_exec('unshare', '-n')",
    ):
        bad.write_text(text)
        assert _looks(bad), text
    assert os.access(programs.path_of("true"), os.X_OK)


def _inherits(path: Path) -> list[str]:
    """Where a file starts a program with an environment that is not made for it."""
    found = []
    tree = ast.parse(path.read_text())
    # A start that is only named is somebody else's to make; a type in an annotation is none.
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    called |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Subscript)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and id(node) not in called:
            name = ast.unparse(node)
            if SPAWNS.fullmatch(name) and not name.endswith("Popen"):
                found.append(f"{path.name}:{node.lineno} {name}")
        if isinstance(node, ast.ImportFrom) and node.module in ("subprocess", "multiprocessing"):
            found.append(f"{path.name}:{node.lineno} {ast.unparse(node)}")
        if isinstance(node, ast.Call) and SPAWNS.fullmatch(name := ast.unparse(node.func)):
            given = {word.arg: word.value for word in node.keywords}.get("env")
            if name == "os.posix_spawn" and len(node.args) == 3:  # has no keyword for it
                given = node.args[2]
            made = isinstance(given, ast.Call) and ast.unparse(given.func)
            if made != "programs.environment":
                found.append(f"{path.name}:{node.lineno} {name}")
    return found


def test_every_program_has_an_environment_made_for_it(tmp_path: Path) -> None:
    assert [line for path in _files() for line in _inherits(path)] == []
    bad = tmp_path / "bad.py"
    for text in (
        "subprocess.run(argv)",
        "subprocess.Popen(argv, env=os.environ)",
        "subprocess.run(argv, env={**os.environ})",
        "asyncio.create_subprocess_exec(*argv, env=None)",
        "os.execvp('sh', argv)",
        "os.system('true')",
        "from subprocess import run",
        "asyncio.to_thread(subprocess.run, argv)",
        "multiprocessing.get_context('spawn')",
        "console.pager()",
    ):
        bad.write_text(text)
        assert _inherits(bad), text
    bad.write_text("subprocess.run(argv, env=programs.environment('HOME'))")
    assert not _inherits(bad)


def test_only_what_is_named_is_in_an_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CANARY", "KEPT", "LC_ALL"):
        monkeypatch.setenv(name, "C.UTF-8")
    monkeypatch.delenv("HOME", raising=False)
    made = programs.environment("KEPT", "HOME", MORE="more")
    assert made["KEPT"] == made["LC_ALL"] == "C.UTF-8" and made["MORE"] == "more"
    assert "CANARY" not in made and "HOME" not in made
    assert made["PATH"]
