"""What a supervisor reports of a cell's beginning, read: bytes in, words and their meaning out.

No I/O. The supervisor is a process of ours, and its words are decoded strictly all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from wgcell.cell.folder import Folder
from wgcell.cell.start import (
    SAID,
    Failed,
    Fault,
    Made,
    Over,
    Said,
    Verified,
    error_of,
)
from wgcell.errors import HostError, LaunchError
from wgcell.wire.lines import LineError

__all__ = ["Beginning"]


class Beginning:
    """One cell's, from the start of its supervisor to the supervisor's last word about it."""

    def __init__(self, remark: Callable[[Said], None] = lambda word: None) -> None:
        """``remark`` is called with each word as it comes, the last one too."""
        self.folder: Folder | None = None
        """The cell's; None: it has none yet."""
        self.end: Over | None = None
        """How the cell has ended, if its tunnel was never verified."""
        self.verified = False
        self._remark = remark
        self._rest = bytearray()
        self._last = False

    def feed(self, data: bytes) -> None:
        """The next bytes of the report; none at its end.

        Raises the supervisor's own error, if that is what it reports. Raises HostError for what is
        no report.
        """
        self._rest += data
        for line in self._lines():
            self._hear(self._word(line))
        if len(self._rest) > SAID.longest:
            raise HostError("the supervisor said a line that is too long")

    def broke_off(self, exit_code: int, output: str) -> HostError:
        """What it means that the report has ended without a last word."""
        how = f"killed by signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"
        if self.folder is not None:
            return HostError(f"{self.folder.id}: its supervisor ended before it said why ({how})")
        return LaunchError(f"the supervisor did not start ({how})", output=output)

    @property
    def is_over(self) -> bool:
        """Whether the last word was said."""
        return self._last

    def _lines(self) -> Iterator[bytes]:
        while (at := self._rest.find(b"\n")) >= 0:
            line = bytes(self._rest[: at + 1])
            del self._rest[: at + 1]
            yield line

    @staticmethod
    def _word(line: bytes) -> Said:
        try:
            return SAID.word(line)
        except LineError as error:
            raise HostError(f"the supervisor said what it may not: {error}") from None

    def _hear(self, word: Said) -> None:
        if self._last:
            raise HostError("the supervisor went on after its last word")
        self._remark(word)
        match word:
            case Made():
                self.folder = Folder(Path(word.folder))
            case Verified():
                self._last = self.verified = True
            case Over():
                self._last, self.end = True, word
            case Failed():
                self._last = True
                raise error_of(word)
            case Fault():
                self._last = True
                raise HostError(
                    f"this is a fault of wgcell's own: {word.text}",
                    f"it is kept in {word.place}" if word.place else "it could not be kept",
                    hint="please report it with that file" if word.place else "",
                )
