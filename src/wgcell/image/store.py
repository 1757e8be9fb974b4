"""The images on this machine: their folders and manifests, and the check of each before a boot.

An image is a folder ``$XDG_CACHE_HOME/wgcell/images/<name>`` with ``kernel``, ``initramfs``,
``rootfs`` and ``manifest.json``. The manifest has the SHA-256 of each file, so a changed byte is
found before anything boots.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from wgcell.errors import ImageError
from wgcell.home import home

__all__ = ["FILES", "Image", "cache_folder", "digest", "exists", "list_images", "load", "remove"]

FILES = ("kernel", "initramfs", "rootfs")
_REBUILD = "wgcell image build"


def cache_folder() -> Path:
    """The folder of all images, in WGCELL_CACHE_DIR or else in the XDG cache folder."""
    if named := os.environ.get("WGCELL_CACHE_DIR"):
        return Path(named).absolute() / "images"
    base = os.environ.get("XDG_CACHE_HOME") or str(home() / ".cache")
    return Path(base).absolute() / "wgcell" / "images"


@dataclass(frozen=True, slots=True)
class Image:
    """One image: its files and its manifest."""

    name: str
    folder: Path
    manifest: Mapping[str, object]

    @property
    def digests(self) -> Mapping[str, str]:
        """The SHA-256 of each of its files, hexadecimal, as the manifest has them."""
        found = self.manifest.get("sha256")
        named = found.items() if isinstance(found, dict) else ()
        return {str(name): value for name, value in named if isinstance(value, str)}

    @property
    def kernel(self) -> Path:
        """An uncompressed vmlinux."""
        return self.folder / "kernel"

    @property
    def initramfs(self) -> Path:
        """A cpio archive."""
        return self.folder / "initramfs"

    @property
    def rootfs(self) -> Path:
        """An erofs file system."""
        return self.folder / "rootfs"


def digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def exists(name: str) -> bool:
    """Whether an image has that name; it may be damaged."""
    return (cache_folder() / name / "manifest.json").exists()


def _open(name: str) -> Image:
    folder = cache_folder() / name
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        image = Image(name, folder, manifest if isinstance(manifest, dict) else {})
        if not set(FILES) <= set(image.digests):
            raise ValueError("no digests")
    except FileNotFoundError:
        raise ImageError(
            f"there is no image {name!r} in {folder.parent}",
            hint=f"wgcell image ls lists those here; {_REBUILD} {name} makes one of Debian 12",
        ) from None
    except (OSError, ValueError) as error:
        raise ImageError(
            f"{folder}/manifest.json can't be read: {error}", hint=f"{_REBUILD} {name}"
        ) from None
    return image


def load(name: str) -> Image:
    """The image, once each file has its digest. Raises ImageError with a hint."""
    image = _open(name)
    with ThreadPoolExecutor(len(FILES)) as threads:  # hashing releases the GIL
        found = threads.map(lambda file: digest(image.folder / file), FILES)
        for file in FILES:
            try:
                same = next(found) == image.digests[file]
            except OSError as error:
                raise ImageError(
                    f"{image.folder / file}: {error.strerror}", hint=f"{_REBUILD} {name}"
                ) from None
            if not same:
                changed = "its digest differs from the manifest's: it was changed"
                raise ImageError(
                    f"{image.folder / file}: {changed}",
                    hint=f"wgcell image rm {name}; {_REBUILD} {name}",
                )
    return image


def list_images() -> list[Image]:
    """Every image that has a readable manifest, by name."""
    try:
        names = sorted(entry.name for entry in cache_folder().iterdir() if entry.is_dir())
    except OSError:
        return []
    found = []
    for name in names:
        try:
            found.append(_open(name))
        except ImageError:
            continue
    return found


def remove(name: str) -> None:
    """Delete an image. Raises ImageError if there is none."""
    if "/" in name or name in ("", ".", "..") or not (cache_folder() / name).is_dir():
        raise ImageError(f"there is no image {name!r} in {cache_folder()}")
    shutil.rmtree(cache_folder() / name)
