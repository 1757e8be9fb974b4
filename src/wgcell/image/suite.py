"""The one Debian suite that images are made from, whatever this machine runs, and where it is.

Kernel and root both come from `SUITE` through mmdebstrap, which has apt lists of its own: the
host's apt is asked for nothing but the address of a Debian mirror, so Debian 12, Debian 13 and
Ubuntu build the same image. Signatures are checked with the keys of ``debian-archive-keyring``.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass

from wgcell import programs
from wgcell.display import one_line
from wgcell.errors import ImageError

__all__ = [
    "KERNEL_FOLDER",
    "KEYRING",
    "SUITE",
    "Mirrors",
    "fetch_kernel",
    "mirrors",
    "parse_mirrors",
]

SUITE = "bookworm"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
KERNEL_FOLDER = "wgcell-kernel"
_ADDRESS = re.compile(r"(?:https?://|(?:file|copy):/)[!-+\--Z\\^-~]+", re.ASCII)
"""No space, comma or ``[``: it becomes a word of a line for apt, where brackets hold options."""
_TARGETS = ("indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)", "Created-By: Packages")


@dataclass(frozen=True, slots=True)
class Mirrors:
    """Where the archive and its security updates are, as apt takes it; both empty: mmdebstrap's."""

    archive: str = ""
    security: str = ""

    def sources(self) -> tuple[str, ...]:
        """Lines for apt, one a suite (sources.list(5)); none where mmdebstrap knows better."""
        places = (
            (self.archive, SUITE),
            (self.archive, f"{SUITE}-updates"),
            (self.security, f"{SUITE}-security"),
        )
        return tuple(f"deb [signed-by={KEYRING}] {at} {suite} main" for at, suite in places if at)


def mirrors(asked: str = "") -> Mirrors:
    """The mirrors ``asked`` for, else WGCELL_MIRROR's, else this Debian's own, else Debian's.

    Raises ImageError if what is asked for is no address.
    """
    if asked := asked or os.environ.get("WGCELL_MIRROR", ""):
        return parse_mirrors(asked)
    return _of_targets(_host_targets())


def parse_mirrors(asked: str) -> Mirrors:
    """``ARCHIVE`` or ``ARCHIVE,SECURITY``. Raises ImageError.

    An archive whose address ends in ``debian`` has its security updates beside it, as Debian's own
    mirrors do; elsewhere they must be named, so that none are missed unsaid.
    """
    archive, comma, security = asked.partition(",")
    if not comma and (beside := re.sub(r"/debian/?$", "/debian-security", archive)) != archive:
        security = beside
    if not all(_ADDRESS.fullmatch(address) for address in (archive, security)):
        raise ImageError(
            f"{one_line(asked, 200)} is no mirror",
            mend="--mirror http://HOST/debian, or --mirror ARCHIVE,SECURITY",
        )
    return Mirrors(archive, security)


def _host_targets() -> str:
    """The archives that this machine's apt knows; empty where there is no apt, or it knows none."""
    try:
        done = subprocess.run(
            [programs.path_of("apt-get"), *_TARGETS],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def _of_targets(targets: str) -> Mirrors:
    """The first archive of Debian's own origin and of its security updates, if it has both."""
    found: dict[str, str] = {}
    for line in targets.splitlines():
        origin, _, rest = line.partition("|")
        label, _, address = rest.partition("|")
        if origin == "Debian" and _ADDRESS.fullmatch(address):
            found.setdefault(label, address)
    archive, security = found.get("Debian", ""), found.get("Debian-Security", "")
    return Mirrors(archive, security) if archive and security else Mirrors()


def fetch_kernel(package: str) -> str:
    """A hook of mmdebstrap's: the kernel that ``package`` depends on, as `KERNEL_FOLDER`/*.deb.

    The host's apt runs it, with the new root's configuration and lists (mmdebstrap(1), "HOOKS").
    """
    depends = f"apt-cache depends --important {package}"
    return "; ".join(
        (
            'set -e; export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"',
            f'mkdir "$1/{KERNEL_FOLDER}"; cd "$1/{KERNEL_FOLDER}"',
            f"kernel=$({depends} | sed -n 's/^ *Depends: *//p' | head -n 1)",
            'test -n "$kernel"; apt-get download -q "$kernel"',
        )
    )
