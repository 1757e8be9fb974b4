"""Kernel modules: which ones a set needs, and the files as the image has them. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["dependencies_text", "module_name", "modules_needed", "without_signature"]

# A module's signature: its bytes, 12 bytes of information whose last 4 are its length, this text.
_SIGNED = b"~Module signature appended~\n"
_SIGNATURE_INFORMATION = 12


def module_name(path: str) -> str:
    """The name by which the kernel knows the module at ``path``."""
    return Path(path).name.partition(".ko")[0].replace("-", "_")


def modules_needed(dependencies: str, wanted: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The modules to load for ``wanted``, by the text of ``modules.dep``.

    Maps each module's path to all paths that it needs, in depmod's order. A name that is missing
    in the text is built into the kernel, and needs nothing.
    """
    needs: dict[str, tuple[str, ...]] = {}
    path_of: dict[str, str] = {}
    for line in dependencies.splitlines():
        path, _, rest = line.partition(":")
        needs[path] = tuple(rest.split())
        path_of[module_name(path)] = path
    found = [path_of[name] for name in wanted if name in path_of]
    return {path: needs[path] for first in found for path in (first, *needs[first])}


def dependencies_text(needs: Mapping[str, Sequence[str]]) -> str:
    """A ``modules.dep`` for modules that all lie in one folder."""
    lines = (
        " ".join([f"{Path(path).name}:", *(Path(need).name for need in of)])
        for path, of in needs.items()
    )
    return "".join(f"{line}\n" for line in lines)


def without_signature(module: bytes) -> bytes:
    """A kernel module without its signature (Linux, include/linux/module_signature.h).

    An emulated guest spends a third of a module's loading time on the signature. The host checks
    the whole image against its manifest, and Debian's kernel loads unsigned modules too.
    """
    if not module.endswith(_SIGNED):
        return module
    length = int.from_bytes(module[-len(_SIGNED) - 4 : -len(_SIGNED)], "big")
    return module[: -len(_SIGNED) - _SIGNATURE_INFORMATION - length]
