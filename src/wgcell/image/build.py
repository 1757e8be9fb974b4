"""Builds the guest's image from Debian packages, as root or as an ordinary user.

Two stages, each skipped when its inputs have not changed. The *base*, half a minute: a root file
system by mmdebstrap, made an erofs; the kernel of Debian's cloud package; the tools and modules
that the initramfs needs, Python among them, as one cpio archive. The *scripts*, at once: our init,
agent and firewall as a second cpio archive behind the first (the kernel unpacks one after the
other). Python's sources are compiled there by the image's own interpreter, run on this machine:
what compiles must be what will run.

Root and kernel come from one suite by mmdebstrap alone: which Debian or Ubuntu builds, and what its
own apt knows, does not matter. The manifest says the version of each package that was taken.

Everything is made in a folder beside the image and renamed into place, so an interrupted build
leaves the old image or none, never half of one.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from wgcell import programs
from wgcell.errors import ImageError
from wgcell.image.commands import run
from wgcell.image.kernel import uncompressed_kernel, without_trailing_zeros
from wgcell.image.modules import dependencies_text, module_name, modules_needed, without_signature
from wgcell.image.store import FILES, Image, cache_folder, digest, load

__all__ = [
    "PACKAGES",
    "build",
    "is_current",
]

Progress = Callable[[str], None]

SUITE = "bookworm"
KERNEL_PACKAGE = "linux-image-cloud-amd64"
PACKAGES = (
    "busybox-static",
    "ca-certificates",
    "curl",
    "git",
    "iproute2",
    "iputils-ping",
    "nftables",
    "python3",
    "python3-pip",
    "python3-venv",
    "util-linux",
    "wireguard-tools",
)
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
MIRROR = "WGCELL_MIRROR"
"""The environment's variable for what ``wgcell image build --mirror`` says."""
TOOLS = ("usr/sbin/nft", "usr/bin/wg", "usr/bin/ip", "usr/bin/python3")
# What the agent needs of Python's library beyond the interpreter: the codec of its own strings, the
# file by which it finds the library, system calls. Everything else is built in.
LIBRARY = (
    "__future__",
    "encodings/__init__",
    "encodings/aliases",
    "encodings/utf_8",
    "os",
)
EXTENSIONS = ("_ctypes",)
# Run by the image's Python: each .py file of the folders that it is given becomes a .pyc in its
# place, whose source nobody looks for. Nothing is imported but what is built in.
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
# Run by mmdebstrap when the root is finished, with the apt that filled it: the kernel is taken, not
# installed, for a root needs neither it nor what would make it boot.
_KERNEL = "wgcell-kernel"
TAKE_KERNEL = (
    f'set -e; export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"; mkdir "$1/{_KERNEL}"; cd "$1/{_KERNEL}"; '
    f"name=$(apt-cache depends --important {KERNEL_PACKAGE} | sed -n 's/^ *Depends: //p'); "
    'apt-get download -q "${name%% *}"'
)
# Run by mmdebstrap in the finished root, whose own Python must be the one that compiles.
# `mkfs.erofs -T0` gives every source another date than dpkg's .pyc files recorded, and each import
# would compile anew: a hash that nobody checks does not go stale.
COMPILE_PYTHON = (
    'chroot "$1" sh -c "exec python3 -m compileall -q -f -j 0'
    ' --invalidation-mode unchecked-hash /usr/lib/python3*"'
)
# What differs from Debian's own settings, by path. The machine is thrown away with what pip
# installs into it, so Debian's protection of its own packages (PEP 668) protects nothing here.
SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        "etc/pip.conf": "[global]\nbreak-system-packages = true\nroot-user-action = ignore\n"
        "disable-pip-version-check = true\n"
    }
)
# Before there is a network card: what the firewall needs, and the ports to the host.
EARLY = ("nf_tables", "nft_log", "nf_log_syslog", "nft_limit", "virtio_pci", "virtio_console")
# In the root file system, for `wgcell prove` alone: what a hostile root would bring along.
PROVING = ("llc", "stp", "bridge", "macvlan")
_PROVING = "usr/lib/modules/wgcell-prove"
LATE = ("virtio_blk", "erofs", "overlay", "wireguard", "virtio_net")
_FOLDERS = (
    *("bin", "etc", "lib/x86_64-linux-gnu", "lib64", "modules"),
    *("dev", "lower", "newroot", "proc", "run", "sys", "tmp", "upper", "var"),
)
_LINKS = {"var/run": "/run"}
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_LOADER = "ld-linux-x86-64.so.2"
# Owners are root's in the end, whoever builds. Without -p, tar applies an ordinary user's umask,
# and drops setuid, setgid and sticky bits.
UNPACK = ("tar", "-x", "-p", "--no-same-owner")
BASE_CPIO = "base.cpio"
_FORMAT = 9


