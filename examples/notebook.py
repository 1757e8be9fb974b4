"""A notebook's kernel in a cell: code goes in piece by piece, and its variables stay.

    python3 examples/notebook.py
    [1]: x = 6
    [2]: x * 7
    42

What is sent runs in a process of the cell, and comes back as what it printed and the value of its
last expression. The kernel is a few lines of Python that this program writes into the cell.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from types import TracebackType

import wgcell

KERNEL = """
import ast, contextlib, io, json, sys, traceback

names = {"__name__": "__main__"}
for line in sys.stdin:
    printed, value, failed = io.StringIO(), "", False
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            tree = ast.parse(json.loads(line))
            last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, "<cell>", "exec"), names)
            if last is not None:
                found = eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)
                value = "" if found is None else repr(found)
        except BaseException:
            failed = True
            traceback.print_exc()
    answer = {"printed": printed.getvalue(), "value": value, "failed": failed}
    sys.__stdout__.write(json.dumps(answer) + "\\n")
    sys.__stdout__.flush()
"""
LONGEST = 16 << 20
"""Bytes of an answer. What answers is untrusted: it may say anything, but not without end."""


@dataclass(frozen=True)
class Result:
    """What a piece of code has come to."""

    printed: str
    value: str
    """The last expression's, as repr() has it; empty: there is none."""
    failed: bool


class Notebook:
    """Python in a cell, whose variables stay between pieces of code."""

    def __init__(self, **settings: object) -> None:
        self._cell = wgcell.sync.Cell(**settings)  # type: ignore[arg-type]
        self._kernel: wgcell.sync.Process | None = None
        self._rest = b""

    def __enter__(self) -> Notebook:
        self._cell.__enter__()
        self._cell.files.write("kernel.py", KERNEL)
        self._kernel = self._cell.spawn("python3", "-u", "kernel.py")
        self._kernel.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._kernel is not None:
            self._kernel.__exit__(kind, error, trace)
        self._cell.__exit__(kind, error, trace)

    def run(self, code: str) -> Result:
        """Run ``code``. Raises RuntimeError if the kernel has ended, or says what is no answer."""
        if self._kernel is None:
            raise RuntimeError("the notebook is not open")
        self._kernel.stdin.write(json.dumps(code).encode() + b"\n")
        try:
            said = json.loads(self._line(self._kernel))
            return Result(str(said["printed"]), str(said["value"]), bool(said["failed"]))
        except (ValueError, KeyError, TypeError) as error:
            raise RuntimeError(f"the kernel's answer makes no sense: {error}") from None

    def _line(self, kernel: wgcell.sync.Process) -> bytes:
        while b"\n" not in self._rest:
            piece = kernel.stdout.read()
            if not piece or len(self._rest) + len(piece) > LONGEST:
                raise RuntimeError("the kernel has ended, or does not stop")
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        return line


def main() -> None:
    """Read code from the terminal, a line a piece."""
    with Notebook(remove=True) as notebook:
        number = 0
        while True:
            number += 1
            print(f"[{number}]: ", end="", flush=True)
            if not (line := sys.stdin.readline()):
                return
            result = notebook.run(line)
            print(result.printed, end="")
            if result.value:
                print(result.value)


if __name__ == "__main__":
    main()
