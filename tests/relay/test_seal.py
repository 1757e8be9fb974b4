"""Hostile code inside the sealed relay tries each forbidden act; it dies of it, or fails.

::

    this process ──socket pairs──> relay (nic, control)        decoy 127.0.0.1 ── must hear nothing
                 ──connected UDP─> endpoint 127.0.0.1

The positive control is the same act in a relay left open: it succeeds there. What this can't show:
an error of the kernel's own in a call that the list allows.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.support.waiting import GENEROUS

from wgcell.processes import namespace_holder
from wgcell.relay.seal import RULES, unprivileged_id

pytestmark = pytest.mark.process

PROLOGUE = """
import ctypes, json, mmap, os, signal, socket, sys
from wgcell.relay import seal as module
module.load()
nic_fd, udp_fd, control_fd, decoy_port, sibling, mode = (*map(int, sys.argv[1:6]), sys.argv[6])
nic, udp, control = (socket.socket(fileno=fd) for fd in (nic_fd, udp_fd, control_fd))
decoy = ("127.0.0.1", decoy_port)
libc = ctypes.CDLL(None, use_errno=True)
def call(*arguments):
    words = (a if isinstance(a, ctypes.Array) else ctypes.c_long(a) for a in arguments)
    result = libc.syscall(*words)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
def say(word):
    control.send(word.encode())
if mode == "no filter":
    module._filter = lambda owned: None
if mode != "open":
    done = module.seal(module.Descriptors(nic_fd, udp_fd, control_fd), "x-0000aa")
    assert done.whole, done.missing
say("closed")
control.recv(1)
try:
"""
EPILOGUE = """
except OSError as error:
    say(f"failed: {error.strerror}")
else:
    say("succeeded")
os._exit(0)
"""

ACTS = {
    "a datagram on a new socket": """
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.sendto(b"leak", decoy)""",
    "a TCP connection": """
    socket.socket(socket.AF_INET, socket.SOCK_STREAM).connect(decoy)""",
    "reconnect the UDP socket": """
    udp.connect(decoy)
    udp.send(b"leak")""",
    "sendto another address": """
    udp.sendto(b"leak", decoy)""",
    "sendmsg to another address": """
    udp.sendmsg([b"leak"], [], 0, decoy)""",
    "bind to a device's name": """
    udp.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 1)""",
    "open a file": """
    os.open("/etc/passwd", os.O_RDONLY)""",
    "make a file": """
    os.close(os.open("/tmp", os.O_TMPFILE | os.O_RDWR))""",
    "execute a program": """
    libc.execv(b"/bin/true", (ctypes.c_char_p * 2)(b"true", None))
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))""",
    "fork": """
    if os.fork() == 0:
        os._exit(0)""",
    "signal a sibling": """
    os.kill(sibling, signal.SIGCONT)""",
    "trace a sibling": """
    call(101, 0x4206, sibling, 0, 0)  # PTRACE_SEIZE""",
    "take a sibling's descriptor": """
    pidfd = call(434, sibling, 0)
    call(438, pidfd, 0, 0)""",
    "read a sibling's memory": """
    call(310, sibling, 0, 0, 0, 0, 0)""",
    "load code": """
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)""",
    "an anonymous file": """
    os.memfd_create("x")""",
    "an io_uring": """
    call(425, 1, ctypes.create_string_buffer(120))""",
    "a socket by x32's numbers": """
    call(0x40000000 | 41, 2, 2, 0)""",
}
BY_NAMESPACES = {
    "a datagram on a new socket",
    "a TCP connection",
    "open a file",
    "make a file",
    "execute a program",
    "signal a sibling",
    "trace a sibling",
    "take a sibling's descriptor",
}
"""What must fail with the filter left out: each wall holds alone."""
NOT_HERE = {"a socket by x32's numbers", "an io_uring"}
"""Calls that some kernels have switched off: refused in an open relay, too."""


@dataclass
class Tried:
    said: str
    code: int
    heard: bytes


def attempt(act: str, mode: str) -> Tried:
    decoy = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    endpoint = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for made in (decoy, endpoint):
        made.bind(("127.0.0.1", 0))
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.bind(decoy.getsockname())
    listening.listen()
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.connect(endpoint.getsockname())
    (nic, nic_end), (control, control_end) = socket.socketpair(), socket.socketpair()
    sibling = subprocess.Popen(["sleep", "30"])
    fds = [nic_end.fileno(), udp.fileno(), control_end.fileno()]
    numbers = [*fds, decoy.getsockname()[1], sibling.pid]
    code = PROLOGUE + ACTS[act] + EPILOGUE
    before = () if mode == "open" else namespace_holder(root=os.geteuid() == 0)
    process = subprocess.Popen(
        [*before, sys.executable, "-P", "-c", code, *map(str, numbers), mode],
        pass_fds=fds,
        stderr=subprocess.PIPE,
    )
    for made in (nic_end, control_end, udp):
        made.close()
    control.settimeout(10)
    try:
        assert control.recv(100) == b"closed", process.communicate()[1].decode()
        control.send(b"!")
        said = control.recv(200).decode()
        process.wait(GENEROUS)
        decoy.settimeout(0.05)
        try:
            heard = decoy.recv(100)
        except TimeoutError:
            heard = b""
        return Tried(said, process.returncode, heard)
    finally:
        sibling.kill()
        sibling.wait()
        process.kill()
        process.communicate()
        for made in (decoy, endpoint, listening, nic, control):
            made.close()


