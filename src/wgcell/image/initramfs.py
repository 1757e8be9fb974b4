"""The initramfs: two cpio archives, one behind the other, which the kernel unpacks in that order.

The *base* has the tools, Python and the kernel's modules, all from Debian's packages. The *scripts*
are wgcell's own: init, the agent, the firewall. Python's sources are compiled by the image's own
interpreter, which runs on this machine for it, because bytecode belongs to one Python version.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from wgcell import programs
from wgcell.errors import ImageError
from wgcell.image.commands import run
from wgcell.image.modules import (
    dependencies_text,
    module_name,
    modules_needed,
    without_signature,
)

__all__ = [
    "COMPILE",
    "EARLY",
    "EXTENSIONS",
    "LATE",
    "LIBRARY",
    "TOOLS",
    "write_base",
    "write_scripts",
]

TOOLS = ("usr/sbin/nft", "usr/bin/wg", "usr/bin/ip", "usr/bin/python3")
LIBRARY = (
    "__future__",
    "encodings/__init__",
    "encodings/aliases",
    "encodings/utf_8",
    "os",
)
"""The files of Python's library that the agent needs: the codec of its own strings, the file by
which Python finds the library, and system calls. The interpreter has all others built in."""
EXTENSIONS = ("_ctypes",)
EARLY = ("nf_tables", "nft_log", "nf_log_syslog", "nft_limit", "virtio_pci", "virtio_console")
"""Modules that are loaded before the network card exists, for the firewall and the host's ports."""
LATE = ("virtio_blk", "erofs", "overlay", "wireguard", "virtio_net")
"""Modules that are loaded once the firewall stands."""
COMPILE = """
import sys, posix, _imp
import _frozen_importlib_external as external
def compiled(folder, inside):
    for entry in sorted(posix.listdir(folder)):
        path, name = f"{folder}/{entry}", f"{inside}/{entry}"
        if external._path_isdir(path):
            compiled(path, name)
        elif entry.endswith(".py"):
            loader = external.FileLoader("", path)
            source = loader.get_data(path)
            code = compile(source, name, "exec", dont_inherit=True, optimize=2)
            hashed = _imp.source_hash(external._RAW_MAGIC_NUMBER, source)
            external.SourceFileLoader("", path).set_data(
                path + "c", external._code_to_hash_pyc(code, hashed, False))
            posix.unlink(path)
for folder in sys.argv[1:]:
    compiled(folder, "")
"""
"""A program for the image's Python, which replaces each .py file of the folders in its arguments by
a .pyc file. It imports built-in modules alone: no other is compiled yet."""

_FOLDERS = (
    *("bin", "etc", "lib/x86_64-linux-gnu", "lib64", "modules"),
    *("dev", "lower", "newroot", "proc", "run", "sys", "tmp", "upper", "var"),
)
_LINKS = {"var/run": "/run"}
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_LOADER = "ld-linux-x86-64.so.2"


def write_base(target: Path, base: Path, root: Path, modules: Path) -> None:
    """Write the base archive to ``target``.

    ``base`` is the folder to fill; it must not exist yet. ``root`` is the root file system, and
    ``modules`` the kernel's folder of modules, with its ``modules.dep``. Raises ImageError.
    """
    for folder in _FOLDERS:
        (base / folder).mkdir(parents=True)
    for name, to in _LINKS.items():
        (base / name).symlink_to(to)
    _add_busybox(base, root)
    for tool in TOOLS:
        _add_tool(base, root, tool)
    shutil.copy(root / _LIBRARIES / _LOADER, base / "lib64" / _LOADER)
    _add_python(base, root)
    _add_modules(base, modules)
    _archive(base, target)


def write_scripts(
    target: Path, base: Path, scripts: Mapping[str, bytes], own: Path, tools: Path
) -> None:
    """Write the archive of ``scripts``, by their path in the initramfs, to ``target``.

    ``base`` is the base archive, whose Python compiles what lies in ``lib``. ``own`` and ``tools``
    are folders to fill; neither may exist yet. Raises ImageError.
    """
    for path, data in scripts.items():
        file = own / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        file.chmod(0o755)
    if (own / "lib").exists():
        tools.mkdir()
        run(["cpio", "-i", "-d", "--quiet", "--no-absolute-filenames", "-F", str(base)], cwd=tools)
        _compile(tools, [own / "lib"])
    _archive(own, target)


