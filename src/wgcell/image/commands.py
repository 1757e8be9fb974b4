"""Runs the programs that an image build needs. No program outlives the build that started it.

`run` gives each program a session of its own. If the build is interrupted meanwhile, the whole
session gets SIGTERM, has 15 seconds to remove its files, and then gets SIGKILL.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from wgcell import programs
from wgcell.errors import ImageError

__all__ = ["piped", "run"]

_CLEAN_UP = 15.0
"""Seconds that a program has between SIGTERM and SIGKILL. mmdebstrap removes its chroot then."""
_KEPT = (
    *("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy"),
    *("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("APT_CONFIG", "HOME", "SOURCE_DATE_EPOCH", "TMPDIR"),
)
"""Variables that apt and mmdebstrap read: the way to the mirror, and where to work."""
_NETWORK_FAILURES = {
    # A pattern in the output of apt, mmdebstrap or curl; its cause, and what to do.
    "resolv": "the mirror's name could not be resolved: check this machine's DNS and its network "
    "(getent hosts NAME), then build again",
    "Could not connect|Unable to connect|Connection refused|Network is unreachable|timed out": "the"
    " mirror can't be reached: check this machine's network, or its proxy (http_proxy)",
}


def run(
    argv: Sequence[str],
    hint: str = "",
    cwd: Path | None = None,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Run a program to its end; its standard output.

    ``hint`` is the hint of the error, unless the output shows a failure of the network.
    ``variables`` are added to the program's environment. Raises ImageError with the last eight
    lines of the output if the program is missing or fails.
    """
    process = None
    try:
        with _signals_deferred():
            process = subprocess.Popen(
                _with_path(argv),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                cwd=cwd,
                env=programs.environment(*_KEPT, **variables),
                start_new_session=True,
            )
        out, err = process.communicate()
    except FileNotFoundError:
        raise ImageError(
            f"{argv[0]} is not installed", hint=hint or f"apt-get install {argv[0]}"
        ) from None
    except BaseException:
        if process is not None:
            _end(process)
        raise
    if process.returncode != 0:
        lines = (err or out).strip().splitlines()
        shown = "\n  ".join(lines[-8:])
        raise ImageError(
            f"{argv[0]} failed (exit code {process.returncode}):\n  {shown}",
            hint=_network_hint(err + out) or hint,
        )
    return out


def piped(argv: Sequence[str], data: bytes, hint: str) -> bytes:
    """Pass ``data`` through a program; its output. Raises ImageError."""
    try:
        done = subprocess.run(
            _with_path(argv),
            input=data,
            capture_output=True,
            check=False,
            env=programs.environment(),
        )
    except FileNotFoundError:
        raise ImageError(f"{argv[0]} is not installed", hint=hint) from None
    if done.returncode != 0:
        raise ImageError(f"{argv[0]} failed: {done.stderr.decode('utf-8', 'replace').strip()}")
    return done.stdout


def _with_path(argv: Sequence[str]) -> list[str]:
    """``argv`` with the path of its program."""
    path = argv[0] if "/" in argv[0] else programs.path_of(argv[0])
    return [path, *argv[1:]]


@contextmanager
def _signals_deferred() -> Iterator[None]:
    """Defer SIGINT, SIGTERM and SIGHUP to the end of the block.

    A signal inside Popen would raise before the caller has the process, which would then live on.
    """
    deferred: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield  # Python runs no signal handler in this thread
        return
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    handlers = {number: handler for number, handler in before.items() if callable(handler)}
    for number in handlers:
        signal.signal(number, lambda number, frame: deferred.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for came in deferred:
        signal.raise_signal(came)


def _network_hint(output: str) -> str:
    """The hint for a failure of the network; empty if ``output`` shows none."""
    found = (
        hint
        for pattern, hint in _NETWORK_FAILURES.items()
        if re.search(pattern, output, re.IGNORECASE)
    )
    return next(found, "")


def _end(process: subprocess.Popen[str]) -> None:
    """End the session of ``process``: SIGTERM, then SIGKILL."""
    for number, patience in ((signal.SIGTERM, _CLEAN_UP), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=patience)
            return
