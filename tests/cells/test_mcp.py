"""`wgcell mcp` over its standard input and output, with a real cell behind it, as the SDK's own
client sees it.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters

pytestmark = [pytest.mark.vm, pytest.mark.timeout(200)]


async def call(client: Client, tool: str, **words: Any) -> Any:
    result = await client.call_tool(tool, words)
    assert not result.is_error, result.content
    found = result.structured_content
    return found["result"] if found is not None and set(found) == {"result"} else found


def test_a_model_starts_a_cell_works_in_it_and_asks_for_more(tmp_path: Path) -> None:
    server = StdioServerParameters(
        command=sys.executable,
        args=["-P", "-m", "wgcell", "mcp", "--grant", "granted.example.com:443"],
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path)},
    )

    async def session() -> None:
        async with Client(server) as client:
            cell = await call(client, "start_cell")
            await call(client, "write_file", cell=cell, path="a.py", content="print(6 * 7)")
            done = await call(client, "run_command", cell=cell, command=["python3", "a.py"])
            assert done["stdout"] == "42\n" and done["exit_code"] == 0
            code = "import socket\nsocket.create_connection(('203.0.113.7', 443), 5)"
            assert (await call(client, "run_code", cell=cell, code=code))["exit_code"] == 1
            refused = await call(client, "refusals", cell=cell)
            assert [one["what"] for one in refused] == ["203.0.113.7:443"]
            words = {"cell": cell, "reason": "work", "wait": 0}
            rule = "granted.example.com:443"
            assert (await call(client, "request_access", rule=rule, **words))["granted"]
            rule = "other.example.com:443"
            assert not (await call(client, "request_access", rule=rule, **words))["granted"]
            read = await call(client, "read_file", cell=cell, path="a.py")
            assert read["content"] == "print(6 * 7)"

    asyncio.run(session())
    # The session's end was the cell's, and nothing of it is left.
    assert list((tmp_path / "wgcell" / "cells").iterdir()) == []
