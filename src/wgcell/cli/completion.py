"""The completions of a shell: the names of cells and of images. Never an error, never a message.

Names come from folders' names. Only well-formed names are offered, so nothing in them means
anything to a shell.
"""

from __future__ import annotations

import re
from collections import Counter

from wgcell.errors import WgcellError

__all__ = ["cells", "images", "places"]

_IMAGE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}", re.ASCII)


def cells(incomplete: str) -> list[tuple[str, str]]:
    """Each cell's id that begins so, with its state; and each name that only one cell has."""
    from wgcell.cell.folder import all_cells, state_folders

    try:
        every = all_cells(*state_folders())
    except (WgcellError, OSError):
        return []
    names = Counter(cell.name for cell in every)
    return [
        (word, cell.status())
        for cell in every
        for word in ((cell.name, cell.id) if names[cell.name] == 1 else (cell.id,))
        if word.startswith(incomplete)
    ]


def places(incomplete: str) -> list[tuple[str, str]]:
    """Each cell that runs, with the colon that a path in it stands behind."""
    return [(f"{word}:", status) for word, status in cells(incomplete) if status == "running"]


def images(incomplete: str) -> list[str]:
    """Each image's name that begins so."""
    from wgcell.image import store

    try:
        names = [image.name for image in store.list_images()]
    except (WgcellError, OSError):
        return []
    return [n for n in names if n.startswith(incomplete) and _IMAGE.fullmatch(n)]
