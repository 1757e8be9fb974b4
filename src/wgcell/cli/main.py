"""``wgcell``: the verbs, put together, and the one place where an error becomes an exit code."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import Any

import typer
from rich.markup import escape

from wgcell.cell.states import EXIT_CODES, Outcome
from wgcell.cli.terminal import console
from wgcell.errors import WgcellError

VERBS: Mapping[str, str] = MappingProxyType(
    {
        "run": "run",
        **dict.fromkeys(("ps", "logs", "events", "inspect", "stop", "rm"), "cells"),
        "doctor": "doctor",
        "prove": "prove",
        "image": "image",
        "gateway": "gateway",
    }
)
"""Each verb and its module; only the wanted one's is loaded, for a cell's start counts."""


def _app(wanted: str) -> typer.Typer:
    """Every verb, or only the wanted one."""
    app = typer.Typer(
        name="wgcell",
        epilog="Try: wgcell run --allow api.example.com:443 -- python3 agent.py",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def wgcell() -> None:
        """Run code you don't trust in a VM whose only way out is one WireGuard tunnel."""

    for verb, module in VERBS.items():
        if wanted not in VERBS or verb == wanted:
            loaded = import_module(f"wgcell.cli.{module}")
            if hasattr(loaded, "app"):
                app.add_typer(loaded.app, name=verb)
            else:
                app.command(verb)(getattr(loaded, verb))
    return app


# typer carries a click of its own and exports only some of its errors.
_UsageError: Any = typer.BadParameter.__mro__[1]


def program() -> None:
    """The process ``wgcell``: `main`, quick to start and quick to be gone."""
    gc.disable()  # until all is loaded, which stays: looking through it again and again takes 10 ms
    code: object = 1
    try:
        main()
    except SystemExit as end:
        code = end.code
    # The interpreter taken apart module by module costs 35 ms, and every file is closed by now.
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0)


def main(argv: Sequence[str] | None = None) -> None:
    """The entry point. What stands behind ``--`` is the workload's command, untouched."""
    words = list(sys.argv[1:] if argv is None else argv)
    command: list[str] | None = None
    if "--" in words:
        split = words.index("--")
        words, command = words[:split], words[split + 1 :]
    failed = EXIT_CODES[Outcome.ERROR]
    try:
        app = _app(words[0] if words else "")
        gc.freeze()
        gc.enable()
        code = app(args=words, obj=command, standalone_mode=False)
    except WgcellError as error:
        console.print(f"[red]wgcell:[/] {escape(str(error))}")
        code = failed
    except _UsageError as error:
        console.print(f"[red]wgcell:[/] {escape(error.format_message())}")
        console.print("  wgcell --help lists the verbs, wgcell VERB --help their options")
        code = failed
    except (typer.Abort, KeyboardInterrupt):
        code = EXIT_CODES[Outcome.CANCELLED]
    except BrokenPipeError:
        sys.stderr.close()  # whoever read us has gone: nothing to say, nobody to say it to
        code = 0
    sys.exit(code if isinstance(code, int) else 0)
