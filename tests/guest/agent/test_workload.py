"""The requester's command in its root and within its walls, on this kernel and without a machine.

A root of one static program: nothing else is there to be executed, so what set it up was our own.
Needs root, for namespaces and mounts; each test's are in a process of their own.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from ast import literal_eval
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts in the first user namespace"),
]

# Says what it sees, by system calls alone, and exits with 7; ``wait`` waits for a signal first.
PROGRAM = r"""
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <unistd.h>
static void on_term(int number) { printf("term\n"); fflush(stdout); _exit(9); }
static void show(const char *path, const char *prefix) {
    char line[512];
    FILE *file = fopen(path, "r");
    while (file && fgets(line, sizeof line, file))
        if (!strncmp(line, prefix, strlen(prefix))) printf("%s", line);
    if (file) fclose(file);
}
int main(int argc, char **argv, char **env) {
    char here[256];
    struct stat at;
    signal(SIGTERM, on_term);
    printf("cwd %s\n", getcwd(here, sizeof here));
    printf("pid 1 %d\n", getppid() == 1);
    show("/proc/self/status", "Cap");
    show("/proc/self/status", "SigIgn");
    show("/proc/self/oom_score_adj", "");
    printf("initramfs %d\n", stat("/newroot", &at) == 0 || stat("/lower", &at) == 0);
    printf("core_pattern %d\n", open("/proc/sys/kernel/core_pattern", O_WRONLY));
    for (int at = 0; at < 4; at++) {
        const char *secret[] = {"/proc/1/mem", "/proc/1/environ", "/proc/1/maps", "/proc/1/root/."};
        printf("init %d\n", open(secret[at], O_RDONLY));
    }
    if (argc > 1 && !strcmp(argv[1], "a b")) printf("init %ld\n", ptrace(PTRACE_ATTACH, 1, 0, 0));
    printf("sysfs %d\n", mkdir("/sys/x", 0755));
    for (int fd = 3; fd < 100; fd++) if (fcntl(fd, F_GETFD) != -1) printf("open %d\n", fd);
    for (int at = 1; at < argc; at++) printf("arg %s\n", argv[at]);
    for (; *env; env++) printf("env %s\n", *env);
    fflush(stdout);
    while (argc > 1 && !strcmp(argv[1], "talk")) { printf("more\n"); fflush(stdout); }
    if (argc > 1 && !strcmp(argv[1], "end init"))
        for (int number = 1; number < 32; number++)
            if (number != SIGTERM) kill(1, number);
    if (argc > 1 && !strcmp(argv[1], "end init")) sleep(1);
    if (argc > 1 && !strcmp(argv[1], "wait")) for (;;) pause();
    return 7;
}
"""

# In a mount namespace of its own: `confined` as the agent calls it.
START = """
import os, signal, sys
from wgcell.guest.config import GuestConfig
from wgcell.guest.agent import kernel, tools, workload
root, which, *command = sys.argv[1:]
with open("/proc/self/oom_score_adj", "w") as file:
    file.write("300")
kernel.unshare(kernel.NEWNS)
kernel.privately()
# As in the guest, nothing is mounted below these two.
for name, kind in (("/proc", "proc"), ("/sys", "sysfs")):
    kernel._call("umount2", name.encode(), 2)
    kernel.mount(kind, name, kind)
# move_to_root moves a mount, so the root must be one; and a proc comes over /tmp.
kernel.mount(root, "/mnt", flags=kernel.BIND)
root = "/mnt"
config = GuestConfig(
    time=1, hostname="cell", walls=frozenset(), private_key=b"", peer_public_key=b"",
    preshared_key=None, addresses=(), allowed_ips=(), mtu=1420, keepalive=25, dns=(), probe="",
    inputs=False, command=tuple(command), environment=(("A", "x y"),), outputs=(),
)
reading, writing = os.pipe()
errors, complaining = os.pipe()
null = os.open("/dev/null", os.O_RDONLY)
pid = getattr(workload, which)(config, root, null, writing, complaining)
if command[1:] == ["wait", "not"]:
    os.kill(pid, signal.SIGTERM)
os.close(writing); os.close(complaining)
if command[1:] == ["talk"]:
    os.close(reading)
    print(("", "", tools.ended(pid)))
    sys.exit()
out = b""
while part := os.read(reading, 65536):
    out += part
    if b"arg wait" in out and b"arg not" not in out:
        os.kill(pid, signal.SIGTERM)
        out = out.replace(b"arg wait", b"arg waited")
said = b""
while part := os.read(errors, 65536):
    said += part
# Children of ours are in our own namespace again.
own = os.getpid()
other = os.fork()
if other == 0:
    # In a namespace of its own it would have no parent.
    os._exit(0 if os.getppid() == own else 1)
