"""A cell's events as lines on standard error, for a person.

Each kind of event has a method, and `_PRINTERS` names them. Everything in an event may be a
stranger's, so each part of a line is escaped by `clean`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from enum import IntEnum
from types import MappingProxyType

from rich.status import Status

from wgcell.cell.remark import WEIGHTS, Remark
from wgcell.cell.units import duration_text
from wgcell.cli.terminal import clean, console, warn
from wgcell.gateway.peer.tally import Tally
from wgcell.net.addresses import written

__all__ = ["EventPrinter", "Verbosity", "show"]


class Verbosity(IntEnum):
    """How much a run prints about itself."""

    QUIET = 0
    """``-q``: only an outcome that is an error."""
    NORMAL = 1
    """The beginning, warnings, the outcome."""
    VERBOSE = 2
    """``-v``: each step."""


_WEIGHTS = dict(zip(WEIGHTS, Verbosity, strict=True))


def show(remark: Remark, verbosity: Verbosity) -> None:
    """Print a remark, at that verbosity or not."""
    if verbosity < _WEIGHTS[remark.weight]:
        return
    if remark.warns:
        warn(remark.text)
    else:
        console.print(f"[dim]wgcell:[/] {clean(remark.text)}")


STATES = {
    "preparing": "preparing the cell",
    "consent": "asking the endpoint for consent",
    "booting": "booting the machine",
    "verifying": "verifying the tunnel from outside",
    "running": "tunnel verified, the workload runs",
    "terminating": "the workload is asked to end, and has its grace period",
    "stopping": "bringing the results home",
}

_COLOURS = {"completed": "green", **dict.fromkeys(("cancelled", "timeout", "incomplete"), "yellow")}
_MOST_REFUSALS = 20
"""Lines of refusals at the end."""
_LONGEST_REASON = 1000
"""Characters of the outcome's reason; a guest's fault may have 24,000."""

_Event = Mapping[str, object]


class EventPrinter:
    """Prints a cell's events, a line each; a spinner shows the state between two lines."""

    def __init__(self, verbosity: Verbosity = Verbosity.NORMAL) -> None:
        self._verbosity = verbosity
        self._spinner: Status | None = None
        self._tally = Tally()
        self._folder = ""
        self._missing_outputs = ""
        """Why outputs are missing, if they are."""
        self._not_landed = ""
        """Why outputs did not land, if they did not."""
        if console.is_terminal and verbosity >= Verbosity.NORMAL:
            self._spinner = console.status("preparing the cell")
            self._spinner.start()

    def __call__(self, event: _Event) -> None:
        """Print one event, if this verbosity shows it."""
        if "folder" in event:
            self._folder = str(event["folder"])
        printer = _PRINTERS.get(str(event["event"]))
        if printer is not None:
            printer(self, event)

    def line(self, text: str, verbosity: Verbosity = Verbosity.NORMAL) -> None:
        """Print one line, escaped for rich by the caller, from ``verbosity`` upwards."""
        if verbosity <= self._verbosity:
            console.print(f"[dim]wgcell:[/] {text}")

    def stop(self) -> None:
        """Remove the spinner from the screen."""
        if self._spinner is not None:
            self._spinner.stop()

    def _state(self, event: _Event) -> None:
        words = STATES.get(str(event["state"]))
        if words is None:
            return
        if self._spinner is not None:
            self._spinner.update(words)
            if event["state"] == "running":
                self._spinner.stop()  # the screen is the workload's from here on
        self.line(words, Verbosity.VERBOSE)

    def _gateway(self, event: _Event) -> None:
        self.line(f"the gateway's engine: {clean(event['engine'])}", Verbosity.VERBOSE)
        if event.get("reason"):
            self.line(
                "[yellow]refused connections fail slowly or hang:[/] "
                f"{clean(event['reason'])}; wgcell doctor names the fix",
                Verbosity.VERBOSE,
            )

    def _flow(self, event: _Event) -> None:
        if self._tally.add(event):
            why = event.get("reason") or "no rule allows it"
            target, verdict = clean(self._tally.target(event)), self._tally.fate(event)
            self.line(f"[yellow]{verdict}[/] {target} ({clean(why)})", Verbosity.VERBOSE)

    def _published(self, event: _Event) -> None:
        port = event["port"]
        place = written(str(event["address"]), port if isinstance(port, int) else 0)
        self.line(f"the cell's port {clean(event['inside'])} is at {clean(place)}")

    def _policy_changed(self, event: _Event) -> None:
        rule = clean(event["rule"])
        if event["change"] == "expired":
            self.line(f"the time of [bold]{rule}[/] is over")
            return
        until = event["until"]
        lasts = ""
        if isinstance(until, int | float):
            lasts = f" for {duration_text(max(1, round(until - time.time())))}"
        self.line(f"the rules have changed, by user {clean(event['by'])}: {rule}{lasts}")

    def _walls(self, event: _Event) -> None:
        missing = event["missing"]
        if not (event["seal"] and event["jail"]) and isinstance(missing, dict):
            for wall, why in missing.items():
                self.line(f"[red]not up:[/] {clean(wall)}: {clean(why)}")

    def _frozen(self, event: _Event) -> None:
        self.line("the machine is frozen and waits; [bold]wgcell ps[/] says how to look in")

    def _path_mtu(self, event: _Event) -> None:
        self.line(
            f"the path carries {clean(event['path'])} bytes: the tunnel's MTU is now "
            f"{clean(event['tunnel'])}, and was {clean(event['before'])}",
            Verbosity.VERBOSE,
        )

    def _out_of_memory(self, event: _Event) -> None:
        victim = clean(event["victim"] or "a process")
        self.line(
            "[yellow]the guest's memory was used up:[/] its kernel "
            f"killed {victim}; --memory gives it more"
        )

    def _exited(self, event: _Event) -> None:
        code = clean(event["exit_code"])
        self.line(f"the workload has ended with {code}", Verbosity.VERBOSE)

    def _reader_stopped(self, event: _Event) -> None:
        self.line(
            f"[red]cut off:[/] {clean(event['stream'])} after {clean(event['delivered'])} "
            "bytes: its reader did not read on"
        )

    def _changed(self, event: _Event) -> None:
        self.line(f"[red]the guest's {clean(event.get('what'))} changed[/]")

    def _outputs(self, event: _Event) -> None:
        names = event.get("left_out")
        for left_out in names if isinstance(names, list) else ():
            self.line(f"[yellow]output left out:[/] {clean(left_out)}")
        self._missing_outputs = str(event.get("verdict") or event.get("reason") or "")
        if "files" in event:
            files, size = clean(event["files"]), clean(event["bytes"])
            self.line(f"{files} files home, {size} bytes", Verbosity.VERBOSE)

    def _landed(self, event: _Event) -> None:
        if event["whole"]:
            self.line(clean(event["sentence"]))
        else:
            self._not_landed = str(event["sentence"])

    def _ended(self, event: _Event) -> None:
        self.stop()
        for refusal in self._tally.summary()[:_MOST_REFUSALS]:
            self.line(clean(refusal))
        if learned := self._tally.learned():
            self.line("learned; this would have sufficed:")
            self.line(clean(" ".join(f"--allow {rule}" for rule in learned)))
        outcome = str(event["outcome"])
        if self._missing_outputs and outcome != "incomplete":
            self.line(f"[yellow]{clean(self._missing_outputs)}[/]")
        if self._not_landed and self._not_landed != event["reason"]:
            self.line(f"[yellow]{clean(self._not_landed)}[/]", Verbosity.QUIET)
        colour = _COLOURS.get(outcome, "red")
        has_reason = event["reason"] and outcome != "completed"
        reason = f": {clean(event['reason'], _LONGEST_REASON)}" if has_reason else ""
        code = clean(event["exit_code"])
        self.line(
            f"[{colour}]{clean(outcome)}[/]{reason} (exit code {code}){self._records(outcome)}",
            Verbosity.NORMAL if outcome == "completed" else Verbosity.QUIET,
        )

    def _records(self, outcome: str) -> str:
        """The place of the records, or of the frame that has ended the cell."""
        if outcome == "rogue":
            place = f"{self._folder}/rogue.pcapng" if self._folder else "rogue.pcapng"
            return f"; the frame is in {clean(place)}, which Wireshark opens"
        return f"; records in {clean(self._folder)}" if self._folder else ""


_PRINTERS: Mapping[str, Callable[[EventPrinter, _Event], None]] = MappingProxyType(
    {
        "state": EventPrinter._state,
        "gateway": EventPrinter._gateway,
        **dict.fromkeys(("flow", "flow_end", "flows_omitted"), EventPrinter._flow),
        "published": EventPrinter._published,
        "policy_changed": EventPrinter._policy_changed,
        "walls": EventPrinter._walls,
        "frozen": EventPrinter._frozen,
        "path_mtu": EventPrinter._path_mtu,
        "out_of_memory": EventPrinter._out_of_memory,
        "exited": EventPrinter._exited,
        "reader_stopped": EventPrinter._reader_stopped,
        "changed": EventPrinter._changed,
        "outputs": EventPrinter._outputs,
        "landed": EventPrinter._landed,
        "ended": EventPrinter._ended,
    }
)
"""By the event's name; an event that is missing here has no line."""
