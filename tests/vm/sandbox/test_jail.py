"""A hostile program in the jail in QEMU's place: what it finds, and what kills it.

The positive control is the same program outside: it succeeds there. What this can't show: an error
of the kernel's own in a call that the filter allows.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from wgcell import programs
from wgcell.relay.seal import unprivileged_id
from wgcell.vm.sandbox import jail as jail_module
from wgcell.vm.sandbox.jail import ABSENT, KILLED, bwrap_argv, closed_filter, find_jail, limits

pytestmark = pytest.mark.process

# Perl, since it is on every Debian, needs nothing but /usr, and can make any system call.
PERL = shutil.which("perl") or "/usr/bin/perl"
SYSCALLS = {"socket": 41, "ptrace": 101, "pidfd_getfd": 438, "process_vm_readv": 310, "bpf": 321}
SYSCALLS |= {"unshare": 272, "mount": 165, "io_uring_setup": 425}


def jailed(
    program: str,
    *,
    user: int | None = unprivileged_id("x-0000aa"),
    perl: str = PERL,
) -> subprocess.CompletedProcess[str]:
    return in_jail([perl, "-e", program], user=user)


def in_jail(
    command: list[str], *, user: int | None = unprivileged_id("x-0000aa"), said: str = ""
) -> subprocess.CompletedProcess[str]:
    """``command`` in QEMU's place, with ``said`` on its standard input."""
    jail = find_jail(user, None)
    assert jail.bwrap is not None, jail.missing
    info, told = os.pipe()
    filter_fd = closed_filter()
    argv = bwrap_argv(jail, command, filter_fd=filter_fd, info_fd=told, device=None)
    become = {} if jail.user is None else {"user": jail.user, "group": jail.user}
    try:
        done = subprocess.run(
            argv,
            pass_fds=(filter_fd, told),
            input=said,
            capture_output=True,
            text=True,
            timeout=60,
            cwd="/",
            **become,
        )
        assert "child-pid" in json.loads(os.read(info, 4096))
        return done
    finally:
        for fd in (info, told, filter_fd):
            os.close(fd)


def outside(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PERL, "-e", program], capture_output=True, text=True, timeout=20)


def syscall(number: int, *arguments: int) -> str:
    words = ", ".join(map(str, (number, *arguments)))
    return f"my $r = syscall({words}); print $r < 0 ? 'errno ' . ($!+0) : 'succeeded';"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("socket", (2, 2, 0)),
        ("ptrace", (0, 0, 0, 0)),
        ("pidfd_getfd", (0, 0, 0)),
        ("process_vm_readv", (1, 0, 0, 0, 0, 0)),
        ("bpf", (0, 0, 0)),
        ("unshare", (0x40000000,)),
        ("mount", (0, 0, 0, 0, 0)),
    ],
)
def test_what_opens_a_network_or_reaches_into_a_process_kills(
    name: str, arguments: tuple[int, ...]
) -> None:
    assert name in KILLED
    done = jailed(syscall(SYSCALLS[name], *arguments))
    assert done.returncode == 128 + signal.SIGSYS and done.stdout == "", done
    assert outside(syscall(SYSCALLS[name], *arguments)).stdout != ""  # it lives to tell


def test_io_uring_is_answered_as_an_old_kernel_would() -> None:
    assert "io_uring_setup" in ABSENT
    assert jailed(syscall(SYSCALLS["io_uring_setup"], 1, 0)).stdout == "errno 38"


HUGE_PAGES = "/sys/kernel/mm/transparent_hugepage/enabled"


def listing(folder: str) -> str:
    return f"opendir(D, '{folder}') or die 'none'; print join(' ', sort grep !/^\\./, readdir D)"


