"""Builds the guest's image from Debian's packages, as root or as an ordinary user.

Each of two stages is skipped if its inputs are unchanged. The *base* takes half a minute: the root
file system, an erofs; the kernel; the initramfs's tools and modules (`debian`, `kernel`,
`initramfs`). The *scripts* take a second: init, the agent and the firewall, as a second archive
behind the first. The manifest has the version of each package.

The build works in a folder beside the image, and renames that folder into place at the end. An
interrupted build leaves the old image or none.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from wgcell.errors import ImageError
from wgcell.image import debian, initramfs
from wgcell.image.kernel import uncompressed_kernel, without_trailing_zeros
from wgcell.image.store import FILES, Image, cache_folder, digest, load

__all__ = ["base_key", "build", "is_current", "mirrors"]

Progress = Callable[[str], None]

BASE_CPIO = "base.cpio"
"""The initramfs's first archive, which the next build of the scripts uses again."""
_MIRROR = "WGCELL_MIRROR"
_FORMAT = 9
"""Increased when a change of the code, and not of a table, makes another base."""


def mirrors() -> list[str]:
    """The mirrors in the variable WGCELL_MIRROR, one on each line."""
    named = os.environ.get(_MIRROR, "").split("\n")
    return [mirror.strip() for mirror in named if mirror.strip()]


def build(
    name: str, progress: Progress, scripts: Mapping[str, bytes], mirrors: Sequence[str] = ()
) -> Image:
    """Build the image ``name``, or return the present one if nothing has changed.

    ``scripts`` are wgcell's own files, by their path in the initramfs. ``mirrors`` are the sources
    of the packages, as mmdebstrap(1) takes them: URLs, or lines of a sources.list; none means
    Debian's own. Raises ImageError with the output of the program that failed.
    """
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ImageError(f"{folder}: {error.strerror}") from error
    keys = {"base": base_key(), "scripts": _scripts_key(scripts)}
    with _locked(folder):
        old = _reusable(name, keys["base"])
        if old is not None and old.manifest.get("scripts") == keys["scripts"]:
            progress("nothing has changed")
            return old
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder) as temporary:
            work = Path(temporary)
            made = work / name
            made.mkdir()
            if old is None:
                about = _make_base(made, work, progress, mirrors)
            else:
                progress("reusing the root file system, the kernel and the tools")
                about = _reuse_base(old, made)
            progress("the initramfs: our own scripts")
            _make_initramfs(made, work, scripts)
            _write_manifest(made, about, keys)
            target = folder / name
            if target.exists():
                target.rename(work / "old")
            made.rename(target)
    progress("the image is in place")
    return load(name)


def is_current(image: Image, scripts: Mapping[str, bytes]) -> bool:
    """Whether `build` would make ``image`` again now: wgcell may have changed since."""
    made = (image.manifest.get("base"), image.manifest.get("scripts"))
    return made == (base_key(), _scripts_key(scripts))


def base_key() -> str:
    """A digest of the tables that shape the base."""
    contents = (*debian.PACKAGES, *initramfs.TOOLS, *initramfs.LIBRARY, *initramfs.EXTENSIONS)
    modules = (*initramfs.EARLY, *initramfs.LATE)
    settings = (word for setting in debian.SETTINGS.items() for word in setting)
    programs = (debian.COMPILE_PYTHON, initramfs.COMPILE, debian.TAKE_KERNEL)
    words = (*contents, *modules, *settings, *programs)
    return _key(debian.SUITE, debian.KERNEL_PACKAGE, *words, str(_FORMAT))


def _scripts_key(scripts: Mapping[str, bytes]) -> str:
    return _key(*(f"{path}\0{_sha256(data)}" for path, data in sorted(scripts.items())))


def _key(*parts: str) -> str:
    return _sha256("\n".join(parts).encode())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _reusable(name: str, key: str) -> Image | None:
    """The present image, if its base has the same inputs and no byte of it has changed."""
    try:
        image = load(name)
    except ImageError:
        return None
    base = image.folder / BASE_CPIO
    recorded = image.digests.get(BASE_CPIO)
    whole = image.manifest.get("base") == key and base.exists() and digest(base) == recorded
    return image if whole else None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The folder's lock: a second build waits, and then finds nothing to do."""
    try:
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise ImageError(
            f"{folder / '.lock'}: {error.strerror}",
            hint="build as the user who owns the folder, or set WGCELL_CACHE_DIR to one of yours",
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make_base(
    made: Path, work: Path, progress: Progress, mirrors: Sequence[str]
) -> dict[str, object]:
    """Make root file system, kernel and base archive in ``made``; their part of the manifest."""
    progress(f"the root file system: Debian {debian.SUITE}, by mmdebstrap (about half a minute)")
    root = work / "root"
    debian.unpack_root(root, work, mirrors)
    progress(f"the kernel: {debian.KERNEL_PACKAGE}")
    kernel = debian.take_kernel(root, work / "kernel")
    vmlinux = uncompressed_kernel(kernel.image.read_bytes())
    (made / "kernel").write_bytes(without_trailing_zeros(vmlinux))
    debian.add_test_modules(root, kernel.modules)
    progress("the root file system: compressing")
    debian.pack_root(root, made / "rootfs")
    progress("the initramfs: tools and modules")
    initramfs.write_base(made / BASE_CPIO, work / "base", root, kernel.modules)
    packages = debian.versions(root) | {kernel.package: kernel.package_version}
    return {"kernel_version": kernel.release, "packages": packages}


def _reuse_base(old: Image, made: Path) -> dict[str, object]:
    """Link the base of ``old`` into ``made``; its part of the manifest."""
    for file in ("kernel", "rootfs", BASE_CPIO):
        os.link(old.folder / file, made / file)
    return {key: old.manifest[key] for key in ("kernel_version", "packages")}


def _make_initramfs(made: Path, work: Path, scripts: Mapping[str, bytes]) -> None:
    """Join the base archive in ``made`` and an archive of ``scripts``."""
    base, own = made / BASE_CPIO, work / "own.cpio"
    initramfs.write_scripts(own, base, scripts, work / "own", work / "tools")
    with (made / "initramfs").open("wb") as whole:
        whole.write(base.read_bytes())
        whole.write(own.read_bytes())


def _write_manifest(made: Path, about: Mapping[str, object], keys: Mapping[str, str]) -> None:
    manifest = {
        "format": _FORMAT,
        **about,
        **keys,
        "sha256": {file: digest(made / file) for file in (*FILES, BASE_CPIO)},
    }
    (made / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
