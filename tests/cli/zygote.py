"""A process that has wgcell loaded and forks for each command line: ten milliseconds, not 300.

Reads one JSON object a line: argv, cwd, env, fds ("closed", or a path to open), home; answers with
the exit code. Standard error goes to the file named ``stderr``, unless ``fds`` says otherwise.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import sys
from typing import Any

import wgcell.cli.main
import wgcell.cli.prove
from wgcell import programs

wgcell.cli.main._app("")  # every verb's module
programs.SYSTEM = ("/nonexistent",)  # nothing is started, whatever this machine has
STREAMS = {0: "stdin", 1: "stdout", 2: "stderr"}


def become(asked: dict[str, Any]) -> None:
    os.chdir(asked["cwd"])
    if asked.get("cwd_removed"):
        os.mkdir("gone")
        os.chdir("gone")
        os.rmdir("../gone")
    os.environ.clear()
    os.environ.update(asked["env"])
    if asked.get("homeless"):

        def nobody(uid: int) -> pwd.struct_passwd:
            raise KeyError(uid)

        pwd.getpwuid = nobody
    for fd, path in ((0, "/dev/null"), (1, asked["stdout"]), (2, asked["stderr"])):
        place = asked.get("fds", {}).get(str(fd), path)
        if place == "closed":
            os.close(fd)
            setattr(sys, STREAMS[fd], None)
            continue
        if place == "broken pipe":
            ours, theirs = os.pipe()
            os.close(ours)
        else:
            theirs = os.open(place, os.O_RDWR | os.O_CREAT, 0o600)
        os.dup2(theirs, fd)
        os.close(theirs)
        if fd == 2:
            # As at a start: what the descriptor can do is asked anew.
            sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    sys.argv = ["wgcell", *asked["argv"]]


for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        try:
            with contextlib.suppress(FileNotFoundError):
                become(json.loads(line))
            wgcell.cli.main.program()
        finally:
            os._exit(99)  # program() does not return
    _, status = os.waitpid(pid, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
