"""The drives of a cell's machine: the root filesystem, a scratch disk, the inputs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from wgcell import programs
from wgcell.cell.job import Job
from wgcell.cell.packing import pack
from wgcell.cell.vouched import file_digest
from wgcell.errors import HostError, LaunchError
from wgcell.vm.spec import Drive

__all__ = ["FILES", "INPUTS", "SCRATCH", "Disks"]

SCRATCH = "scratch.img"
INPUTS = "inputs.tar"
FILES = (SCRATCH, INPUTS)
"""The files in a cell's folder while it lives."""


@dataclass(frozen=True, slots=True)
class Disks:
    """The drives, open. ``inputs`` has the digest and the size of the inputs' tar."""

    drives: tuple[Drive, ...]
    inputs: Mapping[str, object]
    _descriptors: ExitStack

    @classmethod
    def make(cls, job: Job, rootfs: Path, folder: Path) -> Disks:
        """Make the scratch disk and the inputs' tar in ``folder``, and open all drives.

        Raises HostError and InputFileError; then no descriptor stays open.
        """
        inputs: Mapping[str, object] = {}
        with ExitStack() as opened:

            def drive(path: Path, *, writable: bool = False) -> Drive:
                modes = (os.O_RDONLY, os.O_RDWR) if writable else (os.O_RDONLY,)
                fds = [_opened(path, mode) for mode in modes[:1]]
                opened.callback(os.close, fds[0])
                for mode in modes[1:]:
                    fds.append(_opened(path, mode))
                    opened.callback(os.close, fds[-1])
                return Drive(*fds)

            scratch = folder / SCRATCH
            _make_scratch(scratch, job.disk)
            drives = [drive(rootfs), drive(scratch, writable=True)]
            if job.inputs:
                packed = folder / INPUTS
                pack(job.inputs, packed, job.disk, job.excludes)
                inputs = file_digest(packed)
                drives.append(drive(packed))
            return cls(tuple(drives), inputs, opened.pop_all())

    def close(self) -> None:
        """Close the drives here, once the machine has inherited them; again does no harm."""
        self._descriptors.close()


def _make_scratch(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)
    mke2fs = programs.path_of("mke2fs")
    options = "lazy_itable_init=1,nodiscard"
    features = "^has_journal,^metadata_csum,uninit_bg"
    argv = [mke2fs, "-q", "-F", "-t", "ext4", "-O", features, "-m", "0"]
    argv += ["-E", options, str(path)]
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, check=False, env=programs.environment()
        )
    except OSError as error:
        raise LaunchError(
            f"mke2fs: {error.strerror}", argv=argv, hint="apt-get install e2fsprogs"
        ) from error
    if done.returncode != 0:
        raise LaunchError(
            "the cell's scratch disk could not be made",
            argv=argv,
            exit_code=done.returncode,
            output=done.stderr,
        )


def _opened(path: Path, mode: int) -> int:
    """A descriptor for a machine that is given no path. Raises HostError."""
    try:
        return os.open(path, mode | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}") from error
