"""Tars, member by member, as a guest may write them: whole, hostile and endless."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from wgcell.cell import archive
from wgcell.cell.archive import Unpacked

MIB = 1 << 20


Change = Callable[[tarfile.TarInfo], None]


def member(name: str, data: bytes = b"", change: Change | None = None) -> tuple[str, bytes, Change]:
    return name, data, change or (lambda info: None)


def typed(kind: bytes, linkname: str = "") -> Change:
    def change(info: tarfile.TarInfo) -> None:
        info.type, info.linkname = kind, linkname

    return change


def tar_of(*members: tuple[str, bytes, Change], style: int = tarfile.GNU_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=style) as tar:
        for name, data, change in members:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o644
            change(info)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def unpack(stream: BinaryIO, destination: Path, *limits: Any, **options: Any) -> Unpacked:
    """`archive.unpack` into a folder, made here if need be."""
    destination.mkdir(exist_ok=True)
    root = os.open(destination, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return archive.unpack(stream, root, *limits, **options)
    finally:
        os.close(root)


HOSTILE = [
    (member("/etc/passwd", b"x"), "absolute"),
    (member("../evil", b"x"), "climbs out"),
    (member("results/../../evil", b"x"), "climbs out"),
    (member("results/hard", change=typed(tarfile.LNKTYPE, "results/absent")), "did not come"),
    (member("results/hard", change=typed(tarfile.LNKTYPE, "results")), "did not come"),
    (member("results/hard", change=typed(tarfile.LNKTYPE, "")), "did not come"),
    (member("results/hard", change=typed(tarfile.LNKTYPE, "../evil")), "climbs out"),
    (member("results/hard", change=typed(tarfile.LNKTYPE, "/etc/passwd")), "absolute"),
    (member("results/a\nb", b"x"), "control characters"),
    (member("results/\x1b[2J", b"x"), "control characters"),
    (member("results/\u009b2J", b"x"), "control characters"),
    (member("results/\udcff", b"x"), "not UTF-8"),
    (member("results/" + "n" * 256, b"x"), "too long"),
    (member("results/" + "d/" * 256 + "x", b"x"), "too deeply"),
    (member("results/ok", b"again"), "overwrite"),
    (member("results/ok/below", b"x"), "a file stands"),
    (member("other", b"x"), "not an output"),
    (member("resultsnot", b"x"), "not an output"),
    (member("a/b/d.txt", b"x"), "not an output"),
    (member("a/b", b"x"), "not an output"),
    (member("", b"x"), "without a name"),
]


WHOLE = tar_of(
    member("results", change=typed(tarfile.DIRTYPE)),
    member("results/a", b"a" * 700),
    member("results/" + "n" * 120, b"x"),
    member("results/empty"),
    member("results/link", change=typed(tarfile.SYMTYPE, "a")),
    member("results/hard", change=typed(tarfile.LNKTYPE, "results/a")),
)


def header(kind: bytes, size: int, name: str = "results/x") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


def pax_records(count: int) -> bytes:
    return b"".join(b"%d %d=x\n" % (len(f"{n}") + 6, n) for n in range(1000, 1000 + count))


def endless(start: bytes, block: bytes, mib: int = 48) -> Iterator[bytes]:
    yield start
    for _ in range(mib):
        yield block * (MIB // len(block))


_MEMBER = header(tarfile.REGTYPE, 0)


_FOLDER = header(tarfile.DIRTYPE, 0)


_LONG_NAME = header(tarfile.GNUTYPE_LONGNAME, 4096) + b"results/".ljust(4096, b"n")


_SPARSE = header(tarfile.GNUTYPE_SPARSE, 1 << 30)


EXTENSIONS: dict[str, tuple[bytes, bytes, str]] = {
    "pax global, large": (header(b"g", 48 * MIB), pax_records(9000), "type b'g'"),
    "pax global, many": (b"", header(b"g", 512) + pax_records(50).ljust(512, b"\0"), "type b'g'"),
    "pax local": (header(b"x", 48 * MIB), pax_records(9000), "type b'x'"),
    "pax of Solaris": (header(b"X", 48 * MIB), pax_records(9000), "type b'X'"),
    "GNU sparse": (_SPARSE, b"7" * 504 + b"\1" * 8, "type b'S'"),
    "GNU sparse 1.0": (header(b"x", 512), b"22 GNU.sparse.major=1\n", "type b'x'"),
    "GNU dump dir": (header(b"D", 48 * MIB), b"Yname\0", "type b'D'"),
    "GNU volume": (b"", header(b"V", 0), "type b'V'"),
    "GNU multi-volume": (header(b"M", 48 * MIB), b"x", "type b'M'"),
    "contiguous": (header(b"7", 48 * MIB), b"x", "type b'7'"),
    "long name, large": (header(b"L", 48 * MIB), b"results/", "a long name"),
    "long link, large": (header(b"K", 48 * MIB), b"results/", "a long name"),
    "long names, many": (b"", _LONG_NAME, "a long name"),
    "folder with data": (header(b"5", 48 * MIB), b"x", "impossible size"),
    "members, many": (b"", _MEMBER, ""),
    "folders, many": (b"", _FOLDER, ""),
    "long members, many": (b"", _LONG_NAME + _MEMBER, ""),
    "unasked, many": (b"", header(tarfile.REGTYPE, 0, "other"), ""),
    "links, many": (b"", header(tarfile.SYMTYPE, 0), ""),
}
