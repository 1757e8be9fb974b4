"""The addresses of the one link that a cell has: the guest's, and the gateway's at its other end.

The guest's endpoint is `GATEWAY` at `PORT`; the guest never learns the real one.
"""

from __future__ import annotations

__all__ = ["GATEWAY", "GATEWAY_MAC", "GUEST", "GUEST_MAC", "PORT"]

GUEST_MAC = "02:77:67:00:00:02"
GATEWAY_MAC = "02:77:67:00:00:01"
GUEST = "192.168.64.2"
GATEWAY = "192.168.64.1"
PORT = 51820
