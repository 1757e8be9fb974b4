"""The services of a policy: places in the tunnel behind which a target outside is. Pure.

A service is written as INSIDE and OUTSIDE. OUTSIDE is HOST:PORT, where the gateway reaches the
target. INSIDE is ADDRESS:PORT, an address in the tunnel that nobody has; or NAME or NAME:PORT: then
the gateway chooses the address, its resolver answers NAME.internal with it, and the port is the
target's unless one is given. ICANN has reserved ``.internal`` for private use, so no such name is
anybody's on the Internet.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass

from wgcell.errors import PolicyError
from wgcell.gateway.model.rules import is_name
from wgcell.net import addresses
from wgcell.net.addresses import Address

__all__ = ["DOMAIN", "Service", "ServiceAsked", "parse_service", "placed"]

DOMAIN = "internal"
"""Every service with a name has it below this one."""

_SERVICE = (
    "first an address in the tunnel that nobody has, or a name, then where one of yours is reached "
    "from here, as 10.99.0.5:80 = 127.0.0.1:8000, or db = 127.0.0.1:5432 for db.internal"
)
_SHOWN = 80
"""Characters of foreign text that a message quotes."""
_FIRST_FREE = 5
"""The first address of a service with a name, counted from the gateway's own."""


@dataclass(frozen=True, slots=True)
class Service:
    """An address and a port inside the tunnel, whose TCP flows go to a target outside."""

    address: Address
    port: int
    target_host: str
    target_port: int
    name: str = ""
    """As the resolver answers it, ``db.internal``; empty if it has none."""


@dataclass(frozen=True, slots=True)
class ServiceAsked:
    """A service as it is written: with a name it has no address yet."""

    address: Address | None
    name: str
    port: int
    target_host: str
    target_port: int


def parse_service(inside: str, outside: str) -> ServiceAsked:
    """The service at ``inside`` whose target is ``outside``. Raises `PolicyError`."""
    whole = f"{inside[:_SHOWN]!r} = {outside[:_SHOWN]!r}"
    target_host, target_port = _endpoint(outside, whole)
    if not addresses.is_address(target_host) and not is_name(target_host.lower()):
        raise PolicyError(f"service {whole}: {target_host!r} is not a host", hint=_SERVICE)
    if addresses.is_address(target_host) and addresses.address(target_host).is_unspecified:
        loopback = "[::1]" if ":" in target_host else "127.0.0.1"
        raise PolicyError(
            f"service {whole}: at {target_host} servers listen, but none can be reached there",
            hint=f"for one on this machine write {loopback}:{target_port}",
        )
    label = inside.strip().lower()
    if not _is_label(label.partition(":")[0]):
        host, port = _endpoint(inside, whole)
        try:
            address = addresses.address(host)
        except ValueError as error:
            raise PolicyError(f"service {whole}: {error}", hint=_SERVICE) from None
        return ServiceAsked(address, "", port, target_host, target_port)
    name, port = _endpoint(label, whole) if ":" in label else (label, target_port)
    return ServiceAsked(None, f"{name}.{DOMAIN}", port, target_host, target_port)


def _is_label(text: str) -> bool:
    """Whether ``text`` can stand before ``.internal``: one label of a name, in lower case."""
    return "." not in text and is_name(text)


def placed(
    asked: Iterable[ServiceAsked], taken: Mapping[Address, str], own: Address
) -> tuple[Service, ...]:
    """The services, each at an address. Raises `PolicyError` for one whose address is ``taken``.

    ``taken`` says whose each address is, as "the gateway's own". A service with a name gets the
    next free address behind ``own``, the gateway's; all ports of one name are at one address.
    """
    every = tuple(asked)
    written = {one.address for one in every if one.address is not None}
    free = _free(own, {*taken, *written})
    of_name: dict[str, Address] = {}
    found: dict[tuple[Address, int], Service] = {}
    for one in every:
        if one.address is None:
            address = of_name[one.name] = of_name.get(one.name) or next(free)
        else:
            address = one.address
        if address in taken:
            raise _taken(address, one, taken)
        place = address, one.port
        if place in found:
            raise PolicyError(f"two services are at {addresses.written(str(address), one.port)}")
        found[place] = Service(address, one.port, one.target_host, one.target_port, one.name)
    return tuple(found.values())


def _free(own: Address, taken: Container[Address]) -> Iterator[Address]:
    """Addresses behind ``own`` that are not ``taken``."""
    address = own + (_FIRST_FREE - 1)
    while True:
        address += 1
        if address not in taken:
            yield address


def _taken(address: Address, asked: ServiceAsked, taken: Mapping[Address, str]) -> PolicyError:
    beside = next(one for one in taken if one.version == address.version)
    free = next(
        one
        for number in range(_FIRST_FREE, _FIRST_FREE + len(taken) + 1)
        if (one := beside + number) not in taken
    )
    return PolicyError(
        f"{address} is {taken[address]} address in the tunnel",
        hint="take one that nobody has: "
        f"{addresses.written(str(free), asked.port)} = "
        f"{addresses.written(asked.target_host, asked.target_port)}",
    )


def _endpoint(text: str, whole: str) -> tuple[str, int]:
    try:
        host, port = addresses.host_and_port(text)
    except ValueError as error:
        raise PolicyError(f"service {whole}: {error}, with one port", hint=_SERVICE) from None
    if not port:
        raise PolicyError(f"service {whole}: port 0 is nobody's")
    return host, port
