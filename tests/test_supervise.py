"""What a supervisor says to its starter: in time for whatever comes behind it.

The whole process is `client/test_supervised.py`'s.
"""

from __future__ import annotations

import os
import threading

from tests.support.waiting import until

from wgcell.cell.start import SAID, Made
from wgcell.supervise import Report

MADE = Made("x-000000", "/cells/x-000000")


def test_what_was_delivered_can_be_read_whatever_becomes_of_the_supervisor_then() -> None:
    """Each time anew, for the thread that says it may be quick."""
    for _ in range(200):
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        report = Report(writing)
        report.deliver(MADE)
        assert os.read(reading, 4096) == SAID.line(MADE)
        report.finish()
        os.close(reading)


def test_a_starter_that_is_gone_holds_nobody_up() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    report = Report(writing)
    said = threading.Thread(target=lambda: [report.deliver(MADE) for _ in range(3)], daemon=True)
    said.start()
    until(lambda: not said.is_alive(), "words that nobody hears", within=4)
    report.finish()
