"""A run as JSON, JUnit XML and one self-contained HTML page. Pure: text in, text out.

Every word that comes from outside (a relay's reason, a captured byte, a host's name) is escaped
where it is put in.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from xml.sax.saxutils import escape as xml_escape
from xml.sax.saxutils import quoteattr

from wgcell.prove.verdict import Phase, Result, Status, Verdict, passes

__all__ = ["Run", "as_html", "as_json", "as_junit"]


@dataclass(frozen=True, slots=True)
class Run:
    """Everything a report says. ``facts`` are name and value, in the order to be shown.

    ``not_shown`` are sentences of what this run can't show. ``played`` is a sentence on what was
    run; ``command`` is what to type to run it again.
    """

    mode: str
    sees: str
    seconds: float
    facts: tuple[tuple[str, str], ...]
    results: tuple[Result, ...]
    not_shown: tuple[str, ...]
    played: str = ""
    command: str = ""

    @property
    def passed(self) -> bool:
        """Whether nothing leaked, every verdict was right and every control was seen."""
        return passes(self.results)

    @property
    def counts(self) -> Counter[Status]:
        """How many results of each status."""
        return Counter(result.status for result in self.results)

    @property
    def rogue(self) -> int:
        """N: how many frames were played that must not leave, and were looked for outside."""
        return sum(
            result.observation.frames
            for result in self.results
            if result.expected is not Verdict.PASS and result.status in (Status.HELD, Status.LEAKED)
        )

    @property
    def leaked(self) -> int:
        """How many packets left, or reached the guest, that should not have."""
        return sum(len(result.observation.leaks) for result in self.results)

    @property
    def controls(self) -> tuple[int, int]:
        """How many controls were seen with the wall down, and how many were played."""
        played = [r.observation.control for r in self.results if r.observation.control is not None]
        return sum(played), len(played)

    @property
    def controls_in_words(self) -> str:
        """One sentence."""
        seen, of = self.controls
        return f"With the wall down, {seen} of {of} controls were seen by the same captures."

    @property
    def bound_in_words(self) -> str:
        """What 3/N means here; empty where something leaked, or nothing was played."""
        if self.leaked or not self.rogue:
            return ""
        return (
            f"The bound is the rule of three: none of {self.rogue} frames leaked, so with 95 % "
            f"confidence less than 3/{self.rogue}, one in {max(self.rogue // 3, 1)}, of frames "
            "drawn like these would."
        )

    @property
    def bound(self) -> float:
        """With no leak in N frames, 95 % confidence that fewer than this share leak (3/N)."""
        return 3 / self.rogue if self.rogue else 1.0

    @property
    def headline(self) -> str:
        """One sentence."""
        if self.leaked:
            return f"packets leaked: {self.leaked}, of {self.rogue} rogue frames played"
        bound = f"95 % bound {self.bound:.2g}" if self.rogue else "nothing was played"
        return f"leaked 0 of {self.rogue} rogue frames ({bound})"


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


def as_json(run: Run) -> str:
    """The whole run as one JSON object."""
    return json.dumps(
        {
            "passed": run.passed,
            "mode": run.mode,
            "played": run.played,
            "command": run.command,
            "controls": dict(zip(("seen", "played"), run.controls, strict=True)),
            "oracle": run.sees,
            "rogue_frames": run.rogue,
            "leaked": run.leaked,
            "bound_95": run.bound,
            "seconds": round(run.seconds, 2),
            "counts": {status.value: run.counts[status] for status in Status},
            "facts": dict(run.facts),
            "not_shown": list(run.not_shown),
            "results": [_row(result) for result in run.results],
        },
        indent=1,
    )


def as_junit(run: Run) -> str:
    """JUnit XML: a leak or a wrong verdict is a failure, what is not proven an error."""
    kinds = {
        Status.LEAKED: "failure",
        Status.WRONG: "failure",
        Status.NOT_PROVEN: "error",
        Status.NOT_PLAYED: "skipped",
    }
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', "<testsuites>"]
    for group in dict.fromkeys(result.group for result in run.results):
        mine = [result for result in run.results if result.group == group]
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
                evidence = xml_escape("\n".join(result.observation.leaks))
                words = quoteattr(f"{result.status.value}: {result.why}")
                lines.append(f"<{kind} message={words}>{evidence}</{kind}>")
            lines.append("</testcase>")
        lines.append("</testsuite>")
    return "\n".join([*lines, "</testsuites>", ""])


# The page.

ABOUT = (
    "wgcell runs code you don't trust in a virtual machine whose network card ends in one "
    "connected UDP socket, so that only valid WireGuard messages to one endpoint can leave it. "
    "This page shows what became of frames, packets and guests that try another way."
)
_CLASS = {
    Status.HELD: "held",
    Status.LEAKED: "leaked",
    Status.WRONG: "wrong",
    Status.NOT_PROVEN: "unproven",
    Status.NOT_PLAYED: "unplayed",
}
_SIGN = {
    Status.HELD: "✓",
    Status.LEAKED: "✗",
    Status.WRONG: "!",
    Status.NOT_PROVEN: "?",
    Status.NOT_PLAYED: "-",
}
_STYLE = """
:root{color-scheme:light dark;--bg:#f7f7f5;--card:#fff;--ink:#1c1e21;--soft:#63686e;--line:#e3e3de;
--held:#1a7f4b;--leaked:#c22f2f;--wrong:#b45309;--unproven:#8a6d00;--unplayed:#7b8087;--tint:#eef6f1}
@media(prefers-color-scheme:dark){:root{--bg:#15171a;--card:#1d2024;--ink:#e8e9ea;--soft:#9aa0a6;
--line:#31353a;--held:#4cc38a;--leaked:#ff6b6b;--wrong:#f2a65a;--unproven:#e2c044;--unplayed:#8b9096;
--tint:#1b2b23}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1180px;margin:0 auto;padding:32px 24px 64px}
h1{font-size:30px;line-height:1.2;margin:0 0 6px;letter-spacing:-.02em}
h2{font-size:18px;margin:36px 0 10px}
p{margin:0 0 10px}.soft{color:var(--soft)}
.card{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:20px 24px}
.verdict{border-left:6px solid var(--held)}.verdict.bad{border-left-color:var(--leaked)}
.numbers{display:flex;flex-wrap:wrap;gap:12px 36px;margin-top:16px}
.numbers div{min-width:84px}.numbers b{display:block;font-size:26px;line-height:1.1;
font-variant-numeric:tabular-nums}.numbers span{color:var(--soft);font-size:13px}
dl{display:grid;grid-template-columns:max-content 1fr;gap:4px 20px;margin:0}dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere}
table{width:100%;border-collapse:collapse;font-variant-numeric:tabular-nums}
th{text-align:left;font-weight:600;font-size:12px;color:var(--soft);padding:6px 10px;
border-bottom:1px solid var(--line)}
td{padding:7px 10px;border-bottom:1px solid var(--line);vertical-align:top}
tr:last-child td{border:0}
code{font:12.5px ui-monospace,SFMono-Regular,Menlo,monospace;overflow-wrap:anywhere}
.case{font-weight:600}.does{color:var(--soft);display:block;font-size:13.5px}
.held{color:var(--held)}.leaked{color:var(--leaked)}.wrong{color:var(--wrong)}
.unproven{color:var(--unproven)}.unplayed{color:var(--unplayed)}
.sign{font-weight:700;white-space:nowrap}.bar{display:flex;height:8px;border-radius:4px;overflow:hidden;
background:var(--line);margin-top:18px}.bar i{display:block;background:var(--held)}
.bar i.leaked{background:var(--leaked)}.bar i.wrong{background:var(--wrong)}
.bar i.unproven{background:var(--unproven)}.bar i.unplayed{background:var(--unplayed)}
details{margin:10px 0}summary{cursor:pointer;padding:12px 16px;font-weight:600;list-style:none;
display:flex;justify-content:space-between;gap:12px}summary::-webkit-details-marker{display:none}
summary::after{content:"+";color:var(--soft)}details[open] summary::after{content:"-"}
details.card{padding:0}details .inner{padding:0 8px 8px;border-top:1px solid var(--line)}
.grid td,.grid th{text-align:center}.grid td:first-child,.grid th:first-child{text-align:left}
.grid .wall td{text-align:left;font-weight:600;padding-top:16px;border-bottom-color:var(--soft)}
summary span:last-of-type{margin-left:auto}
ul{padding-left:20px;margin:0}li{margin:4px 0}
@media(max-width:720px){main{padding:20px 14px 48px}h1{font-size:24px}.card{padding:16px}
dl{grid-template-columns:1fr;gap:0}dt{margin-top:8px;font-size:13px}
.cases thead{display:none}.cases tr{display:block;border-bottom:1px solid var(--line);padding:8px 0}
.cases tr:last-child{border:0}.cases td{display:block;border:0;padding:2px 8px}
.cases td[data-is]::before{content:attr(data-is) ": ";color:var(--soft);font-size:12px}
.grid{font-size:13px}.grid td{padding:5px 3px}.grid th{padding:4px 0;vertical-align:bottom}
.grid th span{writing-mode:vertical-rl;transform:rotate(180deg);font-size:11px;white-space:nowrap}}
@media print{details .inner{display:block}}
"""


def _case(result: Result) -> str:
    seen = result.observation
    kind = _CLASS[result.status]
    control = {True: "seen", False: "not seen", None: "the probe itself"}[seen.control]
    if result.status is Status.NOT_PLAYED:
        control = "-"
    evidence = "".join(f"<br><code>{escape(line)}</code>" for line in seen.leaks[:4])
    why = "" if result.status is Status.HELD else f"<br>{escape(result.why)}"
    return (
        f'<tr><td><span class="case">{escape(result.case)}</span>'
        f'<span class="does">{escape(result.does)}</span></td>'
        f'<td data-is="wall">{escape(result.wall)}</td>'
        f'<td data-is="phase">{escape(result.phase.value)}</td>'
        f'<td data-is="due">{result.expected.value}</td>'
        f'<td class="{kind}"><span class="sign">{_SIGN[result.status]} {result.status.value}</span>'
        f"{why}{evidence}</td>"
        f'<td data-is="control">{control}</td>'
        f'<td data-is="the relay said"><code>{escape(seen.said) or "-"}</code></td></tr>'
    )


def _group(name: str, results: Sequence[Result]) -> str:
    bad = [result for result in results if result.status is not Status.HELD]
    worst = _CLASS[bad[0].status] if bad else "held"
    words = f"{len(results) - len(bad)} of {len(results)} held"
    heads = "".join(
        f"<th>{head}</th>"
        for head in (
            "case",
            "wall",
            "phase",
            "due",
            "the capture says",
            "control",
            "the relay said",
        )
    )
    return (
        f'<details class="card"{" open" if bad else ""}><summary><span>{escape(name)}</span>'
        f'<span class="{worst}">{words}</span></summary><div class="inner"><table class="cases">'
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(map(_case, results))}</tbody></table>"
        "</div></details>"
    )


def _matrix(results: Sequence[Result]) -> str:
    """Walls, and groups within each, down; phases across: how many held of how many."""
    phases = [phase for phase in Phase if any(result.phase is phase for result in results)]
    heads = "".join(f"<th><span>{escape(phase.value)}</span></th>" for phase in phases)
    rows = []
    for wall in dict.fromkeys(result.wall for result in results):
        rows.append(f'<tr class="wall"><td colspan="{len(phases) + 1}">{escape(wall)}</td></tr>')
        behind = [result for result in results if result.wall == wall]
        for group in dict.fromkeys(result.group for result in behind):
            mine = [result for result in behind if result.group == group]
            cells = "".join(_cell([r for r in mine if r.phase is phase]) for phase in phases)
            rows.append(f"<tr><td>{escape(group)}</td>{cells}</tr>")
    return (
        f'<table class="grid"><thead><tr><th></th>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _cell(here: Sequence[Result]) -> str:
    if not here:
        return '<td class="soft">·</td>'
    held = sum(result.status is Status.HELD for result in here)
    worst = next((r.status for r in here if r.status is not Status.HELD), Status.HELD)
    return f'<td class="{_CLASS[worst]}">{held}/{len(here)}</td>'


def _made_by(run: Run) -> str:
    """Which wgcell, and which image: what a reader needs to get the same."""
    named = dict(run.facts)
    parts = [f"{key} {named[key]}" for key in ("wgcell", "commit", "image", "when") if key in named]
    return "; ".join(parts)


def as_html(run: Run) -> str:
    """One page, nothing loaded from anywhere."""
    good = run.passed
    total = max(len(run.results), 1)
    bar = "".join(
        f'<i class="{_CLASS[status]}" style="width:{100 * run.counts[status] / total:.3f}%"></i>'
        for status in Status
        if run.counts[status]
    )
    numbers = [
        (str(run.rogue), "rogue frames played"),
        (str(run.leaked), "packets leaked"),
        *([] if run.leaked else [(f"{run.bound:.2g}", "95 % bound (3/N)")]),
        (f"{run.controls[0]} of {run.controls[1]}", "controls seen"),
        *(
            (str(run.counts[status]), f"cases {status.value}")
            for status in Status
            if run.counts[status]
        ),
        (f"{run.seconds:.0f} s", "taken"),
    ]
    shown = "".join(
        f"<div><b>{escape(n)}</b><span>{escape(what)}</span></div>" for n, what in numbers
    )
    facts = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in run.facts)
    groups = "".join(
        _group(group, [result for result in run.results if result.group == group])
        for group in dict.fromkeys(result.group for result in run.results)
    )
    gaps = "".join(f"<li>{escape(sentence)}</li>" for sentence in run.not_shown)
    word = "Nothing leaked" if good else "Not proven" if not run.leaked else "It leaks"
    sees = (
        f"The verdict on each case is the capture's: {run.sees}. "
        "A control is the same probe with the wall down."
    )
    head = "".join(
        f"<p>{escape(words)}</p>"
        for words in (run.played, run.controls_in_words, run.bound_in_words)
        if words
    )
    again = f"<p>To repeat it: <code>{escape(run.command)}</code></p>" if run.command else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>wgcell prove: {escape(word)}</title><style>{_STYLE}</style></head><body><main>"
        f'<div class="card verdict{"" if good else " bad"}"><h1>{escape(word)}</h1>'
        f"<p>{escape(run.headline)}</p>{head}{again}"
        f"<p class='soft'>{escape(sees)}</p><p class='soft'>{escape(ABOUT)}</p>"
        f"<p class='soft'>{escape(_made_by(run))}</p>"
        f'<div class="numbers">{shown}</div><div class="bar">{bar}</div></div>'
        f"<h2>Case, wall and phase</h2><div class='card'>{_matrix(run.results)}</div>"
        f"<h2>Every case</h2>{groups}"
        f"<h2>What this run does not show</h2><div class='card'><ul>{gaps}</ul></div>"
        f"<h2>Where and with what</h2><div class='card'><dl>{facts}</dl></div>"
        "</main></body></html>\n"
    )
