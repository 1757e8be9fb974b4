"""A missing or changed image is found before anything boots."""

from __future__ import annotations

import json
import struct
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

    monkeypatch.setattr(build, "_base", broken)
    with pytest.raises(KeyboardInterrupt):
        build.build("debian", lambda _: None, {"init": b""})
    assert [path.name for path in image.parent.iterdir()] == [".lock"]


def test_the_modules_that_are_needed_come_along_and_no_others() -> None:
    listed = "k/a.ko: k/b-x.ko k/c.ko\nk/b-x.ko: k/c.ko\nk/c.ko:\nk/other.ko:\n"
    needs = build.modules_needed(listed, ["a", "built_in"])
    assert needs == {"k/a.ko": ("k/b-x.ko", "k/c.ko"), "k/b-x.ko": ("k/c.ko",), "k/c.ko": ()}
    assert build.dependencies_text(needs) == "a.ko: b-x.ko c.ko\nb-x.ko: c.ko\nc.ko:\n"


def test_a_modules_signature_is_taken_off_and_nothing_else() -> None:
    module, signature = b"\x7fELF" + bytes(100), b"s" * 300
    about = bytes(8) + len(signature).to_bytes(4, "big")
    signed = module + signature + about + b"~Module signature appended~\n"
    assert build.without_signature(signed) == module
    assert build.without_signature(module) == module


@pytest.mark.process
def test_a_changed_base_is_never_packed_again(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def base(folder: Path, *_: object) -> dict[str, object]:
        made.append("base")
        for name in ("kernel", "rootfs", "base.cpio"):
            (folder / name).write_text(name)
        return {"kernel_version": "6.1", "packages": {}}

    monkeypatch.setattr(build, "_base", base)
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


def vmlinux(*segments: tuple[int, bytes, int]) -> bytes:
    """An ELF64 with nothing but what is read: segments at their offsets, each with its p_memsz."""
    head = bytearray(64 + 56 * len(segments))
    head[:4] = b"\x7fELF"
    struct.pack_into("<QQ", head, 32, 64, 9999)
    struct.pack_into("<HHHHH", head, 54, 56, len(segments), 64, 7, 6)
    file = head
    for n, (offset, data, memory) in enumerate(segments):
        struct.pack_into("<IIQQQQQ", head, 64 + 56 * n, 1, 7, offset, 0, 0, len(data), memory)
    for offset, data, _ in segments:
        file = file.ljust(offset, b"\0") + data
    return bytes(file + b"section headers")


def test_a_kernels_trailing_zeros_are_left_to_its_memory_size() -> None:
    whole = vmlinux((4096, b"text" + bytes(4), 8), (8192, b"init" + bytes(9000), 9004))
    made = build.without_trailing_zeros(whole)
    assert made == vmlinux((4096, b"text" + bytes(4), 8), (8192, b"init", 9004))[:8196].replace(
        struct.pack("<Q", 9999), bytes(8)
    ).replace(struct.pack("<HHH", 64, 7, 6), bytes(6))
    assert build.without_trailing_zeros(made) == made
    with pytest.raises(ImageError, match="nothing to load"):
        build.without_trailing_zeros(vmlinux())
