"""What a cell of the battery is made of: an altered image, and the modules for its guest."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from wgcell.cell.vouched import job_digests
from wgcell.image.store import Image
from wgcell.prove.runners.cell import GUEST_RUNNER, altered_image, carry


def test_what_is_recorded_of_an_altered_image(tmp_path: Path) -> None:
    """Records are made without following links: a linked manifest would end the cell."""
    folder = tmp_path / "debian"
    folder.mkdir()
    for name in ("kernel", "rootfs", "initramfs", "manifest.json"):
        (folder / name).write_text(name)
    altered = altered_image(Image("debian", folder, {}), tmp_path, b"overlay")
    (tmp_path / "job.json").write_text("{}")
    digests = job_digests(tmp_path, altered.folder)
    assert digests["image_sha256"] == job_digests(tmp_path, folder)["image_sha256"]
    assert altered.initramfs.read_bytes() == b"initramfsoverlay"


def test_the_guest_runner_needs_the_standard_library_alone(tmp_path: Path) -> None:
    """-S and -I: no installed package is found, and none of wgcell but what is carried."""
    package = carry(tmp_path)
    code = f"import sys; sys.path.insert(0, {str(package.parent)!r}); import {GUEST_RUNNER}; "
    code += "import json; print(json.dumps([m.__file__ for n, m in sys.modules.items() "
    code += "if n.startswith('wgcell')]))"
    argv = [sys.executable, "-I", "-S", "-c", code]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    found = [Path(file) for file in json.loads(done.stdout)]
    assert len(found) > 15 and all(file.is_relative_to(package) for file in found)
