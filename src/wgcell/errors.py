"""One tree of exceptions: what a caller may catch, and what each carries.

::

    WgcellError              every error wgcell raises on purpose
    ├── InputError           what the user gave is wrong: names the file, the line or key, the hint
    │   ├── JobError         a job file or the command line
    │   ├── VpnConfigError   a wg-quick file
    │   ├── EndpointError    an endpoint that may not be used, or does not resolve
    │   │   └── ConsentError    it did not answer a handshake with the job's key
    │   ├── PolicyError      an allow rule, a service or a gateway file
    │   └── InputFileError   an input that is missing, a device, or points out of its folder
    ├── HostError            this machine lacks something, or failed: names the hint
    │   ├── ImageError       an image that is missing, corrupt or could not be built
    │   ├── StateError       the state folder is full, read-only or not a cell's
    │   └── LaunchError      QEMU, the relay or the gateway did not start: argv, exit code, output
    ├── GuestError           the guest broke the protocol or sent something hostile
    │   └── ArchiveError     a tar from the guest that may not be unpacked
    └── CellError            one cell, for the program that asked: names its id and folder
        ├── NeverRan         nothing of its workload has run: it is safe to try again
        │   └── Unverified   no consent, or no verified tunnel
        ├── OutcomeUnknown   its supervisor has died: what ran may have had its effect
        ├── Ended            it ended before its workload did: names the outcome
        │   ├── Rogue        a frame outside the tunnel
        │   └── TimedOut     its time was up; or the time of a command in it
        └── CommandFailed    a command exited with another code than 0
            └── Refused      and the gateway had refused it something: names what would allow it

Every message is one a user can act on: what was wrong, where, what to do.
"""

from __future__ import annotations

from collections.abc import Sequence

from wgcell.display import one_line, paragraph

__all__ = [
    "ArchiveError",
    "CellError",
    "CommandFailed",
    "ConsentError",
    "Ended",
    "EndpointError",
    "GuestError",
    "HostError",
    "ImageError",
    "InputError",
    "InputFileError",
    "JobError",
    "LaunchError",
    "NeverRan",
    "OutcomeUnknown",
    "PolicyError",
    "Refused",
    "Rogue",
    "StateError",
    "TimedOut",
    "Unverified",
    "VpnConfigError",
    "WgcellError",
]


class WgcellError(Exception):
    """Every error that wgcell raises on purpose.

    ``lines`` name the error, most often in one line. ``hint`` is the remedy, a sentence or a
    command; may be empty. Both quote strangers, and go to terminals, logs and records: each line is
    made one line, whatever it quotes.
    """

    def __init__(self, *lines: str, hint: str = "") -> None:
        super().__init__(*lines)
        self.message = "\n".join(map(one_line, lines))
        self.hint = one_line(hint)

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class InputError(WgcellError):
    """An error in what the user gave."""


class JobError(InputError):
    """A job file or the command line is malformed or asks for the impossible."""


class VpnConfigError(InputError):
    """A wg-quick file that can't be used as it is."""


class EndpointError(InputError):
    """An endpoint that may not be used, or does not resolve."""


class ConsentError(EndpointError):
    """The endpoint did not answer a handshake with the job's key: no consent, no boot."""


class PolicyError(InputError):
    """An allow rule, a service or a gateway file is malformed."""


class InputFileError(InputError):
    """An input that is missing, is a device, or points out of its folder."""


class HostError(WgcellError):
    """This machine lacks something, or something on it failed."""


class ImageError(HostError):
    """An image is missing, corrupt, or could not be built."""


class StateError(HostError):
    """The state folder is full, read-only, or does not hold that cell."""


class LaunchError(HostError):
    """A child process did not start, or died at once. Keeps the evidence."""

    def __init__(
        self,
        message: str,
        *,
        argv: Sequence[str] = (),
        exit_code: int | None = None,
        output: str = "",
        hint: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.argv = tuple(argv)
        self.exit_code = exit_code
        self.output = paragraph(output)

    def __str__(self) -> str:
        lines = [self.message]
        if self.exit_code is not None:
            lines[0] += f" (exit code {self.exit_code})"
        if self.output:
            lines += [f"  {line}" for line in self.output.strip().splitlines()[-5:]]
        if self.hint:
            lines.append(f"  {self.hint}")
        return "\n".join(lines)


class GuestError(WgcellError):
    """The guest broke the protocol, or sent something hostile."""


class ArchiveError(GuestError):
    """A tar from the guest that may not be unpacked."""


class CellError(WgcellError):
    """The end of one cell, for the program that asked for it."""

    def __init__(self, *lines: str, cell: str, folder: str, hint: str = "") -> None:
        super().__init__(*lines, hint=hint)
        self.cell = cell
        """Its id."""
        self.folder = folder
        """The path of its records; they may have been deleted since."""


class NeverRan(CellError):
    """Nothing of its workload has run: it is safe to try again."""


class Unverified(NeverRan):
    """Its endpoint did not consent, or its tunnel was not verified."""


class OutcomeUnknown(CellError):
    """Its supervisor has died: what ran may have had its effect."""


class Ended(CellError):
    """It ended before its workload did."""

    def __init__(
        self,
        *lines: str,
        cell: str,
        folder: str,
        outcome: str,
        exit_code: int,
        hint: str = "",
    ) -> None:
        super().__init__(*lines, cell=cell, folder=folder, hint=hint)
        self.outcome = outcome
        """As in ``result.json``: ``tunnel_lost``, ``cancelled`` ..."""
        self.exit_code = exit_code
        """The one that ``wgcell run`` would have."""


class Rogue(Ended):
    """A frame outside the tunnel: the machine was terminated. The frame is in ``rogue.pcapng``."""


class TimedOut(Ended):
    """Its time was up; or the time of a command in it, which alone was ended then."""


class CommandFailed(CellError):
    """A command exited with another code than 0."""

    def __init__(
        self,
        *lines: str,
        cell: str,
        folder: str,
        exit_code: int,
        stdout: bytes = b"",
        stderr: bytes = b"",
        hint: str = "",
    ) -> None:
        super().__init__(*lines, cell=cell, folder=folder, hint=hint)
        self.exit_code = exit_code
        self.stdout = stdout
        self.stderr = stderr


class Refused(CommandFailed):
    """A command failed, and meanwhile the gateway had refused the cell something.

    ``rule`` would allow it (`Cell.allow`); ``what`` is what was refused. The first of several.
    """

    def __init__(
        self,
        *lines: str,
        cell: str,
        folder: str,
        exit_code: int,
        rule: str,
        what: str,
        stdout: bytes = b"",
        stderr: bytes = b"",
    ) -> None:
        super().__init__(
            *lines,
            cell=cell,
            folder=folder,
            exit_code=exit_code,
            stdout=stdout,
            stderr=stderr,
            hint=f"to allow it: {rule}" if rule else "",
        )
        self.rule = rule
        self.what = what
