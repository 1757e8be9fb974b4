"""``wgcell image``: build, list and remove the guests' images."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

from wgcell.cli.terminal import console
from wgcell.guest import scripts
from wgcell.image import build as builder
from wgcell.image import store

__all__ = ["app", "build_with_progress"]

app = typer.Typer(no_args_is_help=True, help="Build, list and remove guest images.")


def build_with_progress(name: str) -> store.Image:
    """Build an image, saying what is being done and for how long."""
    started = time.monotonic()
    with console.status(f"building image {name}") as status:

        def progress(words: str) -> None:
            status.update(words)
            elapsed = time.monotonic() - started
            console.print(f"[dim]wgcell: {elapsed:5.1f} s[/] {words}")

        return builder.build(name, progress, scripts())


@app.command()
def build(name: Annotated[str, typer.Argument()] = "debian") -> None:
    """Build an image from Debian packages; nothing is done if nothing has changed."""
    made = build_with_progress(name)
    print(made.folder)


@app.command("ls")
def ls() -> None:
    """List the images on this machine."""
    print(f"{'IMAGE':<20} {'KERNEL':<28} {'SIZE':>9}")
    for image in store.list_images():
        size = sum(file.stat().st_size for file in (image.kernel, image.initramfs, image.rootfs))
        kernel = str(image.manifest.get("kernel_version", "?"))
        print(f"{image.name:<20} {kernel:<28} {size / 2**20:>6.0f} MiB")


@app.command()
def rm(name: Annotated[str, typer.Argument()]) -> None:
    """Remove an image."""
    store.remove(name)
    print(name, file=sys.stdout)
