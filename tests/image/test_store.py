"""A missing or changed image is found before anything boots."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wgcell.errors import ImageError
from wgcell.image import build, store


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WGCELL_CACHE_DIR", str(tmp_path))
    folder = tmp_path / "images" / "debian"
    folder.mkdir(parents=True)
    for name in store.FILES:
        (folder / name).write_text(name)
    digests = {name: store.digest(folder / name) for name in store.FILES}
    (folder / "manifest.json").write_text(json.dumps({"sha256": digests}))
    return folder


def test_a_whole_image_loads(image: Path) -> None:
    assert store.load("debian").kernel == image / "kernel"


def test_a_changed_byte_is_found(image: Path) -> None:
    (image / "rootfs").write_text("other")
    with pytest.raises(ImageError, match="digest differs"):
        store.load("debian")


def test_a_missing_image_names_the_hint(image: Path) -> None:
    with pytest.raises(ImageError) as caught:
        store.load("none")
    assert "wgcell image build" in caught.value.hint


def test_an_interrupted_build_leaves_nothing(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.remove("debian")

    def broken(*_: object) -> dict[str, object]:
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "_make_base", broken)
    with pytest.raises(KeyboardInterrupt):
        build.build("debian", lambda _: None, {"init": b""})
    assert [path.name for path in image.parent.iterdir()] == [".lock"]


@pytest.mark.process
def test_a_changed_base_is_never_packed_again(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def base(folder: Path, *_: object) -> dict[str, object]:
        made.append("base")
        for name in ("kernel", "rootfs", "base.cpio"):
            (folder / name).write_text(name)
        return {"kernel_version": "6.1", "packages": {}}

    monkeypatch.setattr(build, "_make_base", base)
    for script in (b"1", b"1", b"2"):
        build.build("debian", lambda _: None, {"init": script})
    assert made == ["base"]
    (image / "base.cpio").write_text("changed")
    build.build("debian", lambda _: None, {"init": b"3"})
    assert made == ["base", "base"]


def test_an_image_of_another_version_is_told_from_this_ones(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not build.is_current(store.load("debian"), {"init": b"1"})


def test_a_cache_of_another_users_is_an_error_with_a_hint(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (image.parent / ".lock").mkdir()
    with pytest.raises(ImageError) as caught:
        build.build("debian", lambda _: None, {"init": b""})
    assert "WGCELL_CACHE_DIR" in caught.value.hint
