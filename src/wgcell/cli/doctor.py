"""``wgcell doctor``: the faults of this machine, and the command that fixes each."""

from __future__ import annotations

from typing import Annotated

import typer

from wgcell.cli.checks import Finding, examine
from wgcell.cli.terminal import out
from wgcell.display import one_line

__all__ = ["doctor"]


def doctor(
    print_fixes: Annotated[
        bool, typer.Option("--print-fixes", help="Only the fixing commands, one a line.")
    ] = False,
    print_mends: Annotated[
        bool, typer.Option("--print-mends", help="The former name of --print-fixes.", hidden=True)
    ] = False,
) -> None:
    """Say what is missing on this machine, and the command that fixes it, on standard output.

    Exits 0 when a cell can run here, 1 when something needed is missing.
    """
    findings = examine()
    missing = [finding for finding in findings if finding.needed and not finding.ok]
    if print_fixes or print_mends:
        for finding in missing:
            out(one_line(finding.fix))
    else:
        for finding in findings:
            _show(finding)
    if missing:
        raise typer.Exit(1)


def _show(finding: Finding) -> None:
    mark = "ok" if finding.ok else "missing" if finding.needed else "note"
    out(f"{mark:<7} {finding.subject:<20} {one_line(finding.found)}")
    if not finding.ok:
        for line in finding.fix.splitlines():
            out(f"{'':<28} {one_line(line)}")
