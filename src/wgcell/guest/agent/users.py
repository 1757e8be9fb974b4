"""Which user a session asks for, by the root's own /etc/passwd and /etc/group: hostile text.

Names and numbers are docker's: ``name`` or ``uid``, with ``:group`` or ``:gid``. A number that no
line has is as good as any other. Pure; of the files at most `LONGEST_TABLE` bytes are looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

from wgcell.errors import GuestError

__all__ = ["LONGEST_TABLE", "Identity", "resolve"]

LONGEST_TABLE = 1 << 20
"""Bytes of each file that count."""
_MOST_ID = 2**31 - 1
"""As runc has it. 2^32 - 1 would be setuid(2)'s "as it is"."""
_MOST_GROUPS = 1024
"""Groups beside the first; Linux allows 65,536 (setgroups(2))."""
# Fields of a line: passwd(5), group(5). The group's own number stands where the user's does.
_NAME, _NUMBER, _GID, _HOME = 0, 2, 3, 5
_MEMBERS = 3
_PASSWD, _GROUP = (_HOME, (_NUMBER, _GID)), (_MEMBERS, (_NUMBER,))
"""The last field that a line must have, and those that are numbers."""
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose rights a process has; ``home`` is empty where no line names one."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


def resolve(user: str, passwd: bytes, group: bytes) -> Identity:
    """The user asked for. Raises GuestError if there is none of that name."""
    name, colon, of = user.partition(":")
    row, uid = _found(list(_rows(passwd, *_PASSWD)), name)
    if uid is None:
        raise GuestError(f"no user {name!r} in /etc/passwd")
    groups = list(_rows(group, *_GROUP))
    home = "" if row is None else row[_HOME]
    if colon:
        gid = _found(groups, of)[1]
        if gid is None:
            raise GuestError(f"no group {of!r} in /etc/group")
        return Identity(uid, gid, (), home)
    if row is None:
        return Identity(uid, 0, (), home)
    others = [int(one[_NUMBER]) for one in groups if row[_NAME] in one[_MEMBERS].split(",")]
    return Identity(uid, int(row[_GID]), tuple(others[:_MOST_GROUPS]), home)


def _found(rows: list[list[str]], name: str) -> tuple[list[str] | None, int | None]:
    """The first line of that name, or of that number if it is one; and the number."""
    wanted = _number(name)
    for row in rows:
        if row[_NAME] == name or int(row[_NUMBER]) == wanted:
            return row, int(row[_NUMBER])
    return None, wanted


def _rows(table: bytes, last: int, numbers: tuple[int, ...]) -> Iterator[list[str]]:
    """The lines that have all fields, and numbers where numbers belong."""
    for line in table[:LONGEST_TABLE].decode("utf-8", "surrogateescape").split("\n"):
        row = line.split(":")
        if len(row) > last and row[_NAME] and all(_number(row[at]) is not None for at in numbers):
            yield row


def _number(word: str) -> int | None:
    if not word.isascii() or not word.isdigit() or len(word) > 10 or int(word) > _MOST_ID:
        return None
    return int(word)
