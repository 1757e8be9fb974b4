"""An image with files laid over its initramfs is one that a cell's records can be made of."""

from __future__ import annotations

from pathlib import Path

from wgcell.cell.vouched import job_digests
from wgcell.image.store import Image
from wgcell.prove.cells import _altered


def test_what_is_recorded_of_an_altered_image(tmp_path: Path) -> None:
    """Records are read without following links; the boots with another init died of that."""
    folder = tmp_path / "debian"
    folder.mkdir()
    for name in ("kernel", "rootfs", "initramfs", "manifest.json"):
        (folder / name).write_text(name)
    altered = _altered(Image("debian", folder, {}), tmp_path, b"laid over")
    (tmp_path / "job.json").write_text("{}")
    digests = job_digests(tmp_path, altered.folder)
    assert digests["image_sha256"] == job_digests(tmp_path, folder)["image_sha256"]
    assert altered.initramfs.read_bytes() == b"initramfslaid over"
