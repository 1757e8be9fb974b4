"""``wgcell``: the verbs, put together, and the one place where an error becomes an exit code."""

from __future__ import annotations

import gc
import os
import resource
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import Annotated, Any

import typer

import wgcell as package
from wgcell.cell.states import EXIT_CODES, Outcome
from wgcell.cli import stdio
from wgcell.cli.terminal import complain, finish_writing
from wgcell.errors import HostError, WgcellError

VERBS: Mapping[str, str] = MappingProxyType(
    {
        "run": "run",
        "exec": "exec",
        "attach": "attach",
        "cp": "cp",
        "ps": "ps",
        **dict.fromkeys(("logs", "events", "inspect"), "records"),
        "stop": "stop",
        "wait": "wait",
        **dict.fromkeys(("allow", "deny", "policy", "port"), "policy"),
        **dict.fromkeys(("pause", "unpause"), "pause"),
        **dict.fromkeys(("rm", "prune"), "rm"),
        "doctor": "doctor",
        "prove": "prove",
        "image": "image",
        "gateway": "gateway",
        "mcp": "mcp",
    }
)
"""Each verb and its module; only the wanted one's is loaded, for a cell's start counts."""

FAILED = EXIT_CODES[Outcome.ERROR]


def _version(asked: bool) -> None:
    if asked:
        print(f"wgcell {package.__version__}")
        raise typer.Exit


def _app(wanted: str) -> typer.Typer:
    """Every verb, or only the wanted one."""
    app = typer.Typer(
        name="wgcell",
        epilog="Try: wgcell run --input agent.py --allow api.example.com:443 -- python3 agent.py",
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def wgcell(
        version: Annotated[
            bool,
            typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
        ] = False,
    ) -> None:
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
    # A private key in memory belongs in no core dump: this process's, nor any that it starts.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        stdio.whole()
        main()
    except SystemExit as end:
        code = end.code
    finish_writing()
    # To take the interpreter apart module by module costs 35 ms, and every file is closed by now.
    # It would also end with 120 if standard output fails, and 120 means a rogue frame.
    os._exit(code if isinstance(code, int) else 0)


def main(argv: Sequence[str] | None = None) -> None:
    """The entry point. The words behind ``--`` are the workload's command, untouched.

    Raises SystemExit, and nothing else.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    command: list[str] | None = None
    if "--" in words:
        split = words.index("--")
        words, command = words[:split], words[split + 1 :]
    code = _exit_code_of(words, command)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        pass
    except (OSError, ValueError) as error:
        if not code:
            _explain(error, words)
            code = FAILED
    sys.exit(code)


def _exit_code_of(words: list[str], command: list[str] | None) -> int:
    """The exit code. Every error ends here, as words on standard error and a number."""
    try:
        app = _app(words[0] if words else "")
        gc.freeze()
        gc.enable()
        code = app(args=words or ["--help"], prog_name="wgcell", obj=command, standalone_mode=False)
        return code if isinstance(code, int) else 0
    except WgcellError as error:
        complain(error)
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # "wgcell image": its help is the answer
            print(error.message)
            return 0
        complain(error.format_message(), *_usage(words, error))
    except (typer.Abort, KeyboardInterrupt):
        return EXIT_CODES[Outcome.CANCELLED]
    except BrokenPipeError:
        return 0  # whoever read us has gone: nothing to say, nobody to say it to
    except Exception as error:
        _explain(error, words)
    return FAILED


def _explain(error: Exception, words: Sequence[str]) -> None:
    """Report an error that is no `WgcellError`: the machine's, if that can be seen, else a bug of
    wgcell."""
    if isinstance(error, OSError):
        if error.filename is not None:
            lost = "what was to be printed is lost, in part or whole"
            hint = lost if error.filename == stdio.STDOUT else ""
            complain(HostError(f"{_named(error.filename)}: {error.strerror}", hint=hint))
            return
        if isinstance(error, FileNotFoundError) and not _has_working_folder():
            hint = "cd to a folder that is there"
            complain(HostError("the working folder is not there any more", hint=hint))
            return
    from wgcell.cli import faults

    faults.report(error, words)


def _named(filename: object) -> str:
    return os.fsdecode(filename) if isinstance(filename, bytes) else str(filename)


def _has_working_folder() -> bool:
    try:
        os.getcwd()  # noqa: PTH109
    except OSError:
        return False
    return True


def _usage(words: Sequence[str], error: Exception) -> list[str]:
    """The hint for a command line that is not understood."""
    if words and words[0] == "run" and (typed := _command_without_dashes(words[1:], error)):
        job, *rest = typed
        if job.endswith(".toml"):
            return [f"a job file's own command is replaced behind two dashes: {job} -- …"]
        return [f"a command stands behind two dashes: wgcell run -- {shlex.join([job, *rest])}"]
    return ["wgcell --help lists the verbs, wgcell VERB --help their options"]


def _command_without_dashes(words: Sequence[str], error: Exception) -> list[str]:
    """The words from the first that is neither an option nor an option's value."""
    command = getattr(getattr(error, "ctx", None), "command", None)
    flags = {
        name
        for parameter in getattr(command, "params", ())
        if getattr(parameter, "is_flag", False)
        for name in parameter.opts
    } | {"-h", "--help"}
    at = 0
    while at < len(words) and words[at].startswith("-"):
        at += 1 if "=" in words[at] or words[at] in flags else 2
    return list(words[at:])
