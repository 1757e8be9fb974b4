"""The guest's firewall: nftables rules that let one flow out and back, and nothing else.

It is loaded before there is a network card. Its text is also what the host compares the guest's
report with, so it is written as ``nft list ruleset`` prints it, counters aside. The agent uses
`comparable` too, and an import of `re` costs an emulated guest 70 ms: so there is none here.
"""

from __future__ import annotations

__all__ = ["LOG_PREFIX", "comparable", "ruleset"]

LOG_PREFIX = "ROGUE-ATTEMPT: "
"""The prefix of a drop's line on the console."""

ENDPOINT = "192.168.64.1"
PORT = 51820
_DIGITS = "0123456789"


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
    first, *others = text.split("packets ")
    return "packets ".join([first, *map(_uncounted, others)]).strip()


def _uncounted(text: str) -> str:
    """The counters behind the word ``packets``, with both at zero if there are two."""
    packets, found, rest = text.partition(" bytes ")
    behind = rest.lstrip(_DIGITS)
    counted = found and packets and not packets.strip(_DIGITS) and behind != rest
    return f"0 bytes 0{behind}" if counted else text
