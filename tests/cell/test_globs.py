"""Output patterns against what a shell makes of them, and those refused before anything starts."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.examples import examples

from wgcell.cell.globs import Pattern, components


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("results/", "results"),
        ("./results//deep/./x", "results/deep/x"),
        (".", "."),
        ("./", "."),
        ("/work", "."),
        ("/work/", "."),
        ("/work/results/", "results"),
        ("//work//results", "results"),
        ("*.csv", "*.csv"),
        (" spaced ", " spaced "),
    ],
)
def test_one_spelling_for_each_place(text: str, shown: str) -> None:
    assert str(Pattern.parse(text)) == shown


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the whole working folder is ."),
        ("/", "name it results or /work/results"),
        ("/etc", "name it etc or /work/etc"),
        ("/workshop/x", "name it x or /work/x"),
        ("/work/../etc", "without .."),
        ("..", "without .."),
        ("a/../b", "without .."),
        ("a\nb", "control characters"),
        ("a\\*", "backslash"),
        ("results/**/x", "one * for each level"),
        ("*a" * 9, "more than 8 *"),
    ],
)
def test_refused_with_the_right_form(text: str, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        Pattern.parse(text)
    assert words in str(caught.value)


_NAMES = ["a", "b", "ab", "a.c", ".a", ".b", "[ab]", "a?", "*", "-", "B", "é", "a b", "!a"]
_PATTERNS = [
    "*",
    "?",
    "a*",
    "*b",
    ".*",
    "[ab]",
    "[!a]",
    "[a-c]*",
    "a?",
    "é",
    "?*",
    "[a",
    "a b",
]


@pytest.mark.parametrize("pattern", _PATTERNS)
def test_a_component_matches_as_the_shell_has_it(tmp_path: Path, pattern: str) -> None:
    for name in _NAMES:
        (tmp_path / name).touch()
    script = 'IFS=; for p in $0; do [ -e "$p" ] && printf "%s\\n" "$p"; done'
    found = subprocess.run(
        ["sh", "-c", script, pattern],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={"LC_ALL": "C.UTF-8"},
    ).stdout.splitlines()
    ours = [name for name in _NAMES if Pattern.parse(pattern).covers((name,))]
    # Not compared: "é", of which the ? of dash sees two bytes; "." and ".."; the name spelled
    # like the pattern, which the shell tries only if nothing else fits.
    apart = {"é", ".", "..", pattern}
    assert sorted(set(ours) - apart) == sorted(set(found) - apart)


def test_a_caret_is_an_exclamation_mark_as_busybox_has_it() -> None:
    assert Pattern.parse("[^a]").covers(("b",))
    assert not Pattern.parse("[^a]").covers(("a",))


def test_below_and_above() -> None:
    pattern = Pattern.parse("out/*/data")
    assert pattern.covers(components("out/x/data"))
    assert pattern.covers(components("out/x/data/deep/er"))
    assert not pattern.covers(components("out/x"))
    assert not pattern.covers(components("out/x/other"))
    assert pattern.passes_through(components("out/x"))
    assert pattern.passes_through(())
    assert not pattern.passes_through(components("in"))
    assert Pattern.parse(".").covers(()) and Pattern.parse(".").covers(("x",))


@settings(max_examples=examples(200), deadline=500)
@given(st.text(alphabet="ab*?[]!^-./", max_size=12), st.text(alphabet="ab[]!.", max_size=60))
def test_no_pattern_raises_or_takes_long(text: str, name: str) -> None:
    try:
        pattern = Pattern.parse(text)
    except ValueError:
        return
    pattern.covers(components(name))
