"""Tests of code that nobody trusts: each gets a cell, by the fixture ``cell`` of wgcell's plugin.

pytest examples/test_untrusted.py
"""

from __future__ import annotations

import pytest

import wgcell

UNTRUSTED = """
import json, socket, sys
try:
    socket.create_connection(("192.0.2.1", 443), timeout=5)
    reached = True
except OSError:
    reached = False
print(json.dumps({"answer": 6 * 7, "reached": reached}))
"""


def test_it_computes_and_reaches_nothing(cell: wgcell.sync.Cell) -> None:
    cell.files.write("untrusted.py", UNTRUSTED)
    done = cell.exec("python3", "untrusted.py", timeout=60, check=True)
    assert done.text == '{"answer": 42, "reached": false}\n'


@pytest.mark.cell(memory="256MiB", env={"GREETING": "hello"})
def test_a_cell_is_what_the_mark_says(cell: wgcell.sync.Cell) -> None:
    assert cell.exec("sh", "-c", "echo $GREETING").stdout == b"hello\n"
