"""A root that is not the agent's: one static program, and links where folders are expected.

What this can't show: roots of other distributions, which bring more along.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wgcell import programs
from wgcell.image import store

Cell = Callable[..., Any]
pytestmark = [pytest.mark.vm, pytest.mark.timeout(200)]

PROGRAM = r"""
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <sys/stat.h>
int main(int argc, char **argv) {
    char line[200];
    struct stat at;
    const char *places[] = {"/dev/null", "/proc/self", "/sys/class", "/tmp", "/run", "/etc/hosts"};
    for (int i = 0; i < 6; i++)
        if (stat(places[i], &at)) { printf("no %s\n", places[i]); return 1; }
    FILE *hosts = fopen("/etc/hosts", "r");
    printf("%s: %s", argv[1], fgets(line, sizeof line, hosts));
    FILE *made = fopen("made", "w");
    fputs("home\n", made);
    return fclose(made) ? 1 : 7;
}
"""


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An image with the stock kernel and initramfs, and another root."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    inside = tmp_path / "root"
    inside.mkdir()
    (tmp_path / "see.c").write_text(PROGRAM)
    argv = [compiler, "-static", "-O1", "-o", str(inside / "see"), str(tmp_path / "see.c")]
    subprocess.run(argv, check=True, capture_output=True)
    # Followed, they would lead to the agent's own.
    for name in ("etc", "run", "work", "tmp"):
        (inside / name).symlink_to("/bin")
    os.mkfifo(inside / "dev")
    stock, folder = store.load("debian").folder, tmp_path / "cache/images/tiny"
    folder.mkdir(parents=True)
    for file in ("kernel", "initramfs"):
        shutil.copy(stock / file, folder)
    for probed in store.cache_folder().parent.glob("kvm-*.json"):
        shutil.copy(probed, tmp_path / "cache")
    erofs = [programs.path_of("mkfs.erofs"), "--all-root", str(folder / "rootfs"), str(inside)]
    subprocess.run(erofs, check=True, capture_output=True)
    manifest = json.loads((stock / "manifest.json").read_text())
    manifest["sha256"] = {file: store.digest(folder / file) for file in store.FILES}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setenv("WGCELL_CACHE_DIR", str(tmp_path / "cache"))
    return folder.name


def test_an_image_with_one_static_program_runs_and_its_output_comes_home(
    cell: Cell, tiny: str, tmp_path: Path
) -> None:
    given = ["--image", tiny, "--output", "made", "--output-dir", str(tmp_path / "home")]
    ended = cell(*given, command=["/see", "here"])
    assert ended.code == 7, ended.stdout + ended.stderr
    assert ended.stdout == "here: 127.0.0.1 localhost t\n"
    assert (tmp_path / "home/made").read_text() == "home\n"
    assert ended.result["relay"]["refused"] == {}
