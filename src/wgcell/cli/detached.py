"""``wgcell run --detach``: another process supervises the cell, and this one only sees it begin."""

from __future__ import annotations

import json
from contextlib import closing, suppress

from wgcell.cell.remark import Remark
from wgcell.cell.start import Happened, Said, Start
from wgcell.cell.states import EXIT_CODES, Outcome
from wgcell.cli.progress import EventPrinter, Verbosity, show
from wgcell.cli.terminal import out
from wgcell.client.beginning import Beginning
from wgcell.client.supervised import Supervised
from wgcell.errors import WgcellError

__all__ = ["detached"]


def detached(start: Start, verbosity: Verbosity) -> int:
    """Start a cell, and print its id once its tunnel is verified; the exit code.

    Raises what the foreground would raise. Ctrl-C until then ends the cell.
    """
    printer = EventPrinter(verbosity)

    def heard(word: Said) -> None:
        match word:
            case Remark():
                show(word, verbosity)
            case Happened():
                with suppress(ValueError):
                    printer(json.loads(word.line))

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
            printer.stop()
        if beginning.end is not None:
            return beginning.end.exit_code
        supervised.keep()
    folder = beginning.folder
    if folder is None or not beginning.verified:
        return EXIT_CODES[Outcome.ERROR]
    out(folder.id)
    return 0
