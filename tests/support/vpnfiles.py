"""Keys as text, and wg-quick files."""

from __future__ import annotations

import base64

PRIVATE, PUBLIC, SHARED, OTHER = (
    base64.b64encode(bytes(range(start, start + 32))).decode() for start in (0, 32, 64, 96)
)
"""No two are alike, and none is made for one run: they may stand in a test's name."""


def vpn_file(
    *,
    private: str = PRIVATE,
    public: str = PUBLIC,
    address: str = "10.9.0.2/32",
    allowed: str = "0.0.0.0/0",
    endpoint: str = "192.168.1.9:51820",
    interface: str = "",
    peer: str = "",
) -> str:
    """A file of a requester's; ``interface`` and ``peer`` are more lines of the two sections."""
    lines = ["[Interface]", f"PrivateKey = {private}", interface]
    lines[2:2] = [f"Address = {address}"] if address else []  # wg alone takes none
    lines += ["[Peer]", f"PublicKey = {public}", peer, f"AllowedIPs = {allowed}"]
    lines += [f"Endpoint = {endpoint}" if endpoint else ""]
    return "".join(f"{line}\n" for line in lines if line)
