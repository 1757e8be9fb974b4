"""``wgcell run --detach``: another process supervises the cell, and this one only sees it begin."""

from __future__ import annotations

import json
from contextlib import closing, suppress

from wgcell.cell.start import Happened, Remark, Said, Start
from wgcell.cell.states import EXIT_CODES, Outcome
from wgcell.cli.terminal import Narrator, Words, clean, console, out, warn
from wgcell.client.beginning import Beginning
from wgcell.client.process import Supervised
from wgcell.errors import WgcellError

__all__ = ["detached", "show"]

_WEIGHTS = {"always": Words.ERRORS, "few": Words.FEW, "all": Words.ALL}


def show(remark: Remark, words: Words) -> None:
    """Say a remark, if so many ``words`` are wanted."""
    if words < _WEIGHTS[remark.weight]:
        return
    if remark.warns:
        warn(remark.text)
    else:
        console.print(f"[dim]wgcell:[/] {clean(remark.text)}")


def detached(start: Start, words: Words) -> int:
    """Start a cell, and print its id once its tunnel is verified; the exit code.

    Raises what the foreground would raise. Ctrl-C until then ends the cell.
    """
    narrator = Narrator(words)

    def heard(word: Said) -> None:
        match word:
            case Remark():
                show(word, words)
            case Happened():
                with suppress(ValueError):
                    narrator(json.loads(word.line))

    beginning = Beginning(heard)
    with closing(Supervised.start(start)) as supervised:
        try:
            supervised.follow(beginning)
        except KeyboardInterrupt:
            supervised.let_go()
            with suppress(WgcellError):
                supervised.follow(beginning)
            if beginning.end is None:
                raise
        finally:
            narrator.stop()
        if beginning.end is not None:
            return beginning.end.exit_code
        supervised.keep()
    folder = beginning.folder
    if folder is None or not beginning.verified:
        return EXIT_CODES[Outcome.ERROR]
    out(folder.id)
    return 0
