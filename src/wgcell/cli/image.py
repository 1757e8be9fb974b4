"""``wgcell image``: build, list and remove the guests' images."""

from __future__ import annotations

import contextlib
import re
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Annotated

import typer

from wgcell.cli import completion
from wgcell.cli.terminal import console, out
from wgcell.display import one_line
from wgcell.errors import ImageError
from wgcell.guest import scripts
from wgcell.image import build as builder
from wgcell.image import store

__all__ = ["app", "build_with_progress"]

app = typer.Typer(no_args_is_help=True, help="Build, list and remove guest images.")


def build_with_progress(name: str, mirrors: Sequence[str] = ()) -> store.Image:
    """Build an image, and print each step with the time since the start.

    Without ``mirrors``, the lines of WGCELL_MIRROR are the mirrors. Raises ImageError.
    """
    named = [mirror.strip() for mirror in mirrors if mirror.strip()] or builder.mirrors()
    started = time.monotonic()
    with console.status(f"building image {name}") as status:

        def progress(step: str) -> None:
            status.update(step)
            elapsed = time.monotonic() - started
            console.print(f"[dim]wgcell: {elapsed:5.1f} s[/] {step}")

        with _signals_interrupt():
            return builder.build(valid_name(name), progress, scripts(), named)


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP interrupt as Ctrl-C does, once, so that the build cleans up."""

    def end(number: int, frame: object) -> None:
        for one in before:
            signal.signal(one, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {
        number: signal.getsignal(number)
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def valid_name(name: str) -> str:
    """``name``, if a folder may have it too. Raises ImageError."""
    if not _NAME.fullmatch(name) or ".." in name:
        raise ImageError(
            f"an image can't be called {name[:60]!r}", hint="allowed: 1-64 of a-z, 0-9 and . _ -"
        )
    return name


_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}", re.ASCII)


@app.command()
def build(
    name: Annotated[str, typer.Argument(autocompletion=completion.images)] = "debian",
    mirror: Annotated[
        list[str] | None,
        typer.Option(
            help="Where the packages come from: a URL, or a line of a sources.list; repeatable. "
            "Also WGCELL_MIRROR, one a line. Default: Debian's own."
        ),
    ] = None,
) -> None:
    """Build an image from packages of Debian 12, on any machine.

    Nothing is done if nothing has changed.
    """
    made = build_with_progress(name, mirror or ())
    out(str(made.folder))


@app.command("ls")
def ls() -> None:
    """List the images on this machine."""
    out(f"{'IMAGE':<20} {'KERNEL':<28} {'SIZE':>9}")
    for image in store.list_images():
        files = (image.kernel, image.initramfs, image.rootfs)
        size = sum(file.stat().st_size for file in files if file.exists())
        kernel = one_line(image.manifest.get("kernel_version", "?"), 28)
        out(f"{one_line(image.name):<20} {kernel:<28} {size / 2**20:>6.0f} MiB")


@app.command()
def rm(name: Annotated[str, typer.Argument(autocompletion=completion.images)]) -> None:
    """Remove an image."""
    store.remove(valid_name(name))
    out(name)
