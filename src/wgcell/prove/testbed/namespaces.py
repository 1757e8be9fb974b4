"""System calls for the testbed: network namespaces, capabilities for ip(8), and IPv6 off."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from wgcell import programs
from wgcell.errors import HostError
from wgcell.net import linux

__all__ = [
    "configure_links",
    "disable_ipv6",
    "enter",
    "inside",
    "new_network",
    "new_user_and_network",
    "why_refused",
]

# linux/capability.h: CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_ADMIN
_CAPABILITIES = (12, 13, 21)
_libc = ctypes.CDLL(None, use_errno=True)


def new_user_and_network() -> int:
    """Enter an empty network namespace, in a new user namespace unless this is root's process.

    Returns a descriptor of the network namespace. Raises OSError where it is forbidden, or where
    this process has more than one thread.
    """
    if os.geteuid() == 0:
        return new_network()
    user, group = os.geteuid(), os.getegid()
    _call("unshare", linux.CLONE_NEWUSER | linux.CLONE_NEWNET)
    # The user maps to itself: a child of this process runs as this user without a capability, as
    # it does outside.
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    return _current_network()


def new_network() -> int:
    """Enter an empty network namespace; its descriptor. Raises OSError."""
    _call("unshare", linux.CLONE_NEWNET)
    return _current_network()


def enter(network: int) -> None:
    """Enter the network namespace of the descriptor ``network``."""
    _call("setns", network, 0)


@contextlib.contextmanager
def inside(network: int, back: int) -> Iterator[None]:
    """Run the block in ``network``, then return to ``back``; both are descriptors.

    A socket that the block makes belongs to ``network`` for good.
    """
    enter(network)
    try:
        yield
    finally:
        enter(back)


def configure_links(commands: Sequence[str], inherited: int) -> None:
    """Run ip(8) with ``commands``, a line each; it inherits the descriptor ``inherited``.

    Raises HostError if ip is missing or a command fails.
    """
    program = programs.find("ip")
    if program is None:
        raise HostError("ip is not installed", hint="apt-get install iproute2")
    done = subprocess.run(
        [program, "-batch", "-"],
        input="\n".join(commands),
        capture_output=True,
        text=True,
        check=False,
        pass_fds=(inherited,),
        env=programs.environment(),
        preexec_fn=_keep_capabilities,
    )
    if done.returncode != 0:
        raise HostError(f"the decoy LAN could not be made: {done.stderr.strip()}")


def disable_ipv6() -> None:
    """Turn IPv6 off in this network namespace."""
    for which in ("all", "default"):
        setting = Path(f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6")
        if setting.exists():
            setting.write_text("1")


def why_refused() -> str:
    """Why this machine refuses a testbed's namespaces; empty if it does not.

    A child process tries it, because a user namespace can't be left.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            new_user_and_network()
            new_network()
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW):
                pass
        except OSError as error:
            os.write(writing, str(error).encode())
        os._exit(0)
    os.close(writing)
    why = os.read(reading, 4096).decode()
    os.close(reading)
    os.waitpid(child, 0)
    return why


def _call(name: str, *arguments: object) -> None:
    """Call libc's ``name``. Raises OSError."""
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _current_network() -> int:
    return os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _keep_capabilities() -> None:
    """Make the capabilities ambient, between fork and exec: they outlive an exec without root."""
    head = (ctypes.c_uint32 * 2)(linux.CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()
    _call("capget", head, sets)
    sets[2] |= sum(1 << number for number in _CAPABILITIES)
    _call("capset", head, sets)
    for number in _CAPABILITIES:
        _call("prctl", linux.PR_CAP_AMBIENT, linux.PR_CAP_AMBIENT_RAISE, number, 0, 0)
