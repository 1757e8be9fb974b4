"""The guest's state, as the agent reports it; and the kernel's messages that are no change of
it."""

from __future__ import annotations

from wgcell.guest.agent import files, tools
from wgcell.guest.firewall import comparable

__all__ = ["changes", "drops", "is_expected", "look", "peers", "routes"]

_FIRST_LINK = "eth0: <BROADCAST,MULTICAST,NOARP,UP,LOWER_UP> mtu 1500 "
_MULTICAST = "multicast ff00::/8 dev wg0 table local "
_WG0 = "wg0: <POINTOPOINT,NOARP,UP,LOWER_UP> mtu {} "
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from wgcell.guest.agent.network import Namespaces


def look(namespaces: Namespaces) -> Mapping[str, str]:
    """The state: a text for each subject, in the protocol's order."""
    firewall = tools.output("nft", "list", "ruleset")
    links, here = interfaces("first", files.read("/proc/net/dev")), _routes()
    if namespaces.apart:
        devices, there, dump = namespaces.inside(
            lambda: (files.read("/proc/net/dev"), _routes(), _dump())
        )
        links += interfaces("workload", devices)
        here += there
    else:
        dump = _dump()
    return {
        "firewall": firewall.rstrip("\n"),
        "links": "\n".join(links),
        "routes": "\n".join(here),
        "wireguard": peers(dump),
    }


def _routes() -> list[str]:
    return routes(files.read("/proc/net/route")) + routes(files.read("/proc/net/ipv6_route"))


def _dump() -> str:
    return tools.output("wg", "show", "wg0", "dump")


def interfaces(where: str, devices: str) -> list[str]:
    """The names in a text of /proc/net/dev, whose first two lines are its head."""
    return [f"{where} {line.partition(':')[0].strip()}" for line in devices.splitlines()[2:]]


def routes(text: str) -> list[str]:
    """Device, network and mask of IPv4's lines; device, network and length of IPv6's.

    Routes that Linux adds by itself are left out, since some come late: IPv6 routes of lo, and
    multicast's network on every interface.
    """
    found = []
    for words in map(str.split, text.splitlines()):
        if len(words) == 11 and words[0] != "Iface":
            found.append(f"{words[0]} {words[1]} {words[7]}")
        elif len(words) == 10 and words[9] != "lo" and not words[0].startswith("ff00"):
            found.append(f"{words[9]} {words[0]} {words[1]}")
    return found


def peers(dump: str) -> str:
    """Of wg's dump: each peer's key, endpoint, networks and keepalive; no key that is secret."""
    rows = [line.split("\t") for line in dump.splitlines()[1:]]
    return "\n".join(f"{row[0]} {row[2]} {row[3]} {row[7]}" for row in rows)


def changes(asked: Mapping[str, str], seen: Mapping[str, str]) -> str:
    """All that stands if it is not what was asked for, counters aside; empty if it is."""
    if all(comparable(seen[what]) == comparable(text) for what, text in asked.items()):
        return ""
    return "".join(f"= {what}\n{comparable(text)}\n" for what, text in seen.items())


def drops(text: str) -> int:
    """Packets that the firewall's output chain has dropped, from nft's text; 0 without one."""
    for line in text.splitlines():
        words = line.split()
        if words[:2] == ["counter", "packets"] and len(words) == 5 and words[2].isdigit():
            return int(words[2])
    return 0


def is_expected(line: str, mtu: int) -> bool:
    """Whether a line of ``ip monitor`` reports the state that must be.

    The kernel reports a card that came up as much as a second late. And multicast's network of
    IPv6, which it puts over every interface by itself, disappears if an MTU falls below 1280 (RFC
    8200, 5), as a path may demand.
    """
    if line.removeprefix("Deleted ").startswith(_MULTICAST):
        return True
    if " master " in line:
        return False
    number, _, rest = line.partition(": ")
    return number.isdigit() and rest.startswith((_FIRST_LINK, _WG0.format(mtu)))