def build(
    name: str, progress: Progress, scripts: Mapping[str, bytes], mirrors: Sequence[str] = ()
) -> Image:
    """Build the image ``name``, or return it if nothing has changed.

    ``scripts`` are our own files, by their path in the initramfs. ``mirrors`` are where the
    packages come from, as mmdebstrap(1) takes them: URLs, or lines of a sources.list; none means
    Debian's own. Raises ImageError with the output of what failed.
    """
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ImageError(f"{folder}: {error.strerror}") from error
    base_key, scripts_key = _base_key(), _scripts_key(scripts)
    with _alone(folder):
        old = _whole(name)
        if old is not None and _base_is_whole(old, base_key):
            if old.manifest.get("scripts") == scripts_key:
                progress("nothing has changed")
                return old
            base: Path | None = old.folder
        else:
            base = None
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder) as temporary:
            made = Path(temporary) / name
            made.mkdir()
            if base is None:
                about = _base(made, Path(temporary), progress, mirrors)
            else:
                progress("reusing the root file system, the kernel and the tools")
                for file in ("kernel", "rootfs", BASE_CPIO):
                    os.link(base / file, made / file)
                about = (
                    {key: old.manifest[key] for key in ("kernel_version", "packages")}
                    if old
                    else {}
                )
            progress("the initramfs: our own scripts")
            own = Path(temporary) / "own"
            for path, data in scripts.items():
                target = own / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
                target.chmod(0o755)
            _compile_own(made / BASE_CPIO, Path(temporary) / "tools", own)
            _cpio(own, Path(temporary) / "own.cpio")
            with (made / "initramfs").open("wb") as whole:
                whole.write((made / BASE_CPIO).read_bytes())
                whole.write((Path(temporary) / "own.cpio").read_bytes())
            manifest = {
                "format": _FORMAT,
                **about,
                "base": base_key,
                "scripts": scripts_key,
                "sha256": {file: digest(made / file) for file in (*FILES, BASE_CPIO)},
            }
            (made / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
            target = folder / name
            if target.exists():
                target.rename(Path(temporary) / "old")
            made.rename(target)
    progress("the image is in place")
    return load(name)


def is_current(image: Image, scripts: Mapping[str, bytes]) -> bool:
    """Whether ``image`` is what `build` would make now: wgcell may have changed since."""
    made = (image.manifest.get("base"), image.manifest.get("scripts"))
    return made == (_base_key(), _scripts_key(scripts))


def _base_key() -> str:
    settings = (word for setting in SETTINGS.items() for word in setting)
    named = (*PACKAGES, *TOOLS, *LIBRARY, *EXTENSIONS, *EARLY, *LATE, *settings)
    programs_run = (COMPILE_PYTHON, COMPILE, TAKE_KERNEL)
    return _key(SUITE, KERNEL_PACKAGE, *named, *programs_run, str(_FORMAT))


def _scripts_key(scripts: Mapping[str, bytes]) -> str:
    return _key(*(f"{path}\0{digest_of(data)}" for path, data in sorted(scripts.items())))


def digest_of(data: bytes) -> str:
    """SHA-256 of bytes, hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def _key(*parts: str) -> str:
    return digest_of("\n".join(parts).encode())


def _whole(name: str) -> Image | None:
    try:
        return load(name)
    except ImageError:
        return None


def _base_is_whole(image: Image, key: str) -> bool:
    """Whether the image's base may be used again: same inputs, and not a byte changed since."""
    base = image.folder / BASE_CPIO
    known = image.manifest["sha256"].get(BASE_CPIO)
    return image.manifest.get("base") == key and base.exists() and digest(base) == known


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two builds at once take turns; the second then finds nothing to do."""
    try:
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise ImageError(
            f"{folder / '.lock'}: {error.strerror}",
            mend="build as the user who owns the folder, or set WGCELL_CACHE_DIR to one of yours",
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _base(
    made: Path, temporary: Path, progress: Progress, mirrors: Sequence[str]
) -> dict[str, object]:
    """Root file system, kernel and ``base.cpio``; what the manifest says of them."""
    progress(f"the root file system: Debian {SUITE}, by mmdebstrap (about half a minute)")
    root = temporary / "root"
    root.mkdir()
    packed = temporary / "root.tar"
    # mmdebstrap's own namespaces must be able to enter the folder it works in.
    for place in (temporary, packed.parent):
        place.chmod(0o755)
    run(
        [*bootstrap(mirrors), SUITE, str(packed), *mirrors],
        mend="an ordinary user needs user namespaces and the package uidmap",
    )
    run([*UNPACK, "-f", str(packed), "-C", str(root), "--exclude=./dev/*"])
    for path, text in SETTINGS.items():
        (root / path).write_text(text)
    progress(f"the kernel: {KERNEL_PACKAGE}")
    kernel, taken = temporary / "kernel", root / _KERNEL
    deb = next(taken.glob("*.deb"), None)
    if deb is None:
        raise ImageError(f"the suite {SUITE} has no {KERNEL_PACKAGE}")
    run(["dpkg-deb", "-x", str(deb), str(kernel)])
    shown = ["dpkg-deb", "-W", "--showformat=${Package}\n${Version}\n", str(deb)]
    package, package_version = run(shown).split()
    shutil.rmtree(taken)
    version = next((kernel / "lib/modules").iterdir()).name
    bzimage = (kernel / f"boot/vmlinuz-{version}").read_bytes()
    (made / "kernel").write_bytes(without_trailing_zeros(uncompressed_kernel(bzimage)))
    # A newer Debian's depmod looks below /usr.
    (kernel / "usr").mkdir(exist_ok=True)
    if not (kernel / "usr/lib").exists():
        (kernel / "usr/lib").symlink_to("../lib")
    run(["depmod", "-b", str(kernel), version], mend="apt-get install kmod")

    modules = kernel / "lib/modules" / version
    (root / _PROVING).mkdir(parents=True)
    for path in modules_needed((modules / "modules.dep").read_text(), PROVING):
        if module_name(path) in PROVING:
            shutil.copy(modules / path, root / _PROVING)

    progress("the root file system: compressing")
    run(
        ["mkfs.erofs", "-zlz4hc", "--all-root", "-T0", str(made / "rootfs"), str(root)],
        mend="apt-get install erofs-utils",
    )
    progress("the initramfs: tools and modules")
    _base_cpio(made / BASE_CPIO, temporary / "base", root, modules)
    return {"kernel_version": version, "packages": _versions(root) | {package: package_version}}


def bootstrap(mirrors: Sequence[str]) -> list[str]:
    """The command that makes the root, without its suite, its target and its mirrors.

    Raises ImageError for a mirror that would be read as an option or as a file.
    """
    for mirror in mirrors:
        if "://" not in mirror or mirror.startswith("-"):
            raise ImageError(
                f"no mirror: {mirror[:80]!r}",
                mend="a URL such as http://mirror.example.com/debian, or a line of a sources.list",
            )
    argv = ["mmdebstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
    argv += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "locale", "man")]
    argv += [f"--customize-hook={hook}" for hook in (COMPILE_PYTHON, TAKE_KERNEL)]
    # Ubuntu's apt does not trust Debian's keys by itself; the package debian-archive-keyring has
    # them.
    return [*argv, f"--keyring={KEYRING}"] if Path(KEYRING).exists() else argv


def _versions(root: Path) -> dict[str, str]:
    """Every installed package and its version, from dpkg's status file."""
    versions: dict[str, str] = {}
    for paragraph in (root / "var/lib/dpkg/status").read_text(encoding="utf-8").split("\n\n"):
        fields = dict(
            line.split(": ", 1)
            for line in paragraph.splitlines()
            if ": " in line and line[0] != " "
        )
        if "Package" in fields:
            versions[fields["Package"]] = fields.get("Version", "?")
    return versions


def _base_cpio(target: Path, base: Path, root: Path, modules: Path) -> None:
    for folder in _FOLDERS:
        (base / folder).mkdir(parents=True)
    for name, to in _LINKS.items():
        (base / name).symlink_to(to)
    busybox = next(
        path for path in (root / "usr/bin/busybox", root / "bin/busybox") if path.exists()
    )
    shutil.copy(busybox, base / "bin/busybox")
    for applet in run([str(base / "bin/busybox"), "--list"]).split():
        (base / "bin" / applet).unlink(missing_ok=True) if applet != "busybox" else None
        if applet != "busybox":
            (base / "bin" / applet).symlink_to("busybox")
    for tool in TOOLS:
        source = root / tool
        if not source.exists():
            source = root / tool.removeprefix("usr/")
        place = base / "bin" / source.name
        place.unlink(missing_ok=True)
        shutil.copy(source.resolve() if not source.is_symlink() else _inside(root, source), place)
        _bring_libraries(base, root, place)
    shutil.copy(root / _LIBRARIES / _LOADER, base / "lib64" / _LOADER)
    _python(base, root)
    ours = base / "lib/modules" / modules.name
    ours.mkdir(parents=True)
    needs = modules_needed((modules / "modules.dep").read_text(), (*EARLY, *LATE))
    for path in needs:
        (ours / Path(path).name).write_bytes(without_signature((modules / path).read_bytes()))
    (ours / "modules.dep").write_text(dependencies_text(needs))
    # One line each: init reads them with the shell alone.
    for stage, names in (("early", EARLY), ("late", LATE)):
        modular = [name for name in names if any(module_name(path) == name for path in needs)]
        (base / "modules" / stage).write_text(" ".join(modular) + "\n")
    _cpio(base, target)


def _bring_libraries(base: Path, root: Path, binary: Path) -> None:
    """Copy the shared libraries that ``binary`` needs."""
    libraries = root / _LIBRARIES
    loader = str(libraries / _LOADER)
    listed = run([loader, "--library-path", str(libraries), "--list", str(binary)])
    for line in listed.splitlines():
        found = line.partition("=>")[2].split(" (")[0].strip()
        if found:
            shutil.copy(found, base / "lib/x86_64-linux-gnu" / Path(found).name)


def _python(base: Path, root: Path) -> None:
    """The few files of Python's library that the agent needs, compiled."""
    library = next((root / "usr/lib").glob("python3.*"))
    place = base / "lib" / library.name
    extensions = place / "lib-dynload"
    extensions.mkdir(parents=True)
    for name in EXTENSIONS:
        (extension,) = (library / "lib-dynload").glob(f"{name}.*.so")
        shutil.copy(extension, extensions)
        _bring_libraries(base, root, extensions / extension.name)
    for name in LIBRARY:
        module = place / f"{name}.py"
        module.parent.mkdir(exist_ok=True)
        shutil.copy(library / f"{name}.py", module)
    # It can't start without the library that it is to compile.
    _compile(base, [place], library=root / "usr")


def _compile(tools: Path, folders: Sequence[Path], library: Path | None = None) -> None:
    """Compile what lies in ``folders`` by the Python of the unpacked initramfs ``tools``.

    ``library``: where it finds its own library, other than in ``tools``.
    """
    argv = [str(tools / "lib64" / _LOADER), "--library-path", str(tools / "lib/x86_64-linux-gnu")]
    argv += [str(tools / "bin/python3"), "-S", "-B", "-P", "-X", "utf8", "-c", COMPILE]
    argv += [str(folder) for folder in folders]
    run(argv, variables={"PYTHONHOME": str(library or tools)})


def _compile_own(base: Path, tools: Path, own: Path) -> None:
    """Compile the agent by the Python that is in ``base``, an archive."""
    if not (own / "lib").exists():
        return
    tools.mkdir()
    run(["cpio", "-i", "-d", "--quiet", "--no-absolute-filenames", "-F", str(base)], cwd=tools)
    _compile(tools, [own / "lib"])


def _inside(root: Path, link: Path) -> Path:
    """What a symbolic link means inside ``root``."""
    target = str(link.readlink())
    return root / target.lstrip("/") if target.startswith("/") else link.parent / target


def _cpio(folder: Path, target: Path) -> None:
    """A newc archive of ``folder``, every owner 0."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    with target.open("wb") as out:
        done = subprocess.run(
            [
                programs.path_of("cpio"),
                "-o",
                "-H",
                "newc",
                "--owner=0:0",
                "--quiet",
                "--reproducible",
            ],
            input="".join(f"{name}\n" for name in names).encode(),
            stdout=out,
            stderr=subprocess.PIPE,
            cwd=folder,
            check=False,
            env=programs.environment(),
        )
    if done.returncode != 0:
        raise ImageError(f"cpio failed: {done.stderr.decode('utf-8', 'replace')}")
