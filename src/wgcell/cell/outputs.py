"""Outputs, from the guest's tar to where the person who asked for them looks.

They are unpacked in the cell's folder first (`wgcell.cell.unpacking`). Those that were asked for
at the terminal then move to the folder they were asked from (`land`), those of a folder in `--sync`
to that folder (`sync`); those that only a job file names stay in the cell's folder. `verdict` says
whether all is there that was asked for.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wgcell.cell import changes
from wgcell.cell.archive import Unpacked
from wgcell.cell.changes import Action, Plan
from wgcell.cell.counts import Counted, shown
from wgcell.cell.globs import Pattern, components
from wgcell.cell.survey import Fingerprint
from wgcell.errors import JobError, StateError

__all__ = ["Landed", "check", "keep", "land", "summary", "sync", "verdict"]

_MOST_NAMED = 10
_Parts = tuple[str, ...]


def verdict(unpacked: Unpacked, asked: Sequence[str]) -> str | None:
    """The missing outputs, in a sentence; None if none is missing. Pure.

    Pipes, devices and links that point out of the outputs have no content that could be missing.
    """
    if unpacked.stopped:
        return f"the outputs did not come whole: {unpacked.stopped}"
    said = []
    if unpacked.missing:
        names = _listed(unpacked.missing)
        if len(unpacked.missing) == 1:
            said.append(f"the output {names} does not exist")
        elif len(unpacked.missing) == len(set(asked)):
            said.append(f"none of the outputs exist: {names}")
        else:
            some = f"{len(unpacked.missing)} of the {len(set(asked))} outputs"
            said.append(f"{some} do not exist: {names}")
    if unpacked.refusals:
        why = "; ".join(map(str, unpacked.refusals))
        were = "was" if unpacked.refused == 1 else "were"
        said.append(f"{_files(unpacked.refused)} of the outputs {were} refused: {why}")
    return "; ".join(said) or None


@dataclass(frozen=True, slots=True)
class Landed:
    """The result of a landing. ``whole`` is False if some outputs stayed in the cell's folder.

    ``sentence`` is for the terminal: it names the path. ``interrupted``: somebody ended the
    landing. Unless it was interrupted, the outputs that landed are on the disk, not only in memory.
    """

    sentence: str
    whole: bool
    files: int = 0
    blocked: tuple[Counted, ...] = ()
    interrupted: bool = False


def keep(cell_outputs: Path) -> Landed:
    """Leave them where they are, but on the disk. Raises `StateError`."""
    try:
        changes.to_disk(cell_outputs)
    except OSError as error:
        raise StateError(f"{cell_outputs}: {error.strerror or error}") from None
    return Landed(f"outputs in {shown(str(cell_outputs))}", True)


def check(folder: Path, names: Sequence[str], force: bool) -> None:
    """Check before the start whether outputs of these ``names`` could land in ``folder``.

    Raises `JobError`. The names that a pattern will find are not known yet: `land` checks again.
    """
    place = folder
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise JobError(f"outputs: {place} is not a folder", hint="choose another: --output-dir DIR")
    if not os.access(place, os.W_OK | os.X_OK, effective_ids=True):
        raise JobError(
            f"outputs: {place} can't be written", hint="choose another folder: --output-dir DIR"
        )
    for name in names:
        pattern = Pattern.parse(name)
        if not pattern.is_glob and pattern.parts:
            _check_one(folder, pattern.parts, force)


def _check_one(folder: Path, parts: _Parts, force: bool) -> None:
    for end in range(1, len(parts) + 1):
        path = folder.joinpath(*parts[:end])
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            return
        except OSError as error:
            raise JobError(f"outputs: {path}: {error.strerror}") from None
        if end < len(parts) or stat.S_ISLNK(mode):
            if not stat.S_ISDIR(mode):
                raise JobError(
                    f"outputs: {path} is a link or a file: nothing is written through it",
                    hint="move it away, or choose another folder: --output-dir DIR",
                )
        elif not force and not (stat.S_ISDIR(mode) and not any(path.iterdir())):
            raise JobError(
                f"outputs: {path} is there already, and would be overwritten",
                hint="--force overwrites it, --output-dir DIR puts the outputs elsewhere",
            )


def land(
    cell_outputs: Path, destination: Path, force: bool, asked: Sequence[str] = (".",)
) -> Landed:
    """Move the unpacked outputs that are ``asked`` for from the cell's folder to ``destination``.

    All of them or, if one file would be overwritten without ``force``, none. Raises `StateError` if
    ``destination`` can't be written.
    """
    patterns = [Pattern.parse(one) for one in asked]

    def wanted(parts: _Parts) -> bool:
        return any(one.covers(parts) for one in patterns)

    try:
        if not cell_outputs.is_dir():
            return Landed("no outputs came", True)
        destination.mkdir(parents=True, exist_ok=True)
        planned = changes.plan(cell_outputs, destination, wanted=wanted, force=force)
        if planned.blocked:
            return Landed(_kept(cell_outputs, planned.blocked), False, 0, planned.blocked)
        done = changes.apply(cell_outputs, destination, planned)
    except OSError as error:
        raise _unwritable(destination, cell_outputs, error) from None
    if done.left:
        return Landed(_kept(cell_outputs, done.left), False, done.files, done.left)
    if not done.files:
        return Landed(_none_moved(cell_outputs, destination, wanted), True)
    landed = [one.parts for one in planned.changes if not one.is_folder]
    hidden = sum(_is_hidden(parts) for parts in landed)
    # A guest may add files that programs of this machine act on: git's hooks, an editor's settings.
    also = f", {hidden} of them hidden," if hidden else ""
    where = _listed(_places(destination, patterns, landed))
    return Landed(f"outputs: {_files(done.files)}{also} in {where}", True, done.files)


def _none_moved(cell_outputs: Path, destination: Path, wanted: Callable[[_Parts], bool]) -> str:
    """Why no file was moved, in a sentence."""
    every = (one for one in cell_outputs.rglob("*") if not one.is_dir())
    if any(wanted(one.relative_to(cell_outputs).parts) for one in every):
        return f"outputs: as they are in {destination} already"
    return "outputs: no file came"


def _places(
    destination: Path, patterns: Sequence[Pattern], landed: Sequence[_Parts]
) -> Sequence[str]:
    """The places of the outputs that ``landed``, each once."""
    places = (
        destination if one.is_glob else destination.joinpath(*one.parts)
        for one in patterns
        if any(one.covers(parts) for parts in landed)
    )
    return list(dict.fromkeys(map(str, places)))


def sync(
    cell_outputs: Path,
    folder: Path,
    force: bool,
    seen: Mapping[str, Fingerprint],
    agree: Callable[[str], bool] | None,
    *,
    kept_here: Callable[[str], bool] = lambda name: False,
    others: Sequence[str] = (),
    whole: bool = True,
) -> Landed:
    """Move the changes back to ``folder``, whose contents went into the guest as ``seen``.

    ``agree`` gets a summary of the changes and returns whether to make them; None means that nobody
    can be asked, and the changes stay in the cell's folder. Paths that a pattern ``kept_here``, and
    ``others`` (inputs of another place, by their names), do not come back. Only if all outputs have
    come (``whole``) is a file that is not among them deleted. Raises `StateError`.
    """

    def wanted(parts: _Parts) -> bool:
        return parts[0] not in others and not kept_here("/".join(parts))

    try:
        if not cell_outputs.is_dir():
            return Landed("nothing came back", False)
        planned = changes.plan(
            *(cell_outputs, folder), wanted=wanted, force=force, seen=seen, deletions=whole
        )
        if not planned.changes and not planned.blocked:
            return Landed(f"nothing has changed in {shown(str(folder))}", True)
        if planned.changes and (agree is None or not agree(summary(planned, folder))):
            return _not_agreed(cell_outputs, len(planned.changes), asked=agree is not None)
        done = changes.apply(cell_outputs, folder, planned)
    except OSError as error:
        raise _unwritable(folder, cell_outputs, error) from None
    blocked = planned.blocked + done.left
    if blocked:
        return Landed(_kept(cell_outputs, blocked), False, done.files, blocked)
    return Landed(f"{_files(done.files)} changed in {shown(str(folder))}", True, done.files)


def _not_agreed(cell_outputs: Path, count: int, *, asked: bool) -> Landed:
    changes_are = "1 change is" if count == 1 else f"{count} changes are"
    left = f"{changes_are} left in {shown(str(cell_outputs))}"
    if asked:
        return Landed(left, True)
    why = "there is no terminal to ask on; --yes brings them back unasked"
    return Landed(f"{left}: {why}", False)


def summary(planned: Plan, folder: Path) -> str:
    """The plan for a person, in some lines: the number and the first names of each kind.

    Names of hidden files come first: programs of this machine act on some of them (git's hooks).
    """
    lines = [f"changes to {shown(str(folder))}:"]
    for action in Action:
        names = planned.files(action)
        if not names:
            continue
        names.sort(key=lambda name: not _is_hidden(components(name)))
        lines.append(f"  {action.value}: {len(names)}")
        lines += [f"    {shown(name)}" for name in names[:_MOST_NAMED]]
        if len(names) > _MOST_NAMED:
            lines.append(f"    … and {len(names) - _MOST_NAMED} more")
    hidden = sum(_is_hidden(one.parts) for one in planned.changes if not one.is_folder)
    if hidden:
        lines.append(f"  {_files(hidden)} hidden: look at them, programs here may act on them")
    lines += [f"  left alone: {one}" for one in planned.blocked]
    return "\n".join(lines)


def _is_hidden(parts: Sequence[str]) -> bool:
    return any(part.startswith(".") for part in parts)


def _kept(cell_outputs: Path, left: Sequence[Counted]) -> str:
    reasons = "; ".join(f"{one.member} {one.reason}" for one in left)
    return f"outputs stay in {shown(str(cell_outputs))}: {reasons}; --force overwrites"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(map(shown, names[:_MOST_NAMED])) + (f" and {more} more" if more > 0 else "")


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def _unwritable(place: Path, cell_outputs: Path, error: OSError) -> StateError:
    return StateError(
        f"can't write {place}: {error.strerror or error}; "
        f"what has not landed is in {shown(str(cell_outputs))}"
    )
