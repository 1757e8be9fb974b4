"""A report as JSON and as JUnit XML."""

from __future__ import annotations

import json
from collections import Counter
from xml.sax.saxutils import escape, quoteattr

from wgcell.prove.report.content import Report
from wgcell.prove.verdict import Result, Status

__all__ = ["as_json", "as_junit"]


def _row(result: Result) -> dict[str, object]:
    seen = result.observation
    return {
        "case": result.case,
        "group": result.group,
        "does": result.does,
        "wall": result.wall,
        "phase": result.phase.value,
        "expected": result.expected.value,
        "status": result.status.value,
        "why": result.why,
        "evidence": list(seen.leaks),
        "control_seen": seen.control,
        "relay_said": seen.said,
        "frames": seen.frames,
        "seconds": round(seen.seconds, 3),
    }


def as_json(report: Report) -> str:
    """The whole run as one JSON object."""
    return json.dumps(
        {
            "passed": report.passed,
            "mode": report.mode,
            "played": report.description,
            "command": report.command,
            "controls": dict(zip(("seen", "played"), report.controls, strict=True)),
            "oracle": report.oracle,
            "rogue_frames": report.rogue,
            "leaked": report.leaked,
            "bound_95": report.bound,
            "seconds": round(report.seconds, 2),
            "counts": {status.value: report.counts[status] for status in Status},
            "facts": dict(report.facts),
            "not_shown": list(report.not_shown),
            "results": [_row(result) for result in report.results],
        },
        indent=1,
    )


def as_junit(report: Report) -> str:
    """JUnit XML: a leak or a wrong verdict is a failure, a case that is not proven an error."""
    kinds = {
        Status.LEAKED: "failure",
        Status.WRONG: "failure",
        Status.NOT_PROVEN: "error",
        Status.NOT_PLAYED: "skipped",
    }
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', "<testsuites>"]
    for group in dict.fromkeys(result.group for result in report.results):
        mine = [result for result in report.results if result.group == group]
        found = Counter(kinds.get(result.status, "") for result in mine)
        lines.append(
            f'<testsuite name={quoteattr(f"wgcell prove: {group}")} tests="{len(mine)}"'
            f' failures="{found["failure"]}" errors="{found["error"]}" skipped="{found["skipped"]}"'
            f' time="{sum(r.observation.seconds for r in mine):.3f}">'
        )
        for result in mine:
            lines.append(
                f"<testcase classname={quoteattr(f'prove.{group}')}"
                f" name={quoteattr(f'{result.case} [{result.phase.value}]')}"
                f' time="{result.observation.seconds:.3f}">'
            )
            if kind := kinds.get(result.status):
                evidence = escape("\n".join(result.observation.leaks))
                words = quoteattr(f"{result.status.value}: {result.why}")
                lines.append(f"<{kind} message={words}>{evidence}</{kind}>")
            lines.append("</testcase>")
        lines.append("</testsuite>")
    return "\n".join([*lines, "</testsuites>", ""])
