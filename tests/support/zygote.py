"""A process that has wgcell loaded and built: a command line costs milliseconds, not 300.

Reads one JSON object a line: argv, cwd, env, fds ("closed", or a path to open), home; answers with
the exit code. Standard error goes to the file named ``stderr``, unless ``fds`` says otherwise. Each
command line has a fork of its own. `BATCH` forks once, for all command lines until `END`: each has
its own environment, files and streams, but not its own modules. A batch answers `BEGUN` first, and
then for itself; if it dies, its exit code is the answer to the command line that killed it. With
``--installed``, command lines find this machine's programs.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import pwd
import sys
from collections.abc import Callable
from typing import IO, Any

import typer

import wgcell.cli.main
import wgcell.cli.prove
from wgcell import programs
from wgcell.cell import jobfile, provider, schema
from wgcell.cli import stdio, terminal

BATCH, BEGUN, END = "batch", "begun", "end"

if "--installed" not in sys.argv:
    programs.SYSTEM = ("/nonexistent",)  # nothing is started, whatever this machine has
STREAMS = {0: "stdin", 1: "stdout", 2: "stderr"}

_build = wgcell.cli.main._app


@functools.cache
def _built(verb: str) -> Any:
    return typer.main.get_command(_build(verb))


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


def alone(asked: dict[str, Any]) -> int:
    """The exit code of a process of its own."""
    pid = os.fork()
    if pid == 0:
        try:
            with contextlib.suppress(FileNotFoundError):
                become(asked)
            wgcell.cli.main.program()
        finally:
            os._exit(99)  # program() does not return
    return ended(pid)


def here(asked: dict[str, Any]) -> int:
    """The exit code that `wgcell.cli.main.program` would end this process with."""
    become(asked)
    code: object = 1
    try:
        stdio.whole()
        wgcell.cli.main.main()
    except SystemExit as end:
        code = end.code
    terminal.finish_writing()
    return code if isinstance(code, int) else 0


def serve(asks: IO[str], answers: IO[str], run: Callable[[dict[str, Any]], int]) -> bool:
    """Whether `END` was said, and not the last line read."""
    while line := asks.readline():
        asked = json.loads(line)
        if asked == END:
            return True
        answers.write(f"{batch(asks, answers) if asked == BATCH else run(asked)}\n")
        answers.flush()
    return False


def batch(asks: IO[str], answers: IO[str]) -> int:
    """The exit code of a process that serves until `END`."""
    pid = os.fork()
    if pid == 0:
        try:
            answers.write(f"{BEGUN}\n")
            answers.flush()
            serve(asks, answers, here)
            os._exit(0)
        finally:
            os._exit(99)
    return ended(pid)


def ended(pid: int) -> int:
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def main() -> None:
    # The streams are the command lines'.
    asks, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    wgcell.cli.main._app = lambda wanted: _built(wanted if wanted in wgcell.cli.main.VERBS else "")
    for verb in ("", *wgcell.cli.main.VERBS):
        _built(verb)
    for kind in (jobfile.model(), provider.model()):
        schema.model(kind)
    gc.collect()
    gc.freeze()
    while serve(asks, answers, alone):
        answers.write("99\n")  # the batch had ended before
        answers.flush()


main()
