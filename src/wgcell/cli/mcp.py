"""``wgcell mcp``: cells as tools for a language model."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Annotated

import typer

from wgcell.cell.units import parse_duration, parse_size
from wgcell.cli.terminal import complain
from wgcell.errors import HostError, InputError
from wgcell.gateway.model.rules import parse_rule

__all__ = ["mcp"]


def mcp(
    allow: Annotated[
        list[str] | None,
        typer.Option(
            "--allow",
            metavar="HOST:PORT",
            help="What every cell of this server may reach; may be repeated.",
        ),
    ] = None,
    grant: Annotated[
        list[str] | None,
        typer.Option(
            "--grant",
            metavar="PATTERN",
            help="Rules that the model gets when it asks, with *, as '*.example.com:443'.",
        ),
    ] = None,
    memory: Annotated[str, typer.Option(help="Each cell's memory.")] = "512MiB",
    cpus: Annotated[int, typer.Option(help="Each cell's processors.")] = 1,
    timeout: Annotated[str, typer.Option(help="The longest that a cell lives.")] = "1h",
    most_cells: Annotated[int, typer.Option(min=1, max=64, help="Cells at once.")] = 8,
) -> None:
    """Serve cells to a language model: a Model Context Protocol server on stdin and stdout.

    Put `wgcell mcp --allow ...` where your agent's configuration names MCP servers. The model can
    start cells, run commands and code, and read and write files in them. It reaches no cell but its
    own and can't widen what they may reach. It can ask: grant that with `wgcell allow`.
    """
    try:
        from wgcell.mcpserver.server import serve
    except ImportError as error:
        raise HostError(
            f"the MCP server needs a package that is not here: {error.name}",
            hint="pip install 'wgcell[mcp]'",
        ) from None
    from wgcell.client.cell import Cell
    from wgcell.mcpserver.desk import Cell as Used
    from wgcell.mcpserver.desk import Desk, Terms

    rules = tuple(allow or ())

    def begin() -> AbstractAsyncContextManager[Used]:
        return Cell(allow=rules, memory=memory, cpus=cpus, timeout=timeout, remove=True)

    _check(rules, memory, timeout)
    serve(Desk(begin, Terms(tuple(grant or ()), most_cells), complain))


def _check(rules: tuple[str, ...], memory: str, timeout: str) -> None:
    """Raises InputError now, to a person, for what would fail each cell of the model's."""
    for rule in rules:
        parse_rule(rule)
    for option, parse, text in (
        ("--memory", parse_size, memory),
        ("--timeout", parse_duration, timeout),
    ):
        try:
            parse(text)
        except ValueError as error:
            raise InputError(f"command line: {option}: found {error}") from None