def test_it_finds_no_network_no_process_and_no_file_beyond_its_own() -> None:
    devices = "open(F, '/proc/net/dev') or die; print grep /:/, <F>"
    links = jailed(devices).stdout.split("\n")
    assert [line.split(":")[0].strip() for line in links if line] == ["lo"]
    assert [name for name in jailed(listing("/proc")).stdout.split() if name.isdigit()] == ["1"]
    assert len([n for n in outside(listing("/proc")).stdout.split() if n.isdigit()]) > 1
    top = {"usr", "lib", "lib64", "etc", "proc", "dev", "sys"}
    assert set(jailed(listing("/")).stdout.split()) <= top
    # Of /sys, whether there are huge pages.
    for folder, only in (("/sys", "kernel"), ("/sys/kernel", "mm")):
        assert jailed(listing(folder)).stdout in ("", only)
    assert jailed(listing("/sys/kernel/mm")).stdout in ("", "transparent_hugepage")
    assert jailed(listing("/etc")).stdout in ("", "ld.so.cache")
    for folder in ("/home", "/root", "/var", "/tmp", str(Path.cwd())):
        assert jailed(listing(folder)).returncode != 0
        assert outside(listing(folder)).returncode == 0


@pytest.mark.parametrize("place", ["/x", "/usr/x", "/etc/x", HUGE_PAGES])
def test_it_writes_nowhere_that_outlives_it(place: str) -> None:
    """/dev is a tmpfs of the jail's own, and dies with it."""
    program = "open(F, '>', '{}') or die; print F 'x'; close F; print 'written'"
    assert "written" not in jailed(program.format(place)).stdout
    assert jailed(program.format("/dev/x")).stdout == "written"  # the control: it can tell
    assert not Path("/dev/x").exists()


