"""A cell's decisions, without I/O: typed events in, typed actions out, time as an argument.

::

    events.py --> core.py: Core.handle(event, now) --> actions.py
                    |  ``states.step`` says what each cause means
                    +- results.py: when the results are complete, late or lost

The supervisor makes an event of everything that it hears, and executes the actions in order. The
core opens no file, no socket and no clock, so a whole life of a cell is a script of a few lines in
``tests/cell/core/test_core.py``.
"""

from wgcell.cell.core.core import Core
from wgcell.cell.core.terms import Terms

__all__ = ["Core", "Terms"]
