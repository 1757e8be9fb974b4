"""Makes the guests of `sabotage`: files over the image's initramfs, and a forged report."""

from __future__ import annotations

import base64
from importlib.resources import files

from wgcell.guest import protocol
from wgcell.guest.firewall import ruleset
from wgcell.prove.battery.sabotage import Sabotage

__all__ = ["forged_report", "newc", "overlay"]


def forged_report(endpoint_key: bytes, allowed: str, keepalive: int) -> str:
    """A line of the control port: the report that a guest with the stock image would send."""
    links = "first eth0\nfirst lo\nworkload lo\nworkload wg0"
    key = base64.b64encode(endpoint_key).decode()
    texts = {
        "firewall": ruleset(),
        "links": links,
        "routes": "eth0 0040A8C0 FCFFFFFF\nwg0 00000000 00000000",
        "wireguard": f"{key} 192.168.64.1:51820 {allowed} {keepalive}",
    }
    whole = "".join(f"= {name}\n{texts[name].rstrip()}\n" for name in protocol.REPORTS)
    return f"report {base64.b64encode(whole.encode()).decode()}\n"


def overlay(sabotage: Sabotage, forged: str) -> bytes:
    """The cpio archive (newc) behind the image's initramfs: its files replace the image's."""
    stock = files("wgcell.guest").joinpath("init").read_text()
    if sabotage.patch:
        kept = [line for line in stock.splitlines() if not line.lstrip().startswith(sabotage.patch)]
        stock = "\n".join(kept) + "\n"
    first = sabotage.instead
    if not first:
        beside = f"{{\n{sabotage.beside}\n}} &\n" if sabotage.beside else ""
        # A shell starts a background job only if it can open /dev/null.
        null = "busybox mknod /dev/null c 1 3"
        first = f"export PATH=/bin\n{null}\n{beside}exec /bin/sh /stock"
    made = {"init": f"#!/bin/sh\n{first}\n", "stock": stock, "forged": forged}
    made |= dict(sabotage.files)
    return newc({name: text.encode() for name, text in made.items()})


def newc(contents: dict[str, bytes]) -> bytes:
    """A cpio archive of files by name."""
    entries = [(name, data, 0o100755) for name, data in contents.items()]
    archive = b""
    for name, data, mode in (*entries, ("TRAILER!!!", b"", 0)):
        numbers = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08x" % number for number in numbers) + name.encode() + b"\0"
        archive += head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)
    return archive
