"""The protocol's end of `wgcell.mcpserver.desk`: its tools, for the ``mcp`` SDK's server.

A tool's docstring is what the model reads of it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Literal, TypeVar

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import Field

from wgcell.mcpserver.desk import (
    LONGEST_WAIT,
    Access,
    Desk,
    DeskError,
    FileContent,
    Output,
    Refusal,
)

__all__ = ["serve", "server"]

_INSTRUCTIONS = """\
Run commands and code in virtual machines whose only way out is a tunnel with a list of allowed
destinations. Start a cell, work in it with run_command, run_code, write_file and read_file, and
stop it. Everything in a cell is lost when it stops. What is not allowed is refused at once: see
refusals, and ask for it with request_access. Only a person can grant that.
"""

Cell = Annotated[str, Field(description="The cell's id, as start_cell gave it.")]
Seconds = Annotated[float, Field(gt=0, le=3600, description="Seconds until it is killed.")]
Path = Annotated[str, Field(description="Relative paths begin at /work.")]
Encoding = Literal["utf-8", "base64"]
Done = TypeVar("Done")


def server(desk: Desk) -> MCPServer[None]:
    """The server of one session; its end is the end of the session's cells."""

    @asynccontextmanager
    async def life(_: MCPServer[None]) -> AsyncIterator[None]:
        async with desk.open():
            yield

    made: MCPServer[None] = MCPServer(
        "wgcell", instructions=_INSTRUCTIONS, lifespan=life, log_level="ERROR"
    )

    @made.tool()
    async def start_cell() -> str:
        """Start a virtual machine; returns its id. Takes some seconds."""
        return await _said(desk.start())

    @made.tool()
    async def stop_cell(cell: Cell) -> str:
        """Stop a cell. All that is in it is lost."""
        await _said(desk.stop(cell))
        return f"{cell} has ended"

    @made.tool()
    async def list_cells() -> list[str]:
        """The ids of the cells that run."""
        return desk.ids()

    @made.tool()
    async def run_command(
        cell: Cell,
        command: Annotated[list[str], Field(description="The program and its arguments.")],
        stdin: str = "",
        timeout: Seconds = 120.0,
        folder: Path = "",
    ) -> Output:
        """Run a program in a cell to its end. No shell reads the command."""
        return await _said(desk.run(cell, command, stdin, timeout, folder))

    @made.tool()
    async def run_code(
        cell: Cell,
        code: str,
        language: Literal["python", "shell"] = "python",
        timeout: Seconds = 120.0,
    ) -> Output:
        """Run a program text in a cell. Each call is a process of its own: keep state in files."""
        return await _said(desk.run_code(cell, language, code, timeout))

    @made.tool()
    async def write_file(cell: Cell, path: Path, content: str, encoding: Encoding = "utf-8") -> str:
        """Make or replace a file in a cell."""
        return f"{await _said(desk.write(cell, path, content, encoding))} bytes"

    @made.tool()
    async def read_file(
        cell: Cell, path: Path, offset: Annotated[int, Field(ge=0, description="Bytes.")] = 0
    ) -> FileContent:
        """Read a file of a cell, up to 64 KiB from the offset on."""
        return await _said(desk.read(cell, path, offset))

    @made.tool()
    async def refusals(cell: Cell) -> list[Refusal]:
        """What this cell was refused: connections, names, and the rule that would allow each."""
        return await _said(desk.refusals(cell))

    @made.tool()
    async def request_access(
        cell: Cell,
        rule: Annotated[str, Field(description="HOST:PORT, as api.example.com:443.")],
        reason: Annotated[str, Field(description="For the person who decides.")],
        seconds: Annotated[float, Field(gt=0, le=86400, description="How long for.")] = 600.0,
        wait: Annotated[float, Field(ge=0, le=LONGEST_WAIT, description="For an answer.")] = 60.0,
    ) -> Access:
        """Ask a person to allow a destination for this cell for some time."""
        return await _said(desk.ask(cell, rule, reason, seconds, wait))

    return made


async def _said(asked: Awaitable[Done]) -> Done:
    """What comes of it; a reason for the model, where nothing does."""
    try:
        return await asked
    except DeskError as error:
        raise ToolError(str(error)) from error


def serve(desk: Desk, run: Callable[[MCPServer[None]], None] | None = None) -> None:
    """Speak the protocol on standard input and output until the client closes them."""
    made = server(desk)
    made.run("stdio") if run is None else run(made)
