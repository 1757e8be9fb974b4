"""Every case that sends frames or datagrams."""

from __future__ import annotations

from wgcell.prove.battery.case import Case
from wgcell.prove.battery.headers import HEADER_CASES
from wgcell.prove.battery.inbound import INBOUND_CASES
from wgcell.prove.battery.wireguard import WIREGUARD_CASES

__all__ = ["CASES"]

CASES: tuple[Case, ...] = (*HEADER_CASES, *WIREGUARD_CASES, *INBOUND_CASES)
