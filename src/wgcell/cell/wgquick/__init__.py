"""wg-quick files, read as wg-quick and wg read them.

A file may come from a stranger. So a line that would make wg-quick *run* a command, or change this
machine, is refused by its key: a hook with a command, ``Table`` with a number, ``SaveConfig =
true``. A line that can't act here is read and ignored: ``FwMark``, ``Table = off``, an empty hook.
A file that the real tools refuse is refused.

There are two steps, as there are two programs. `sections.strip` is wg-quick: it takes its own keys
out of [Interface]. `sections.Sections` is wg: it removes every space of the other lines, and knows
its own keys. Of a repeated key the last line counts; Address, DNS and AllowedIPs are added up.
``values`` parses one value at a time, ``parsing`` makes a `VpnConfig` of all of them.

Beyond that a cell needs a key, an address, and one peer with an endpoint and AllowedIPs. Refused,
though the tools accept them: IPv4 addresses in octal, hexadecimal or with parts left out, a prefix
length with a leading zero in Address, ports above 65535 or by a service's name, and scope ids
(``fe80::1%eth0``). Accepted, though the tools don't: a byte order mark.

An error shows no text of the file but numbers: any line may be a piece of a wrapped key.
"""

from wgcell.cell.wgquick.config import DEFAULT_KEEPALIVE, DEFAULT_MTU, MOST_NETWORKS, VpnConfig
from wgcell.cell.wgquick.parsing import load_vpn_config, parse_vpn_config

__all__ = [
    "DEFAULT_KEEPALIVE",
    "DEFAULT_MTU",
    "MOST_NETWORKS",
    "VpnConfig",
    "load_vpn_config",
    "parse_vpn_config",
]
