"""A cell's decisions, without I/O: typed events in, typed actions out, time as an argument.

::

    events.py --> core.py: Core.handle(event, now) --> actions.py
                    |  ``states.step`` says what each cause means
                    +- home.py: when the results are complete, late or lost

The supervisor turns whatever it hears into an event, and executes the actions in order. Nothing
here opens a file, a socket or a clock, so a whole life of a cell is a script of a few lines in
``tests/cell/core/test_core.py``.
"""

from wgcell.cell.core.core import Core
from wgcell.cell.core.terms import Terms

__all__ = ["Core", "Terms"]
