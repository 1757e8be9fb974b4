"""TOML within bounds: nothing that a stranger may write takes long or raises another error."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wgcell import toml

SIZE = 256 * 1024
pieces = st.sampled_from(
    [
        *"\"'#\n\\.=[]{}, \t",
        '"""',
        "'''",
        "a",
        "a.b",
        "key = ",
        "1",
        "é",
        "\r\n",
        "[[",
        "]]",
        "\\u00e9",
    ]
)


@given(st.lists(pieces, max_size=30).map("".join) | st.text(max_size=40))
@example('a = "\\"" # "\nb.c = 1')
@example('a = """x""""" # y\nb = 1')
def test_it_reads_what_tomllib_reads(text: str) -> None:
    try:
        expected = tomllib.loads(text)
    except ValueError:
        expected = None
    try:
        found = toml.parse(text.encode("utf-8", "surrogatepass"))
    except toml.TomlError as error:
        assert expected is None or "more than 8 parts" in str(error)
        return
    assert found == expected


BOMBS = {
    "a key of many parts": "a." * (SIZE // 2) + "a=1",
    "a header of many parts": "[" + "a." * (SIZE // 2) + "a]",
    "quoted parts": '"a" . ' * (SIZE // 6) + "a=1",
    "within a table in a line": "x={" + "a." * (SIZE // 2) + "a=1}",
    "behind a string that looks like one": "x='''\"\"\"'''\n" + "a." * (SIZE // 3) + "a=1",
    "behind a comment": '# """\n' + "a." * (SIZE // 3) + "a=1",
    "deep arrays": "a=" + "[" * SIZE,
    "deep tables": "a=" + "{a=" * (SIZE // 3),
    "an integer of many digits": "a=" + "1" * SIZE,
    "an integer of many underscores": "a=" + "1_" * (SIZE // 2),
    "no TOML at all": "a" * SIZE,
    "words": "a " * (SIZE // 2),
    "open strings": '"""' + "'''" * (SIZE // 3),
    "quotes": '"' * SIZE,
    "backslashes": 'a="' + "\\" * SIZE,
    "no UTF-8": "\udc80",
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.timeout(60)  # each took minutes or less than a second
def test_a_bomb_is_refused_at_once_and_by_name(bomb: str) -> None:
    with pytest.raises(toml.TomlError) as caught:
        toml.parse(BOMBS[bomb].encode("utf-8", "surrogateescape"))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "text", ["a.b.c.d.e.f.g.h = 1", "[a.b.c.d.e.f.g.h]", 'a = "a.b.c.d.e.f.g.h.i.j.k.l.m.n"']
)
def test_what_is_no_bomb_is_read(text: str) -> None:
    assert toml.parse(text.encode())


def test_an_error_names_its_line() -> None:
    for raw, words in (
        (b"a = 1\nb = = 2\n", "f:2: not TOML: Invalid value (column 5)"),
        (b"a = 1\nb = \xff\n", "f:2: not UTF-8"),
        (b'a = """\n\n"""\n' + b"b." * 8 + b"c = 1", "f:4: a key of more than 8 parts"),
        (b"a = [\n1,\n", "f:3: not TOML: Invalid value (the file ends here)"),
        (b"a = " + b"1" * 5000, "f: not TOML: a number of too many digits"),
    ):
        with pytest.raises(toml.TomlError) as caught:
            toml.parse(raw)
        assert caught.value.at("f").startswith(words)
