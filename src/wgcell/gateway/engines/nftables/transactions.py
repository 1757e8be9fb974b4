"""The text of a table in transactions that the kernel takes, and a check that it did. Pure.

A transaction is one netlink message. A process that is not root may send at most net.core.wmem_max
bytes in a message: 212,992 by default. Longer texts go in several transactions. Between the first
and the last of them the table is not complete, so `shut` drops all new flows meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from wgcell.gateway.engines.nftables.table import chain, table_name
from wgcell.net.addresses import Address

__all__ = ["MOST_ELEMENTS", "MOST_TEXT", "add_elements", "difference", "portions", "shut", "unshut"]

MOST_ELEMENTS = 300
"""Elements of a transaction: one that changes an element takes some 500 bytes."""
MOST_TEXT = 24_000
"""Characters of a transaction that makes a table: the kernel's form takes some four times as many
bytes."""
_SHUT = ("shut", "shut_forward")


def add_elements(
    interface: str, elements: Sequence[tuple[str, Address, float]], *, empty: bool = False
) -> list[str]:
    """The transactions that put addresses into sets, at most `MOST_ELEMENTS` in each.

    An element is a set, an address, and the seconds until it leaves the set. ``empty`` says that
    the sets hold nothing yet.
    """
    table = table_name(interface)
    parts = []
    for begin in range(0, len(elements), MOST_ELEMENTS):
        lines = []
        for name, address, seconds in elements[begin : begin + MOST_ELEMENTS]:
            element = f"element {table} {name} {{ {address} timeout {max(1, round(seconds))}s }}"
            plain = f"element {table} {name} {{ {address} }}"
            # Adding an element that exists keeps its old timeout. Deleting it and adding it again
            # sets the new one; the first "add" is there because "delete" fails without an element.
            lines += [] if empty else [f"add {element}", f"delete {plain}"]
            lines.append(f"add {element}")
        parts.append("\n".join([*lines, ""]))
    return parts


def shut(interface: str, *, router: bool = True) -> str:
    """Chains that drop every new flow from the tunnel or into it.

    They stand while a table is made in several transactions, when a rule that denies may not be
    there yet. A dropped peer tries again. ``router`` has the meaning of `forwarding.ruleset`.
    """
    into = f'oifname "{interface}" ct state new drop'
    hooks = {
        "prerouting priority mangle - 2": f'iifname "{interface}" ct state new drop',
        "forward priority filter - 1": into if router else "ct state new drop",
    }
    lines = [f"table {table_name(interface)} {{"]
    for name, (hook, rule) in zip(_SHUT, hooks.items(), strict=True):
        lines += chain(name, [f"type filter hook {hook}; policy accept;", rule])
    return "\n".join([*lines, "}", ""])


def unshut(interface: str) -> str:
    """Takes the chains of `shut` away."""
    return "".join(f"delete chain {table_name(interface)} {name}\n" for name in _SHUT)


def portions(text: str) -> list[str]:
    """The text of a table in transactions of at most about `MOST_TEXT` characters.

    The first takes the old table away, each of the others adds to the new one.
    """
    if len(text) <= MOST_TEXT:
        return [text]
    lines = text.splitlines()
    opening = lines[2]
    found, part, size = ["\n".join([*lines[:3], "}", ""])], [], 0
    head: list[str] = []
    for line in lines[3:-1]:
        part.append(line)
        size += len(line) + 1
        if line.startswith("    set ") or line.startswith("    chain "):
            head = [line]
        elif line == "    }":
            head = []
        # A set is short and is never cut. A chain may be cut, and goes on under its own name.
        if size > MOST_TEXT and (not head or head[0].startswith("    chain ")):
            found.append("\n".join([opening, *part, *(["    }"] if head else []), "}", ""]))
            part = list(head)
            size = 0
    return [*found, "\n".join([opening, *part, "}", ""])]


def difference(text: str, seen: Mapping[str, object]) -> str:
    """What the table lacks of its ``text``; empty if it lacks nothing.

    ``seen`` is the output of ``nft -t -j list table``. Compared are the default policies and the
    number of rules of each chain.
    """
    chains = {chain.get("name"): chain for chain in _listed(seen, "chain")}
    for name in ("input", "forward"):
        if chains.get(name, {}).get("policy") != "drop":
            return f"chain {name} does not drop by default"
    counted: dict[str, int] = {}
    for rule in _listed(seen, "rule"):
        name = str(rule.get("chain"))
        counted[name] = counted.get(name, 0) + 1
    for name, count in _rules_of(text).items():
        if counted.get(name, 0) != count:
            return f"chain {name} has {counted.get(name, 0)} rules, not {count}"
    return ""


def _listed(seen: Mapping[str, object], kind: str) -> Iterator[Mapping[str, object]]:
    """What the kernel has of a ``kind``: nft lists objects, each below its kind's name."""
    items = seen.get("nftables")
    for item in items if isinstance(items, list) else ():
        found = item.get(kind) if isinstance(item, dict) else None
        if isinstance(found, dict):
            yield found


def _rules_of(text: str) -> dict[str, int]:
    """The number of rules of each chain in the text of a table."""
    expected: dict[str, int] = {}
    current = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("chain "):
            current = line.split()[1]
            expected[current] = 0
        elif line == "}":
            current = ""
        elif current and not line.startswith("type "):
            expected[current] += 1
    return expected