@pytest.mark.parametrize("act", ACTS)
def test_sealed_it_dies_or_fails(act: str) -> None:
    tried = attempt(act, "sealed")
    assert tried.said == "" and tried.code == -signal.SIGSYS
    assert tried.heard == b""


@pytest.mark.parametrize("act", sorted(ACTS.keys() - NOT_HERE))
def test_positive_control_in_an_open_relay_it_succeeds(act: str) -> None:
    tried = attempt(act, "open")
    ran_away = act == "execute a program" and tried.code == 0
    assert ran_away or tried.said == "succeeded", tried
    if "leak" in ACTS[act]:
        assert tried.heard == b"leak"


@pytest.mark.parametrize("act", sorted(BY_NAMESPACES))
def test_without_the_filter_the_namespaces_and_the_empty_root_hold_alone(act: str) -> None:
    tried = attempt(act, "no filter")
    assert tried.said.startswith("failed: "), tried
    assert tried.heard == b""


def test_the_list_has_no_call_that_names_an_address_or_makes_a_descriptor() -> None:
    names = {name for name, _ in RULES}
    assert len(names) <= 24
    forbidden = "socket connect bind listen accept sendmsg sendmmsg open openat execve clone fork "
    forbidden += "ptrace pidfd_open pidfd_getfd process_vm_readv ioctl mmap mprotect memfd_create"
    assert not names & set(forbidden.split())
    assert all(pinned.get(4) == 0 for name, pinned in RULES if name == "sendto")


def test_each_cell_of_roots_has_a_user_of_its_own() -> None:
    if os.geteuid() != 0:
        assert unprivileged_id("job-0000aa") is None
    elif Path("/proc/self/uid_map").read_text().split()[-1] == str(2**32 - 1):
        assert unprivileged_id("job-0000aa") == 0x700000AA
        assert unprivileged_id("job-0000ab") == 0x700000AB
        assert unprivileged_id("no digits") == 65534


def relay(cell: str = "") -> tuple[subprocess.Popen[bytes], socket.socket]:
    (nic, nic_end), (control, control_end) = socket.socketpair(), socket.socketpair()
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.connect(("127.0.0.1", 9))
    argv = [*namespace_holder(root=os.geteuid() == 0), sys.executable, "-P", "-m", "wgcell.relay"]
    argv += [str(control_end.fileno()), cell]
    process = subprocess.Popen(argv, pass_fds=(control_end.fileno(),))
    socket.send_fds(control, [b"\0"], [nic_end.fileno(), udp.fileno()])
    for made in (nic, nic_end, control_end, udp):
        made.close()
    control.settimeout(10)
    assert b"begun" in control.recv(100)
    return process, control


CONFIGURE = {"order": "configure", "mtu": 1420}
CONFIGURE |= dict.fromkeys(("guest_public_key", "endpoint_public_key"), "A" * 43 + "=")


def test_an_exception_behind_the_seal_is_one_line_and_the_end() -> None:
    process, control = relay()
    control.send(json.dumps(CONFIGURE).encode() + b"\n")
    lines = control.makefile()
    assert json.loads(lines.readline())["seal"] is True
    control.send(b'{"order": "no such order"}\n')
    said = lines.read()
    assert "LineError" in said and "fault" in said
    assert process.wait(GENEROUS) == 1
    lines.close()
    control.close()


def test_it_is_no_process_of_this_user_and_dies_with_its_keeper() -> None:
    process, control = relay("x-0000aa")
    control.send(json.dumps(CONFIGURE).encode() + b"\n")
    control.recv(4096)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (inside,) = map(int, children)
    status = Path(f"/proc/{inside}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Seccomp"].strip() == "2" and fields["NoNewPrivs"].strip() == "1"
    assert fields["CapEff"].strip() == fields["CapPrm"].strip() == "0" * 16
    if os.geteuid() == 0:
        assert fields["Uid"].split()[0] == str(unprivileged_id("x-0000aa"))
        assert os.listdir(f"/proc/{inside}/root") == []
        kept = [Path(f"/proc/{process.pid}/fd", fd).readlink() for fd in ("0", "1", "2")]
        held = {link.readlink() for link in Path(f"/proc/{process.pid}/fd").iterdir()} - set(kept)
        held.discard(Path("anon_inode:[pidfd]"))  # its child's: util-linux since 2.41
        assert len(held) == 1  # the control socket
    process.kill()
    process.wait()
    control.settimeout(1)
    while control.recv(4096):
        pass
    control.close()
