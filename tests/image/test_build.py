"""What the stock image is made of. tests/vm/test_guest.py looks at it from inside."""

from __future__ import annotations

import pytest

from wgcell.image import build


@pytest.mark.parametrize("name", ["PACKAGES", "TOOLS", "EARLY", "LATE", "COMPILE_PYTHON"])
def test_whatever_shapes_the_base_is_in_its_key(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = build._base_key()
    value = getattr(build, name)
    monkeypatch.setattr(build, name, f"{value} " if isinstance(value, str) else value[1:])
    assert build._base_key() != before


def test_a_changed_setting_is_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = build._base_key()
    monkeypatch.setattr(build, "SETTINGS", {"etc/pip.conf": ""})
    assert build._base_key() != before


def test_what_people_expect_is_in_the_image() -> None:
    assert {"ca-certificates", "curl", "git", "python3-pip", "python3-venv"} <= set(build.PACKAGES)