def test_it_is_nobody_and_holds_no_right() -> None:
    done = jailed("open(F, '/proc/self/status'); print grep /^(Cap|NoNewPrivs|Seccomp:)/, <F>")
    fields = dict(line.split(":\t") for line in done.stdout.splitlines())
    assert jailed("print join ' ', $<, $>, $(+0, $)+0").stdout == "65534 65534 65534 65534"
    assert {fields[name] for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {"0" * 16}
    assert fields["NoNewPrivs"] == "1" and fields["Seccomp"] == "2"


def test_the_bounds_follow_the_guests_own() -> None:
    bounds = dict(limits(512 << 20, 1 << 30))
    import resource

    assert bounds[resource.RLIMIT_CORE] == 0
    assert bounds[resource.RLIMIT_FSIZE] == 1 << 30
    assert 512 << 20 < bounds[resource.RLIMIT_AS] < 8 << 30


def test_without_bubblewrap_the_jail_is_missing_and_the_mend_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(programs, "SYSTEM", ())
    (tmp_path / "unshare").symlink_to("/usr/bin/unshare")
    jail = find_jail(None, None)
    assert jail.bwrap is None and "apt-get install bubblewrap" in jail.missing
    refusing = tmp_path / "bwrap"
    refusing.write_text(
        "#!/bin/sh\necho 'bwrap: setting up uid map: Permission denied' >&2\nexit 1\n"
    )
    refusing.chmod(0o755)
    jail = find_jail(None, None)
    assert jail.bwrap is None and "Permission denied (wgcell doctor" in jail.missing


def test_a_kernel_that_lists_no_children_has_no_jail(monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU could not be found in it."""
    monkeypatch.setattr(jail_module, "CHILDREN", "/proc/{0}/nothing")
    jail = find_jail(None, None)
    assert jail.bwrap is None and "CONFIG_PROC_CHILDREN" in jail.missing


def test_python_can_not_be_run_in_qemus_place_by_the_guests_word() -> None:
    assert jailed(f"exec '{sys.executable}', '-c', '1'; print 'refused'").stdout == "refused"


# A QEMU that is not the system's: where people put one, with what must not be in its jail.

LAYOUTS = {
    "a home's bin": ("home/bin", "home"),
    "a home's .local": ("home/.local/bin", "home/.local"),
    "a prefix of its own": ("opt/qemu-9/bin", "opt/qemu-9"),
    "a prefix's own folder": ("opt", "."),
    "deeper": ("opt/qemu-9/libexec/qemu", "opt/qemu-9/libexec"),
}
SECRETS = ("home/.ssh/id", "home/lib/notes", "opt/other/key", "var/secret", "home/share/mail")


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A root with secrets in it, that whoever the jail's user is may read.

    Not below pytest's own folder, which each pytest that starts shuts to others.
    """
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        root.chmod(0o755)
        for name in SECRETS:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("secret")
        yield root


def installed(program: str, root: Path, layout: str) -> tuple[Path, Path]:
    """A copy of ``program`` in that layout below ``root``; its path, and its prefix."""
    folder, prefix = (root / name for name in LAYOUTS[layout])
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / Path(program).name
    shutil.copy(program, copy)
    return copy, prefix.resolve()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_qemu_found_elsewhere_brings_nothing_but_its_own(elsewhere: Path, layout: str) -> None:
    perl, _ = installed(PERL, elsewhere, layout)
    for name in SECRETS:
        reads = f"open(F, '<', '{elsewhere / name}') or die 'none'; print <F>"
        done = jailed(reads, perl=str(perl))
        assert done.stdout == "" and "none" in done.stderr, done
        assert outside(reads).stdout == "secret"  # the control
    assert jailed("print 'runs'", perl=str(perl)).stdout == "runs"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["share/qemu", "lib/qemu"])
def test_no_link_of_a_known_name_leads_further(elsewhere: Path, layout: str, name: str) -> None:
    """``~/share/qemu -> ~``: what is bound is never a folder above QEMU itself."""
    perl, prefix = installed(PERL, elsewhere, layout)
    link = prefix / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(prefix)
    jail = find_jail(None, None)
    argv = bwrap_argv(jail, [str(perl)], filter_fd=0, info_fd=1, device=None)
    bound = [Path(argv[at + 1]) for at, word in enumerate(argv) if "bind" in word]
    assert not [one for one in bound if one != perl and one in perl.parents]


QMP = '{"execute": "qmp_capabilities"} {"execute": "quit"}'
FIRMWARE = ("bios-256k.bin", "kvmvapic.bin", "linuxboot_dma.bin", "pvh.bin")


@pytest.mark.parametrize("layout", ["a home's bin", "a prefix of its own"])
def test_a_qemu_found_elsewhere_has_its_firmware_and_libraries(
    elsewhere: Path, layout: str
) -> None:
    system = programs.find("qemu-system-x86_64")
    if system is None:
        pytest.skip("there is no QEMU here")
    qemu, prefix = installed(str(Path(system).resolve()), elsewhere, layout)
    argv = [str(qemu), "-nodefaults", "-display", "none", "-machine", "q35,accel=tcg", "-S"]
    argv += ["-qmp", "stdio"]
    shown = subprocess.run([system, "--version"], capture_output=True, text=True, check=True).stdout
    if int(shown.split("version ")[1].split(".")[0]) < 10:  # a newer one looks in /usr, too
        assert in_jail(argv, said=QMP).returncode != 0  # the control: it does not run without them
    own = prefix / "share/qemu"
    own.mkdir(parents=True)
    for name in FIRMWARE:
        for place in ("/usr/share/qemu", "/usr/share/seabios"):
            if Path(place, name).exists():
                shutil.copy(Path(place, name), own / name)
    modules = f"lib/{platform.machine()}-linux-gnu/qemu"
    if Path("/usr", modules).is_dir():
        (prefix / modules).mkdir(parents=True)
        for module in Path("/usr", modules).glob("accel-*.so"):
            shutil.copy(module, prefix / modules)
    done = in_jail(argv, said=QMP)
    assert done.returncode == 0, done


def test_libraries_of_a_prefix_are_found_by_name(elsewhere: Path) -> None:
    """A library beside it, by its rpath: bound as a file, not with its folder."""
    perl, prefix = installed(PERL, elsewhere, "a prefix of its own")
    library = prefix / "lib/libcrypt.so.1"
    library.parent.mkdir(parents=True)
    (prefix / "lib/secret").write_text("secret")
    library.write_bytes(b"")
    argv = ["--ro-bind", str(library), str(library)]
    made = elsewhere / "ldd"
    line = f"libcrypt.so.1 => {perl.parent}/../lib/libcrypt.so.1 (0x1)"
    made.write_text(f"#!/bin/sh\necho '{line}'\n")
    made.chmod(0o755)
    jail = find_jail(None, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(elsewhere))
        words = bwrap_argv(jail, [str(perl)], filter_fd=0, info_fd=1, device=None)
    at = words.index(str(library))
    assert words[at - 1 : at + 2] == argv
    assert str(prefix / "lib") not in words
