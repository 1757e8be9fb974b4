from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

from wgcell.prove.report.content import Report
from wgcell.prove.report.formats import as_json, as_junit
from wgcell.prove.report.page import as_html
from wgcell.prove.request import Mode, Request, description
from wgcell.prove.verdict import Observation, Phase, Result, Status, Verdict

EVIL = "<script>alert('x')</script>&\""


def one(name: str, status: Status, **seen: object) -> Result:
    observation = Observation(control=True, **seen)  # type: ignore[arg-type]
    return Result(
        name, "link", EVIL, "relay", Phase.RUNNING, Verdict.KILL, status, EVIL, observation
    )


HELD = one("good", Status.HELD, frames=3, said=EVIL)
LEAK = one("bad", Status.LEAKED, leaks=(EVIL,))
UNSEEN = one("unseen", Status.NOT_PROVEN)
UNSEEN_CONTROL = replace(UNSEEN, observation=Observation(control=False))


FACTS = (("host", EVIL), ("wgcell", "9.9"), ("commit", "abc"))


def report(*results: Result) -> Report:
    return Report("quick", "two namespaces", 1.5, FACTS, results, ("all else " + EVIL,))


def test_n_counts_frames_and_the_bound_is_three_over_n() -> None:
    made = report(HELD, UNSEEN)
    assert (made.rogue, made.leaked, made.bound) == (3, 0, 1.0)
    assert "leaked 0 of 3 rogue frames" in made.headline


def test_json_says_what_is_proven() -> None:
    assert json.loads(as_json(report(HELD)))["passed"] is True
    said = json.loads(as_json(report(HELD, LEAK, UNSEEN)))
    assert said["passed"] is False
    assert said["counts"] == {
        "held": 1,
        "leaked": 1,
        "wrong verdict": 0,
        "not proven": 1,
        "not played": 0,
    }
    assert [result["case"] for result in said["results"] if result["evidence"]] == ["bad"]


def test_junit_has_a_failure_a_leak_and_an_error_a_gap() -> None:
    suite = ElementTree.fromstring(as_junit(report(HELD, LEAK, UNSEEN)))[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "1", "1")
    names = [case.get("name") for case in suite if case.find("failure") is not None]
    assert names == ["bad [running]"]
    assert suite.findtext("testcase/failure") == EVIL


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [name for name, _ in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_loads_nothing_and_runs_nothing_of_what_it_shows() -> None:
    page = Page()
    page.feed(as_html(report(HELD, LEAK)))
    assert "script" not in page.tags and "link" not in page.tags and page.loads == []
    assert page.text.count(EVIL) >= 4
    assert "It leaks" in page.text
    good = Page()
    good.feed(as_html(report(HELD)))
    assert good.text.index("wgcell runs code") < good.text.index("Every case")
    assert "Nothing leaked" in good.text and "leaked 0 of 3 rogue frames" in good.text


def test_the_head_says_what_was_run_and_how_to_repeat_it() -> None:
    request = Request(Mode.QUICK, command="wgcell prove --quick")
    made = replace(
        report(HELD, UNSEEN_CONTROL), description=description(request), command=request.command
    )
    page = Page()
    page.feed(as_html(made))
    head = page.text[: page.text.index("Every case")]
    for words in (
        "no virtual machine was booted",
        "1 of 2 controls were seen",
        "with 95 % confidence less than 3/3, one in 1, of frames drawn like these would",
        "To repeat it: wgcell prove --quick",
        "wgcell 9.9; commit abc",
    ):
        assert words in head
    assert json.loads(as_json(made))["controls"] == {"seen": 1, "played": 2}
