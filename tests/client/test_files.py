"""What a guest answers where a file was asked for: it is bounded, and read strictly."""

from __future__ import annotations

import contextlib
import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wgcell.client import files
from wgcell.errors import ArchiveError, StateError


def tar_of(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for header, content in members:
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return raw.getvalue()


def header_of(name: str = "a", kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.type = kind
    return header


@given(st.binary(max_size=2000), st.text("abc", min_size=1, max_size=300))
def test_what_is_written_is_what_is_read(content: bytes, name: str) -> None:
    assert files._only_file(files._tar_of(name, content, 0o644), 2000) == content


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "cut short"),
        (tar_of(), "no such file"),
        (tar_of((header_of(), b"x"), (header_of("b"), b"y")), "no plain file"),
        (tar_of((header_of(kind=tarfile.DIRTYPE), b"")), "no plain file"),
        (tar_of((header_of(kind=tarfile.FIFOTYPE), b"")), "no plain file"),
        (tar_of((header_of(), b"x" * 11)), "11 bytes, more than 10"),
        (tar_of((header_of(), b"x"))[:600], "cut short"),
        (b"\xff" * 1024, "not a readable tar"),
    ],
)
def test_what_is_no_file_is_an_error(raw: bytes, says: str) -> None:
    with pytest.raises(ArchiveError, match=says):
        files._only_file(raw, 10)


@given(st.binary(max_size=4096))
def test_any_bytes_are_an_error_or_a_file(raw: bytes) -> None:
    with contextlib.suppress(ArchiveError):
        assert len(files._only_file(raw, 100)) <= 100


@given(st.binary(max_size=100))
def test_any_line_is_an_error_or_an_entry(line: bytes) -> None:
    with contextlib.suppress(StateError):
        assert isinstance(files._entry(line), files.Entry)


def test_a_listing_is_read_field_by_field() -> None:
    assert files._entry(b"f 644 12 1700000000.5 a b\xff") == files.Entry(
        "a b\udcff", "file", 12, 0o644, 1700000000.5
    )
    assert files._entry(b"p 600 0 0 x").kind == "other"
    for line in (b"", b"f", b"f 9 1 1 a", b"f 644 x 1 a", b"f 644 1 x a"):
        with pytest.raises(StateError, match="find"):
            files._entry(line)
