"""The rules of a running gateway, as orders change them. Pure: time is an argument.

A *change* is a rule that an order puts before all others, the latest first. It holds until the
gateway ends, or until a moment of the gateway's clock. The rules that the gateway was started with
never change: they stand behind the changes, and decide again when a change is over.

The latest order about the same host, ports and protocol replaces the earlier ones, with one
exception: an ``allow`` leaves an earlier ``deny`` behind it, which holds again when the ``allow``
is over.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from wgcell.errors import PolicyError
from wgcell.gateway.model.config import GatewayConfig
from wgcell.gateway.model.rules import Action, Rule
from wgcell.gateway.model.services import Service

__all__ = ["MOST_CHANGES", "Change", "Changes"]

MOST_CHANGES = 256
"""Each of them is looked at for each flow, and is a line of the kernel's rules."""


@dataclass(frozen=True, slots=True)
class Change:
    """One rule that an order has put before the others."""

    rule: Rule
    until: float | None = None
    """When it is over, in seconds of the gateway's clock; None: with the gateway."""
    who: int = 0
    """The user that ordered it: a uid."""

    def is_over(self, now: float) -> bool:
        """Whether it holds no longer."""
        return self.until is not None and self.until <= now


@dataclass(frozen=True, slots=True)
class Changes:
    """The changes in force, the latest first."""

    latest_first: tuple[Change, ...] = ()

    def added(self, change: Change) -> Changes:
        """With one more. Raises `PolicyError` if there are too many."""
        kept = tuple(one for one in self.latest_first if not _replaces(change, one))
        if len(kept) >= MOST_CHANGES:
            raise PolicyError(
                f"{MOST_CHANGES} changes are in force already",
                hint="a deny of the same host and port replaces an allow that is not needed",
            )
        return Changes((change, *kept))

    def without_ended(self, now: float) -> tuple[Changes, tuple[Change, ...]]:
        """Those that hold at ``now``; and those that are over, the earliest first."""
        over = [one for one in reversed(self.latest_first) if one.is_over(now)]
        return Changes(tuple(one for one in self.latest_first if not one.is_over(now))), tuple(over)

    @property
    def next_end(self) -> float | None:
        """When the next one is over; None: none ever is."""
        ends = [one.until for one in self.latest_first if one.until is not None]
        return min(ends, default=None)

    def over(self, config: GatewayConfig) -> GatewayConfig:
        """``config`` with the changes before the rules of each peer.

        A service that a change denies is taken out.
        """
        if not self.latest_first:
            return config
        rules = tuple(one.rule for one in self.latest_first)
        services = tuple(one for one in config.services if self._leaves(one))
        peers = tuple(
            replace(
                peer,
                policy=replace(peer.policy, rules=rules + peer.policy.rules, services=services),
            )
            for peer in config.peers
        )
        return replace(config, services=services, peers=peers)

    def _leaves(self, service: Service) -> bool:
        """Whether no change denies ``service``; the first that is about it decides."""
        about = (
            one.rule.action
            for one in self.latest_first
            if one.rule.covers(service.port, "tcp") and _is_about(one.rule, service)
        )
        return next(about, Action.ALLOW) is Action.ALLOW


def _replaces(later: Change, earlier: Change) -> bool:
    rule, other = later.rule, earlier.rule
    same = (rule.network, rule.name, rule.first_port, rule.last_port) == (
        other.network,
        other.name,
        other.first_port,
        other.last_port,
    )
    if not same or rule.protocol not in ("", other.protocol):
        return False
    return rule.action is Action.REFUSE or other.action is Action.ALLOW


def _is_about(rule: Rule, service: Service) -> bool:
    if rule.network is not None:
        return service.address in rule.network
    return rule.any or (bool(service.name) and rule.names(service.name))