def _add_busybox(base: Path, root: Path) -> None:
    """busybox, and a link to it for each of its applets."""
    busybox = next(
        path for path in (root / "usr/bin/busybox", root / "bin/busybox") if path.exists()
    )
    shutil.copy(busybox, base / "bin/busybox")
    for applet in run([str(base / "bin/busybox"), "--list"]).split():
        if applet != "busybox":
            (base / "bin" / applet).unlink(missing_ok=True)
            (base / "bin" / applet).symlink_to("busybox")


def _add_tool(base: Path, root: Path, tool: str) -> None:
    """A program in place of busybox's applet of that name, and its libraries."""
    source = root / tool
    if not source.exists():
        source = root / tool.removeprefix("usr/")
    place = base / "bin" / source.name
    place.unlink(missing_ok=True)
    shutil.copy(_inside(root, source) if source.is_symlink() else source.resolve(), place)
    _add_libraries(base, root, place)


def _inside(root: Path, link: Path) -> Path:
    """The target of a symbolic link within ``root``: an absolute one begins there."""
    target = str(link.readlink())
    return root / target.lstrip("/") if target.startswith("/") else link.parent / target


def _add_libraries(base: Path, root: Path, binary: Path) -> None:
    """The shared libraries that ``binary`` needs."""
    libraries = root / _LIBRARIES
    loader = str(libraries / _LOADER)
    listed = run([loader, "--library-path", str(libraries), "--list", str(binary)])
    for line in listed.splitlines():
        found = line.partition("=>")[2].split(" (")[0].strip()
        if found:
            shutil.copy(found, base / "lib/x86_64-linux-gnu" / Path(found).name)


def _add_python(base: Path, root: Path) -> None:
    """The few files of Python's library that the agent needs, compiled."""
    library = next((root / "usr/lib").glob("python3.*"))
    place = base / "lib" / library.name
    extensions = place / "lib-dynload"
    extensions.mkdir(parents=True)
    for name in EXTENSIONS:
        (extension,) = (library / "lib-dynload").glob(f"{name}.*.so")
        shutil.copy(extension, extensions)
        _add_libraries(base, root, extensions / extension.name)
    for name in LIBRARY:
        module = place / f"{name}.py"
        module.parent.mkdir(exist_ok=True)
        shutil.copy(library / f"{name}.py", module)
    # Python can't start without the library that it is to compile, so it gets the root's.
    _compile(base, [place], library=root / "usr")


def _compile(tools: Path, folders: Sequence[Path], library: Path | None = None) -> None:
    """Compile the sources in ``folders`` by the Python of the unpacked initramfs ``tools``.

    ``library`` is the prefix of another Python library than the one in ``tools``.
    """
    argv = [str(tools / "lib64" / _LOADER), "--library-path", str(tools / "lib/x86_64-linux-gnu")]
    argv += [str(tools / "bin/python3"), "-S", "-B", "-P", "-X", "utf8", "-c", COMPILE]
    argv += [str(folder) for folder in folders]
    run(argv, variables={"PYTHONHOME": str(library or tools)})


def _add_modules(base: Path, modules: Path) -> None:
    """The modules of both stages and their dependencies, unsigned, and the lists for init."""
    place = base / "lib/modules" / modules.name
    place.mkdir(parents=True)
    needs = modules_needed((modules / "modules.dep").read_text(), (*EARLY, *LATE))
    for path in needs:
        (place / Path(path).name).write_bytes(without_signature((modules / path).read_bytes()))
    (place / "modules.dep").write_text(dependencies_text(needs))
    # One line each: init, a shell script, reads them without another program.
    for stage, names in (("early", EARLY), ("late", LATE)):
        modular = [name for name in names if any(module_name(path) == name for path in needs)]
        (base / "modules" / stage).write_text(" ".join(modular) + "\n")


def _archive(folder: Path, target: Path) -> None:
    """Write ``folder`` to ``target`` as a newc archive in which root owns every file."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    options = ["-o", "-H", "newc", "--owner=0:0", "--quiet", "--reproducible"]
    with target.open("wb") as out:
        done = subprocess.run(
            [programs.path_of("cpio"), *options],
            input="".join(f"{name}\n" for name in names).encode(),
            stdout=out,
            stderr=subprocess.PIPE,
            cwd=folder,
            check=False,
            env=programs.environment(),
        )
    if done.returncode != 0:
        raise ImageError(f"cpio failed: {done.stderr.decode('utf-8', 'replace')}")