assert tools.ended(other) == 0
print((out.decode(), said.decode(), tools.ended(pid)))
"""


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that needs nothing beside itself."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("static")
    (folder / "see.c").write_text(PROGRAM)
    argv = [compiler, "-static", "-O1", "-o", str(folder / "see"), str(folder / "see.c")]
    subprocess.run(argv, check=True, capture_output=True)
    return folder / "see"


@pytest.fixture
def bare(static: Path, tmp_path: Path) -> Path:
    """A root with one program in it, and the folders that the agent makes."""
    from wgcell.guest.agent import root

    inside = tmp_path / "root"
    inside.mkdir()
    shutil.copy(static, inside / "see")
    (inside / "text").write_text("no program\n")
    root.make_folders(str(inside))
    return inside


def started(root: Path, *command: str, which: str = "confined") -> tuple[str, str, int]:
    """What a command printed, what was said of it, and its exit code."""
    done = subprocess.run(
        # In a pid namespace, which ends with it: what hangs is not left behind.
        ["unshare", "--pid", "--fork", "--kill-child",
         sys.executable, "-c", START, str(root), which, *command],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    out, said, code = literal_eval(done.stdout)
    return str(out), str(said), int(code)


def test_an_image_with_one_static_program_runs_and_sees_its_walls(bare: Path) -> None:
    out, said, code = started(bare, "/see", "a b", "")
    assert (said, code) == ("", 7), out
    lines = out.splitlines()
    assert "cwd /work" in lines and "pid 1 1" in lines
    assert "arg a b" in lines and "arg " in lines and "env A=x y" in lines
    assert "env HOME=/root" in lines and sum(line.startswith("env ") for line in lines) == 4
    # docker's list without NET_RAW, MKNOD and AUDIT_WRITE, and nothing to inherit.
    kept = f"{0x800405FB:016x}"
    caps = dict(line.split(":\t") for line in lines if line.startswith("Cap"))
    assert caps == {"CapInh": "0" * 16, "CapPrm": kept, "CapEff": kept, "CapBnd": kept,
                    "CapAmb": "0" * 16}  # fmt: skip
    # glibc keeps 32 and 33 to itself: what this process inherited of them, nobody can change.
    (ignored,) = (int(line.split()[1], 16) for line in lines if line.startswith("SigIgn:"))
    assert ignored & ~(0b11 << 31) == 0
    assert "0" in lines  # oom_score_adj
    assert "initramfs 0" in lines and "core_pattern -1" in lines and "sysfs -1" in lines
    assert not [line for line in lines if line.startswith("open ")]
    # Its init was forked from the agent, and still holds what the agent knew.
    assert [line for line in lines if line.startswith("init ")] == ["init -1"] * 5


def test_no_signal_of_the_workloads_ends_its_init(bare: Path) -> None:
    out, said, code = started(bare, "/see", "end init")
    assert (said, code) == ("", 7), out


@pytest.mark.parametrize("which", ["confined", "open_"])
def test_a_shell_that_is_no_program_is_tried_once(bare: Path, which: str) -> None:
    (bare / "bin").mkdir()
    for path in (bare / "bin/sh", bare / "script"):
        path.write_text("no program\n")
        path.chmod(0o755)
    out, said, code = started(bare, "/script", which=which)
    assert (out, code) == ("", 126)
    assert said == "wgcell: /script: Exec format error\n"


def test_a_signal_goes_to_the_command_alone_and_its_code_comes_back(bare: Path) -> None:
    out, _, code = started(bare, "/see", "wait")
    assert out.endswith("term\n") and code == 9


@pytest.mark.parametrize("which", ["confined", "open_"])
def test_a_command_that_nobody_hears_ends_by_sigpipe(bare: Path, which: str) -> None:
    """No process of ours keeps the other end of its streams."""
    assert started(bare, "/see", "talk", which=which)[2] == 128 + signal.SIGPIPE


@pytest.mark.parametrize("which", ["confined", "open_"])
def test_a_signal_that_comes_at_once_is_not_lost(bare: Path, which: str) -> None:
    """Before the command is there, and before its init can pass anything on."""
    out, said, code = started(bare, "/see", "wait", "not", which=which)
    assert (said, code) in [("", 128 + signal.SIGTERM), ("", 9)], out


@pytest.mark.parametrize("which", ["confined", "open_"])
@pytest.mark.parametrize(
    ("word", "code"),
    [
        ("see", 127),
        ("/none", 127),
        ("/text", 126),
        ("/work", 126),
        ("A=b", 127),
        ("--version", 127),
    ],
)
def test_a_command_that_can_not_be_started(bare: Path, which: str, word: str, code: int) -> None:
    out, said, ended = started(bare, word, which=which)
    assert (out, ended) == ("", code)
    assert said.startswith(f"wgcell: {word}: ") and said.count("\n") == 1
