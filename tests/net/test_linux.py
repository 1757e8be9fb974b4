"""Linux's numbers stand once: `wgcell.net.linux` has them, and nobody else under the same name."""

from __future__ import annotations

import ast
import mmap
import socket
from pathlib import Path

import wgcell
from wgcell.net import linux

SOURCE = Path(wgcell.__file__).parent
IN_THE_GUEST = (SOURCE / "guest", SOURCE / "prove/runners/guest.py")
"""They run on another kernel, with few other modules."""


def assigned(file: Path) -> set[str]:
    """The names that a module gives values to, without their underscores."""
    found: set[str] = set()
    for node in ast.parse(file.read_text()).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        for target in targets:
            names = target.elts if isinstance(target, ast.Tuple) else [target]
            found |= {name.id.strip("_") for name in names if isinstance(name, ast.Name)}
    return found


def test_no_other_module_has_one_of_them() -> None:
    own = Path(linux.__file__)
    assert {"CLONE_NEWNET", "UDP_GRO", "MS_RDONLY"} <= assigned(own)  # the control
    again = {
        str(file.relative_to(SOURCE)): known
        for file in SOURCE.rglob("*.py")
        if file != own and not any(file.is_relative_to(place) for place in IN_THE_GUEST)
        if (known := assigned(file) & set(linux.__all__))
    }
    assert not again


def test_those_that_python_has_elsewhere_are_the_same() -> None:
    assert linux.PROT_EXEC == mmap.PROT_EXEC
    assert getattr(socket, "SOL_PACKET", 263) == linux.SOL_PACKET
