"""`wgcell mcp` as a client of the SDK sees it, over cells that only pretend to be.

What this can't show: a real cell behind it (`tests/cells/test_mcp.py`).
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from mcp import Client

from wgcell.errors import PolicyError, StateError
from wgcell.mcpserver import desk as desks
from wgcell.mcpserver.desk import MOST_SHOWN, Desk, DeskError, Terms
from wgcell.mcpserver.server import server


@dataclass
class Done:
    exit_code: int
    stdout: bytes
    stderr: bytes


@dataclass
class Allowed:
    rule: str


@dataclass
class Refused:
    what: str
    rule: str
    reason: str


@dataclass
class Files:
    held: dict[str, bytes] = field(default_factory=dict)

    async def read(self, path: str, *, most: int = 0) -> bytes:
        if path not in self.held:
            raise StateError(f"{path}: No such file or directory")
        return self.held[path]

    async def write(self, path: str, data: bytes | str, *, mode: int = 0) -> None:
        assert isinstance(data, bytes)
        self.held[path] = data


@dataclass
class Fake:
    id: str
    files: Files = field(default_factory=Files)
    rules: list[Allowed] = field(default_factory=list)
    ran: list[tuple[tuple[str, ...], bytes | str, float | None, str]] = field(default_factory=list)
    ended: bool = False

    async def exec(
        self,
        *command: str,
        input: bytes | str = b"",
        timeout: float | None = None,
        workdir: str = "",
        most: int = 0,
    ) -> Done:
        self.ran.append((command, input, timeout, workdir))
        if command[0] == "flood":
            return Done(0, b"x" * most, b"")
        return Done(3, b"out\xff", b"err")

    async def refusals(self, since: float = 0.0) -> Sequence[Refused]:
        return [Refused(f"{n}.example.com:443", f"{n}.example.com:443", "no") for n in range(300)]

    async def policy(self) -> Sequence[Allowed]:
        return self.rules

    async def allow(self, rule: str, *, seconds: float | None = None, typed: bool = True) -> None:
        if rule.startswith("never") and not typed:
            raise PolicyError("the provider does not allow it")
        self.rules.append(Allowed(rule))


class Room:
    """A desk whose cells are fakes, and what it has said to a person."""

    def __init__(self, *grants: str, most_cells: int = 3) -> None:
        self.cells: list[Fake] = []
        self.said: list[str] = []
        self.hold: asyncio.Event | None = None
        self.desk = Desk(self.begin, Terms(grants, most_cells), self.said.append)

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[Fake]:
        if self.hold is not None:
            await self.hold.wait()
        cell = Fake(f"cell-{len(self.cells)}")
        self.cells.append(cell)
        try:
            yield cell
        finally:
            cell.ended = True


def talk(room: Room, act: Callable[[Client], Coroutine[Any, Any, None]]) -> None:
    async def all_of_it() -> None:
        async with Client(server(room.desk)) as client:
            await act(client)

    asyncio.run(all_of_it())


async def call(client: Client, tool: str, **words: Any) -> Any:
    """A tool's result. Raises AssertionError with its words if it is an error."""
    result = await client.call_tool(tool, words)
    assert not result.is_error, result.content
    found = result.structured_content
    return found["result"] if found is not None and set(found) == {"result"} else found


async def error(client: Client, tool: str, **words: Any) -> str:
    result = await client.call_tool(tool, words)
    assert result.is_error
    return "".join(getattr(part, "text", "") for part in result.content)


def test_every_tool_says_what_it_does_and_describes_its_arguments() -> None:
    async def act(client: Client) -> None:
        tools = (await client.list_tools()).tools
        assert {tool.name for tool in tools} == {
            *("start_cell", "stop_cell", "list_cells", "run_command", "run_code", "write_file"),
            *("read_file", "refusals", "request_access"),
        }
        for tool in tools:
            assert tool.description
            assert set(tool.input_schema.get("required", ())) <= set(
                tool.input_schema.get("properties", ())
            )

    talk(Room(), act)


def test_a_cells_life_and_its_work() -> None:
    room = Room()

    async def act(client: Client) -> None:
        cell = await call(client, "start_cell")
        assert await call(client, "list_cells") == [cell]
        done = await call(
            client, "run_command", cell=cell, command=["ls", "-l"], timeout=5, folder="/tmp"
        )
        assert done == {"exit_code": 3, "stdout": "out\\xff", "stderr": "err", "truncated": False}
        await call(client, "run_code", cell=cell, code="print(1)")
        assert await call(client, "write_file", cell=cell, path="a", content="é") == "2 bytes"
        read = await call(client, "read_file", cell=cell, path="a")
        assert read == {"content": "é", "encoding": "utf-8", "size": 2, "next_offset": None}
        assert len(await call(client, "refusals", cell=cell)) == 100
        await call(client, "stop_cell", cell=cell)
        assert await call(client, "list_cells") == []
        assert "start_cell" in await error(client, "run_command", cell=cell, command=["ls"])

    talk(room, act)
    assert room.cells[0].ended
    assert room.cells[0].ran == [
        (("ls", "-l"), "", 5.0, "/tmp"),
        (("python3", "-"), "print(1)", 120.0, ""),
    ]


