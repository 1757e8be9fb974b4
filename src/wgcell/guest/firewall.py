"""The guest's firewall: nftables rules that let one flow out and back, and nothing else.

It is loaded before there is a network card. Its text is also what the host compares the guest's
report with, so it is written as ``nft list ruleset`` prints it, counters aside.
"""

from __future__ import annotations

import re

from wgcell.wire import link

__all__ = ["LOG_PREFIX", "comparable", "ruleset"]

LOG_PREFIX = "ROGUE-ATTEMPT: "
"""What a drop's line on the console begins with."""

ENDPOINT = link.GATEWAY
PORT = link.PORT


def ruleset(endpoint: str = ENDPOINT, port: int = PORT) -> str:
    """The rules for a link whose far end is ``endpoint`` and ``port``."""
    return f"""table inet wgcell {{
	chain input {{
		type filter hook input priority filter; policy drop;
		iifname "lo" accept
		iifname "eth0" ip saddr {endpoint} udp sport {port} udp dport {port} accept
	}}

	chain output {{
		type filter hook output priority filter; policy drop;
		oifname "lo" accept
		oifname "eth0" ip daddr {endpoint} udp sport {port} udp dport {port} accept
		counter packets 0 bytes 0
		limit rate 10/second log prefix "{LOG_PREFIX}"
	}}

	chain forward {{
		type filter hook forward priority filter; policy drop;
	}}
}}
"""


def comparable(text: str) -> str:
    """``text`` with its counters at zero: traffic is no change of the rules."""
    return re.sub(r"packets \d+ bytes \d+", "packets 0 bytes 0", text).strip()
