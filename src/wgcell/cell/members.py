"""The members of a guest's tar: which may be written where, and where a link may point. No I/O.

The unpacking (`wgcell.cell.archive`) applies these rules to the tar, and `wgcell.cell.inspection`
applies them to the files that the unpacking wrote.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence
from enum import StrEnum

from wgcell.cell.globs import Pattern, components
from wgcell.cell.tarstream import LONGEST_NAME

__all__ = ["MemberLeftOut", "MemberNotWritten", "MemberRefused", "MemberRules", "Reason", "vetted"]

_LONGEST_COMPONENT = 255
_DEEPEST = 256
"""Folders within each other; the unpacking holds a descriptor for each of the current path's."""


class Reason(StrEnum):
    """Why a member was not written: all reasons that there are."""

    OVER_LIMIT = "it goes over the limit of bytes"
    NO_NAME = "a file without a name"
    UNASKED = "not an output that was asked for"
    OVERWRITES = "it would overwrite another member"
    NO_FOLDER = "a file stands where its folder should be"
    NO_SOURCE = "a hard link to a file that did not come"
    ABSOLUTE = "an absolute path"
    ODD = "its name holds control characters, or is not UTF-8"
    CLIMBS = "its path climbs out with .."
    TOO_LONG = "its name is too long"
    TOO_DEEP = "its folders are nested too deeply"
    FILE_SYSTEM = "this machine's file system does not take its name"
    # Members without content:
    POINTS_OUT = "a link that points out of the outputs"
    CHARACTER_DEVICE = "a character device"
    BLOCK_DEVICE = "a block device"
    PIPE = "a named pipe"


_WITHOUT_CONTENT = {
    tarfile.CHRTYPE: Reason.CHARACTER_DEVICE,
    tarfile.BLKTYPE: Reason.BLOCK_DEVICE,
    tarfile.FIFOTYPE: Reason.PIPE,
}


class MemberNotWritten(Exception):
    """A member that is skipped, and counted under its reason."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


class MemberRefused(MemberNotWritten):
    """A member with content."""


class MemberLeftOut(MemberNotWritten):
    """A member without content of its own."""


class _Asked:
    """The outputs that were asked for.

    The cost of a look-up grows with the number of wildcard patterns alone.
    """

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        self._patterns = patterns
        self._globs = [one for one in patterns if one.is_glob]
        self._spelled = {one.parts: one for one in patterns if not one.is_glob}
        self._above = {parts[:end] for parts in self._spelled for end in range(len(parts))}
        self._longest = max(map(len, self._spelled), default=0)
        self._arrived: set[Pattern] = set()

    def covering(self, parts: tuple[str, ...]) -> Iterator[Pattern]:
        """Each pattern that names ``parts``, or a folder above."""
        for end in range(min(len(parts), self._longest) + 1):
            if (one := self._spelled.get(parts[:end])) is not None:
                yield one
        for one in self._globs:
            if one.covers(parts):
                yield one

    def covers(self, parts: tuple[str, ...]) -> bool:
        """Whether a pattern names ``parts``, or a folder above."""
        return next(self.covering(parts), None) is not None

    def passes_through(self, parts: tuple[str, ...]) -> bool:
        """Whether ``parts`` is a folder above an output."""
        return parts in self._above or any(one.passes_through(parts) for one in self._globs)

    def arrived(self, parts: tuple[str, ...]) -> None:
        """A member arrived at ``parts``: the patterns that cover it are not missing."""
        self._arrived.update(self.covering(parts))

    def missing(self) -> Iterator[str]:
        """The patterns that no member has met, as `Pattern` writes them."""
        return (str(one) for one in self._patterns if one not in self._arrived)


class MemberRules:
    """The places where a member may be written, and to which a link may point: the ``patterns``."""

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        self.asked = _Asked(patterns)

    def judge(self, header: tarfile.TarInfo) -> tuple[str, ...]:
        """The components of a member that may be written, by its header alone.

        The header's name becomes the path that they make. Raises `MemberRefused`, `MemberLeftOut`.
        """
        parts = vetted(header.name)
        header.name = "/".join(parts)
        self.admit(parts, is_folder=header.isdir())
        if (kind := _WITHOUT_CONTENT.get(header.type)) is not None:
            raise MemberLeftOut(kind)
        if header.issym() and (points_out := self.link_refused(parts, header.linkname)):
            raise MemberLeftOut(points_out)
        return parts

    def admit(self, parts: tuple[str, ...], *, is_folder: bool) -> None:
        """Return if a member may be at ``parts``. Raises `MemberRefused` otherwise."""
        if not parts and not is_folder:
            raise MemberRefused(Reason.NO_NAME)
        if not (self.asked.covers(parts) or (is_folder and self.asked.passes_through(parts))):
            raise MemberRefused(Reason.UNASKED)

    def link_refused(self, parts: tuple[str, ...], target: str) -> Reason | None:
        """Why a symbolic link at ``parts`` may not point to ``target``; None if it may.

        A link that may be written points to an output, whatever other links are on its way. ``..``
        may only come first, where it climbs real folders: those above the link. Behind a name it
        would climb out of the target of a link with that name.
        """
        if not target or target.startswith("/") or _is_odd(target):
            return Reason.POINTS_OUT
        steps = components(target)
        up = 0
        while up < len(steps) and steps[up] == "..":
            up += 1
        if ".." in steps[up:] or up > len(parts) - 1 or len(target) > LONGEST_NAME:
            return Reason.POINTS_OUT
        there = parts[: len(parts) - 1 - up] + steps[up:]
        return None if self.asked.covers(there) else Reason.POINTS_OUT


def _is_odd(name: str) -> bool:
    return not name.isprintable() and any(
        ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or 0xD800 <= ord(c) < 0xE000 for c in name
    )


def vetted(name: str) -> tuple[str, ...]:
    """A member's components, if they may be a path on this machine. Raises `MemberRefused`."""
    if name.startswith("/"):
        raise MemberRefused(Reason.ABSOLUTE)
    if _is_odd(name):
        raise MemberRefused(Reason.ODD)
    parts = components(name)
    if ".." in parts:
        raise MemberRefused(Reason.CLIMBS)
    lengths = [len(part) if part.isascii() else len(os.fsencode(part)) for part in parts]
    if sum(lengths) + len(lengths) > LONGEST_NAME or max(lengths, default=0) > _LONGEST_COMPONENT:
        raise MemberRefused(Reason.TOO_LONG)
    if len(parts) > _DEEPEST:
        raise MemberRefused(Reason.TOO_DEEP)
    return parts