def test_the_end_of_the_session_ends_its_cells() -> None:
    room = Room()

    async def act(client: Client) -> None:
        await call(client, "start_cell")
        await call(client, "start_cell")

    talk(room, act)
    assert [cell.ended for cell in room.cells] == [True, True]


def test_cells_are_bounded_those_that_start_too() -> None:
    room = Room(most_cells=2)

    async def act(client: Client) -> None:
        room.hold = asyncio.Event()
        starts = [asyncio.create_task(call(client, "start_cell")) for _ in range(2)]
        while room.desk._starting < 2:
            await asyncio.sleep(0)
        assert "the most" in await error(client, "start_cell")
        room.hold.set()
        await asyncio.gather(*starts)
        assert "the most" in await error(client, "start_cell")

    talk(room, act)


def test_a_flood_is_cut_and_said_to_be() -> None:
    room = Room()

    async def act(client: Client) -> None:
        cell = await call(client, "start_cell")
        done = await call(client, "run_command", cell=cell, command=["flood"])
        assert len(done["stdout"]) == MOST_SHOWN and done["truncated"]

    talk(room, act)


@pytest.mark.parametrize(
    "data",
    [b"", b"text", bytes(range(256)) * 600, "ééé".encode() * 40_000, b"x" + "é".encode() * 60_000],
    ids=["empty", "text", "binary", "even", "odd"],
)
def test_a_file_is_read_piece_by_piece_and_whole(data: bytes) -> None:
    room = Room()

    async def act(client: Client) -> None:
        cell = await call(client, "start_cell")
        room.cells[0].files.held["f"] = data
        whole, offset = b"", 0
        while offset is not None:
            piece = await call(client, "read_file", cell=cell, path="f", offset=offset)
            raw = piece["content"]
            whole += raw.encode() if piece["encoding"] == "utf-8" else base64.b64decode(raw)
            offset = piece["next_offset"]
        assert whole == data

    talk(room, act)


def test_binary_files_are_written_as_base64_and_nonsense_is_refused() -> None:
    room = Room()

    async def act(client: Client) -> None:
        cell = await call(client, "start_cell")
        raw = base64.b64encode(b"\0\xff").decode()
        words = {"cell": cell, "path": "b", "encoding": "base64"}
        assert await call(client, "write_file", content=raw, **words) == "2 bytes"
        assert "base64" in await error(client, "write_file", content="!", **words)
        assert "No such file" in await error(client, "read_file", cell=cell, path="missing")

    talk(room, act)
    assert room.cells[0].files.held["b"] == b"\0\xff"


def test_access_is_a_persons_to_grant() -> None:
    room = Room()

    async def act(client: Client) -> None:
        cell = await call(client, "start_cell")
        rule = "api.example.com:443"
        words = {"cell": cell, "rule": rule, "reason": "I want\n\x1b[2Jit", "seconds": 60}
        answer = await call(client, "request_access", wait=0, **words)
        assert not answer["granted"] and room.cells[0].rules == []
        waiting = asyncio.create_task(call(client, "request_access", wait=60, **words))
        while len(room.said) < 4:
            await asyncio.sleep(0)
        room.cells[0].rules.append(Allowed(rule))  # as `wgcell allow` does
        assert (await waiting)["granted"]

    talk(room, act)
    assert "wgcell allow cell-0 api.example.com:443 --for 60s" in room.said[1]
    assert all("\x1b" not in line and "\n" not in line for line in room.said)


def test_patterns_of_the_servers_own_grant_at_once_and_no_others() -> None:
    room = Room("*.example.com:443", "never.example.org:*")

    async def act(client: Client) -> None:
        cell = await call(client, "start_cell")
        for rule, granted in (
            ("files.example.com:443", True),
            ("files.example.com:80", False),
            ("example.com.example.org:443", False),
        ):
            words = {"cell": cell, "rule": rule, "reason": "work", "wait": 0}
            assert (await call(client, "request_access", **words))["granted"] is granted
        words = {"cell": cell, "rule": "never.example.org:443", "reason": "work"}
        assert "the provider" in await error(client, "request_access", **words)

    talk(room, act)
    assert [one.rule for one in room.cells[0].rules] == ["files.example.com:443"]


@pytest.mark.parametrize(
    "rule",
    ["", "a", "*:443", "*.example.com:443", "a.example.com:443; rm -rf", "$(id).example.com:1"],
)
def test_no_rule_is_printed_that_a_person_had_better_not_type(rule: str) -> None:
    room = Room("*")

    async def act() -> None:
        name = await room.desk.start()
        with pytest.raises(DeskError):
            await room.desk.ask(name, rule, "why", 60, 0)

    asyncio.run(act())
    assert room.said == [] and room.cells[0].rules == []


@pytest.mark.parametrize(("asked", "given"), [(1e9, desks.LONGEST_GRANT), (0.001, 1.0)])
def test_a_grants_time_is_bounded(asked: float, given: float) -> None:
    room = Room("*")

    async def act() -> None:
        name = await room.desk.start()
        times: list[float | None] = []

        async def allow(rule: str, *, seconds: float | None = None, typed: bool = True) -> None:
            times.append(seconds)

        room.cells[0].allow = allow  # type: ignore[method-assign]
        await room.desk.ask(name, "a.example.com:443", "why", asked, 0)
        assert times == [given]

    asyncio.run(act())
