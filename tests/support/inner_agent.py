"""An agent's workload and sessions in namespaces on this machine, without a guest. A program.

Its arguments: a root, and whether the wall "privileges" stands. Its descriptors 3 to 6 are the
ports control, stdout, stderr and sessions. The configuration comes as the first lines of the
control port, orders follow; the workload's end is said there.

What is written to standard input is Python, executed before anything is set up: it takes away what
a test shows to be needed.
"""

from __future__ import annotations

import contextlib
import os
import sys

from wgcell.guest import protocol
from wgcell.guest.agent import kernel, main, root

CONTROL = 3
PORTS = {"stdout": 4, "stderr": 5, protocol.SESSIONS: 6}
SHIELDED = "/mnt"


def prepare(inside: str) -> None:
    """As in the guest: the root is a mount, with a devpts, and nothing is mounted below others."""
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("300")
    kernel.unshare(kernel.NEWNS)
    kernel.privately()
    for name, kind in (("/proc", "proc"), ("/sys", "sysfs")):
        kernel._call("umount2", name.encode(), 2)
        kernel.mount(kind, name, kind)
    kernel.mount(inside, SHIELDED, flags=kernel.BIND)
    kernel.mount("dev", f"{SHIELDED}/dev", "tmpfs", data="mode=755")
    for name in ("pts", "shm"):
        os.mkdir(f"{SHIELDED}/dev/{name}")
    for name, (major, minor) in root._DEVICES.items():
        os.mknod(f"{SHIELDED}/dev/{name}", 0o020666, os.makedev(major, minor))
        os.chmod(f"{SHIELDED}/dev/{name}", 0o666)
    for name, to in root._LINKS.items():
        os.symlink(to, f"{SHIELDED}/dev/{name}")
    kernel.mount("pts", f"{SHIELDED}/dev/pts", "devpts", data="newinstance,ptmxmode=0666")


def live() -> None:
    """From the configuration to the workload's end."""
    prepare(sys.argv[1])
    root.ROOT = SHIELDED
    agent = main.Agent()
    agent._port = lambda name, mode: PORTS[name]  # type: ignore[method-assign]
    control = agent._control = main.Lines(CONTROL)
    config = agent._configured(control)
    exec(sys.stdin.read(), {})
    # Released; and what has come with the configuration waits for the workload, as in the guest.
    agent.released = True
    agent.take(control.held())
    work, sessions = agent._run(config)
    agent.runs(work)
    agent._loop.watch(CONTROL, main.READABLE, lambda: agent._obey(control))
    agent._loop.run(lambda: not (work.carried and sessions.over))
    agent.say(work.exited())
    # Children of ours are in our own namespace again: in one of its own it would have no parent.
    own = os.getpid()
    other = os.fork()
    if other == 0:
        os._exit(0 if os.getppid() == own else 1)
    assert os.waitpid(other, 0)[1] == 0
    agent._loop.run(lambda: True)


if __name__ == "__main__":
    with contextlib.suppress(EOFError):
        live()
