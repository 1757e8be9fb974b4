"""A report as one HTML page that loads nothing from anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from wgcell.prove.report.content import Report
from wgcell.prove.verdict import Phase, Result, Status

__all__ = ["as_html"]

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
_COLUMNS = ("case", "wall", "phase", "due", "the capture says", "control", "the relay said")
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
    """A section with a row for each case, open if one has not held."""
    bad = [result for result in results if result.status is not Status.HELD]
    worst = _CLASS[bad[0].status] if bad else "held"
    words = f"{len(results) - len(bad)} of {len(results)} held"
    heads = "".join(f"<th>{head}</th>" for head in _COLUMNS)
    return (
        f'<details class="card"{" open" if bad else ""}><summary><span>{escape(name)}</span>'
        f'<span class="{worst}">{words}</span></summary><div class="inner"><table class="cases">'
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(map(_case, results))}</tbody></table>"
        "</div></details>"
    )


def _matrix(results: Sequence[Result]) -> str:
    """How many cases have held: a row for each wall's group, a column for each phase."""
    phases = [phase for phase in Phase if any(result.phase is phase for result in results)]
    heads = "".join(f"<th><span>{escape(phase.value)}</span></th>" for phase in phases)
    rows = []
    for wall in dict.fromkeys(result.wall for result in results):
        rows.append(f'<tr class="wall"><td colspan="{len(phases) + 1}">{escape(wall)}</td></tr>')
        behind = [result for result in results if result.wall == wall]
        rows += [_row(*section, phases) for section in _by_group(behind)]
    return (
        f'<table class="grid"><thead><tr><th></th>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _by_group(results: Sequence[Result]) -> list[tuple[str, list[Result]]]:
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.group, []).append(result)
    return list(groups.items())


def _row(group: str, results: Sequence[Result], phases: Sequence[Phase]) -> str:
    cells = "".join(_cell([r for r in results if r.phase is phase]) for phase in phases)
    return f"<tr><td>{escape(group)}</td>{cells}</tr>"


def _cell(results: Sequence[Result]) -> str:
    if not results:
        return '<td class="soft">·</td>'
    held = sum(result.status is Status.HELD for result in results)
    worst = next((r.status for r in results if r.status is not Status.HELD), Status.HELD)
    return f'<td class="{_CLASS[worst]}">{held}/{len(results)}</td>'


def _made_by(report: Report) -> str:
    """The versions by which a reader can repeat the run."""
    named = dict(report.facts)
    parts = [f"{key} {named[key]}" for key in ("wgcell", "commit", "image", "when") if key in named]
    return "; ".join(parts)


def _headline(report: Report) -> str:
    if report.passed:
        return "Nothing leaked"
    return "It leaks" if report.leaked else "Not proven"


def _numbers(report: Report) -> str:
    seen, of = report.controls
    counts = [
        (str(report.counts[status]), f"cases {status.value}")
        for status in Status
        if report.counts[status]
    ]
    numbers = [
        (str(report.rogue), "rogue frames sent"),
        (str(report.leaked), "packets leaked"),
        *([] if report.leaked else [(f"{report.bound:.2g}", "95 % bound (3/N)")]),
        (f"{seen} of {of}", "controls seen"),
        *counts,
        (f"{report.seconds:.0f} s", "taken"),
    ]
    return "".join(
        f"<div><b>{escape(number)}</b><span>{escape(name)}</span></div>" for number, name in numbers
    )


def _bar(report: Report) -> str:
    """The share of each status in all cases."""
    total = max(len(report.results), 1)
    return "".join(
        f'<i class="{_CLASS[status]}" style="width:{100 * report.counts[status] / total:.3f}%"></i>'
        for status in Status
        if report.counts[status]
    )


def _summary(report: Report) -> str:
    """The card at the top: the verdict, what was run, and the figures."""
    oracle = (
        f"The verdict on each case is the capture's: {report.oracle}. "
        "A control is the same probe with the wall down."
    )
    sentences = "".join(
        f"<p>{escape(sentence)}</p>"
        for sentence in (report.description, report.controls_in_words, report.bound_in_words)
        if sentence
    )
    again = f"<p>To repeat it: <code>{escape(report.command)}</code></p>" if report.command else ""
    return (
        f'<div class="card verdict{"" if report.passed else " bad"}">'
        f"<h1>{escape(_headline(report))}</h1>"
        f"<p>{escape(report.headline)}</p>{sentences}{again}"
        f"<p class='soft'>{escape(oracle)}</p><p class='soft'>{escape(ABOUT)}</p>"
        f"<p class='soft'>{escape(_made_by(report))}</p>"
        f'<div class="numbers">{_numbers(report)}</div><div class="bar">{_bar(report)}</div></div>'
    )


def as_html(report: Report) -> str:
    """The page."""
    groups = "".join(_group(*section) for section in _by_group(report.results))
    gaps = "".join(f"<li>{escape(sentence)}</li>" for sentence in report.not_shown)
    facts = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in report.facts)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>wgcell prove: {escape(_headline(report))}</title><style>{_STYLE}</style></head>"
        f"<body><main>{_summary(report)}"
        f"<h2>Case, wall and phase</h2><div class='card'>{_matrix(report.results)}</div>"
        f"<h2>Every case</h2>{groups}"
        f"<h2>What this run does not show</h2><div class='card'><ul>{gaps}</ul></div>"
        f"<h2>Where and with what</h2><div class='card'><dl>{facts}</dl></div>"
        "</main></body></html>\n"
    )
