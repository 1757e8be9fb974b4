"""The workload's root: read-only below, the scratch disk above. It is another file system than the
agent's own, and nothing in it is executed or believed: any image with one program will do.
"""

from __future__ import annotations

import os
import stat

from wgcell.guest.agent import files, kernel, tools

__all__ = ["ROOT", "dress", "put_together"]

ROOT = "/newroot"
_FOLDERS = ("dev", "etc", "proc", "run", "sys", "tmp", "work")
"""Folders that must exist: a link in their place would put a mount or a file elsewhere."""
_DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9)}
_DEVICES["tty"] = (5, 0)
_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
TYPE_CHECKING = False
if TYPE_CHECKING:
    from wgcell.guest.config import GuestConfig


def put_together(config: GuestConfig) -> None:
    """The layers, the inputs, and the names that the tunnel's end gives."""
    kernel.mount("/dev/vda", "/lower", "erofs", kernel.READ_ONLY)
    kernel.mount("/dev/vdb", "/upper", "ext4", data="noinit_itable")
    os.mkdir("/upper/u")
    os.mkdir("/upper/w")
    layers = "lowerdir=/lower,upperdir=/upper/u,workdir=/upper/w"
    kernel.mount("overlay", ROOT, "overlay", data=layers)
    make_folders(ROOT)
    # The scratch disk's /tmp is a folder of its own beside the root's layer, bound later.
    os.mkdir("/upper/tmp")
    os.chmod("/upper/tmp", 0o1777)
    if config.inputs:
        tools.run("tar", "-x", "-f", "/dev/vdc", "-C", f"{ROOT}/work")
    write_names(ROOT, config)


def make_folders(root: str) -> None:
    """The folders that the workload's root must have; whatever stands in their place goes."""
    for name in _FOLDERS:
        place = f"{root}/{name}"
        try:
            if stat.S_ISDIR(os.lstat(place).st_mode):
                continue
            os.unlink(place)
        except FileNotFoundError:
            pass
        os.mkdir(place)


def write_names(root: str, config: GuestConfig) -> None:
    """The files in /etc by which the workload finds itself and others."""
    resolver = [f"nameserver {server}" for server in config.dns]
    if config.search:
        resolver.append(f"search {' '.join(config.search)}")
    _write(f"{root}/etc/resolv.conf", "".join(f"{line}\n" for line in resolver))
    hosts = [("localhost " + config.hostname, "127.0.0.1"), *config.hosts]
    _write(f"{root}/etc/hosts", "".join(f"{address} {name}\n" for name, address in hosts))
    _write(f"{root}/etc/hostname", f"{config.hostname}\n")


def _write(path: str, text: str) -> None:
    """A new file: not through a link, a pipe or a device that the image has there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        files.write_all(file, text.encode())
    finally:
        os.close(file)


def dress(root: str = ROOT) -> None:
    """The file systems that are the same for every workload."""
    kernel.mount("dev", f"{root}/dev", "tmpfs", data="mode=755")
    for name in ("pts", "shm"):
        os.mkdir(f"{root}/dev/{name}")
    for name, (major, minor) in _DEVICES.items():
        os.mknod(f"{root}/dev/{name}", stat.S_IFCHR, os.makedev(major, minor))
        os.chmod(f"{root}/dev/{name}", 0o666)
    for name, to in _LINKS.items():
        os.symlink(to, f"{root}/dev/{name}")
    kernel.mount("pts", f"{root}/dev/pts", "devpts", data="newinstance,ptmxmode=0666")
    kernel.mount("shm", f"{root}/dev/shm", "tmpfs", data="mode=1777")
    kernel.mount("/upper/tmp", f"{root}/tmp", flags=kernel.BIND)
    kernel.mount("run", f"{root}/run", "tmpfs", data="mode=755")
