"""``wgcell exec``: a command in a cell that runs, beside its workload."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from wgcell.cell.control.session import Connection, Lost
from wgcell.cell.environment import environment
from wgcell.cell.folder import Folder
from wgcell.cli.cells import Name, StateDir, named
from wgcell.cli.conversation import Left, Output, converse
from wgcell.cli.keys import parsed
from wgcell.cli.raw import RawTerminal, size
from wgcell.cli.terminal import restore, shown, warn
from wgcell.errors import InputError, StateError
from wgcell.guest.frames import STDERR, STDOUT, Command
from wgcell.home import expanded

__all__ = ["exec", "joined", "terminal_at"]


def exec(
    context: typer.Context,
    name: Name,
    interactive: Annotated[
        bool, typer.Option("-i", "--interactive", help="Pass standard input on.")
    ] = False,
    tty: Annotated[bool, typer.Option("-t", "--tty", help="Give the command a terminal.")] = False,
    env: Annotated[
        list[str] | None,
        typer.Option(
            "-e",
            "--env",
            metavar="NAME[=VALUE]",
            help="For the command; without a value, the one that NAME has here.",
        ),
    ] = None,
    env_file: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A file of such lines; # begins a comment."),
    ] = None,
    workdir: Annotated[
        str,
        typer.Option("-w", "--workdir", metavar="DIR", help="Where it starts. [default: /work]"),
    ] = "",
    user: Annotated[
        str,
        typer.Option("-u", "--user", metavar="USER[:GROUP]", help="As whom. [default: root]"),
    ] = "",
    detach: Annotated[
        bool, typer.Option("-d", "--detach", help="Do not wait for it; what it prints is lost.")
    ] = False,
    detach_keys: Annotated[
        str,
        typer.Option(
            "--detach-keys", metavar="KEYS", help="Keys that leave a terminal, as ctrl-p,ctrl-q."
        ),
    ] = "",
    state_dir: StateDir = None,
) -> None:
    """Run a command in a running cell: wgcell exec -it CELL -- bash

    It has the workload's rights, and goes out through the cell's tunnel as the workload does. When
    wgcell exec ends first, whatever ends it, the command gets SIGHUP.

    The exit code is the command's; 126 it can't be executed, 127 it is not there, 125 wgcell could
    not run it.
    """
    if not context.obj:
        raise InputError(
            "command line: a command stands behind two dashes",
            hint=f"wgcell exec {name} -- COMMAND",
        )
    keys = parsed(detach_keys)
    if detach and (interactive or tty):
        raise InputError("command line: --detach can't be combined with -i or -t: nobody is there")
    variables, unset = environment(tuple(env or ()), map(expanded, env_file or ()), os.environ)
    if unset:
        warn(f"not set here, so not passed on: {', '.join(unset)}")
    terminal = terminal_at(interactive=interactive, tty=tty, hint="leave out -t")
    command = Command(
        argv=tuple(context.obj),
        env=tuple(variables),
        folder=workdir,
        user=user,
        terminal=size(1, 0) if tty else None,
        stdin=interactive,
    )
    cell = named(name, state_dir)
    with Connection(cell, command, detached=detach) as connection:
        if detach:
            return
        try:
            code = joined(connection, terminal, interactive=interactive, tty=tty, keys=keys)
        except Lost as error:
            raise StateError(error.message, hint=_ended_hint(cell)) from None
    raise typer.Exit(code)


def terminal_at(*, interactive: bool, tty: bool, hint: str) -> RawTerminal | None:
    """Standard input's terminal, if a session with one is to have it. Raises InputError."""
    if not (interactive and tty):
        return None
    try:
        return RawTerminal(0)
    except OSError:
        raise InputError("standard input is no terminal, and the session's is", hint=hint) from None


def _outputs(*, tty: bool) -> dict[int, Output]:
    """Standard output and error for a session; with ``tty``, all of it as it is.

    What a terminal's program prints controls the terminal: that is the wish of whoever says -t.
    """
    if tty:
        return {STDOUT: Output(1), STDERR: Output(2)}
    return {STDOUT: Output(1, shown(sys.stdout)), STDERR: Output(2, shown(sys.stderr))}


def joined(
    connection: Connection,
    terminal: RawTerminal | None,
    *,
    interactive: bool,
    tty: bool,
    keys: bytes,
    redraw: bool = False,
) -> int:
    """Be the session's other end; the exit code. Raises Lost if the cell ends first."""
    try:
        return converse(
            connection,
            stdin=0 if interactive else None,
            outputs=_outputs(tty=tty),
            terminal=terminal,
            keys=keys,
            redraw=redraw,
        )
    except Left as left:
        return 128 + left.number if left.number else 0
    except BrokenPipeError:  # whoever read it has gone
        return 128 + signal.SIGPIPE
    finally:
        restore()


def _ended_hint(cell: Folder) -> str:
    """Where to read how a cell has ended, and the words for it if they are there."""
    result = cell.read("result.json") or {}
    outcome, reason = result.get("outcome"), result.get("reason")
    how = f"its outcome is {outcome}{f': {reason}' if reason else ''}; " if outcome else ""
    return f"{how}wgcell inspect {cell.id} says more"
