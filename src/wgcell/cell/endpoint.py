"""The endpoint is chosen by a stranger, so it is input: resolved once, vetted, then pinned.

A cell that could choose any address would make this machine send WireGuard-shaped datagrams into
its own LAN. `vet` refuses every address that is not plainly out on the Internet, in whatever IPv6
dress it comes, unless the provider listed it.
"""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterable, Sequence

from wgcell import programs
from wgcell.errors import EndpointError, HostError
from wgcell.home import config_path
from wgcell.net import addresses, linux
from wgcell.net.addresses import Address, Network
from wgcell.net.special import plain_forms, special

__all__ = [
    "connect",
    "host_networks",
    "parse_networks",
    "path_mtu",
    "plain_forms",
    "resolve",
    "shown",
    "tunnel_mtu",
    "unconnected",
    "vet",
    "vetted",
]

# linux/in.h, linux/in6.h; Python's socket names neither.
_IPV6_MTU = 24
_OUTER = {4: 20, 6: 40}
_UDP_HEADER = 8
# Header, counter and tag of a transport message (WireGuard paper, section 5.4.6).
_TRANSPORT_OVERHEAD = 32
_HINT = 'if you trust it: --allow-endpoint {address}, or allow_endpoints = ["{address}"] in {file}'


def resolve(host: str, port: int) -> tuple[Address, ...]:
    """Every address of ``host`` (a name or an address), in the resolver's order, which is that of
    RFC 6724: where this machine has no IPv4, IPv6 comes first.

    Blocks while it asks. Raises `EndpointError` if there is none.
    """
    if addresses.is_address(host):
        return (addresses.address(host),)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError) as error:
        raise EndpointError(
            f"the endpoint {host!r} does not resolve: {error}",
            hint="check Endpoint in the VPN configuration, and this machine's DNS",
        ) from None
    unique = dict.fromkeys(addresses.address(str(entry[4][0])) for entry in found)
    if not unique:
        raise EndpointError(f"the endpoint {host!r} has no address")
    return tuple(unique)


def vetted(
    addresses: Sequence[Address],
    port: int,
    allow: Sequence[Network] = (),
    host_networks: Sequence[Network] = (),
) -> tuple[Address, ...]:
    """Those of ``addresses`` that `vet` lets pass, in their order.

    Raises `EndpointError`, the first one's, if there is none.
    """
    refusals: list[EndpointError] = []
    passed: list[Address] = []
    for address in addresses:
        try:
            vet(address, port, allow, host_networks)
            passed.append(address)
        except EndpointError as error:
            refusals.append(error)
    if not passed:
        raise refusals[0] if refusals else EndpointError("the endpoint has no address")
    return tuple(passed)


def vet(
    address: Address,
    port: int,
    allow: Sequence[Network] = (),
    host_networks: Sequence[Network] = (),
) -> None:
    """Raise `EndpointError` unless a cell may have ``address:port`` as its endpoint.

    ``allow`` is the provider's word and wins over every range. ``host_networks`` are this host's
    own addresses and the networks it is in, see `host_networks`.
    """
    if port == 0:
        raise EndpointError(
            f"the endpoint {address} has port 0", hint="give the port its server listens on"
        )
    if not 0 < port < 65536:
        raise EndpointError(f"the endpoint's port {port} is outside 1-65535")
    if any(address in network for network in allow):
        return
    alone = f"{address}/{address.max_prefixlen}"
    hint = _HINT.format(address=alone, file=config_path())
    for form in plain_forms(address):
        shown = str(address) if form == address else f"{address} (which carries {form})"
        row = special(form)
        if row is not None and (row.carries is None or form != address):
            raise EndpointError(f"the endpoint {shown} is {row.reason}", hint=hint)
        for network in host_networks:
            if form in network:
                whose = "this host's own" if network.num_addresses == 1 else "in this host's LAN"
                raise EndpointError(f"the endpoint {shown} is {whose} ({network})", hint=hint)


def path_mtu(udp: socket.socket) -> int:
    """Bytes of the largest packet that the kernel would send unfragmented on a connected socket.

    The card's own until a router has answered with ICMP's "fragmentation needed" (RFC 1191) or
    "packet too big" (RFC 8201).
    """
    if udp.family is socket.AF_INET6:
        return udp.getsockopt(socket.IPPROTO_IPV6, _IPV6_MTU)
    return udp.getsockopt(socket.IPPROTO_IP, linux.IP_MTU)


def tunnel_mtu(path: int, version: int, most: int, *, carries_ipv6: bool) -> int:
    """The MTU of a tunnel whose messages are to fit into packets of ``path`` bytes; bytes.

    At most ``most``. Not below what every link must carry (RFC 791, RFC 8200 section 5): Linux
    takes IPv6 off an interface with less. Then the outer packets are fragmented.
    """
    fits = path - _OUTER[version] - _UDP_HEADER - _TRANSPORT_OVERHEAD
    return min(most, max(fits, 1280 if carries_ipv6 else 576))


def parse_networks(texts: Iterable[str], source: str) -> tuple[Network, ...]:
    """``allow_endpoints`` or ``--allow-endpoint`` as networks. Raises `EndpointError`."""
    networks: list[Network] = []
    for text in texts:
        try:
            networks.append(addresses.network(text.strip()))
        except ValueError as error:
            raise EndpointError(
                f"{source}: {error}; allowed: an address or CIDR such as 203.0.113.7/32"
            ) from None
    return tuple(networks)


def host_networks() -> tuple[Network, ...]:
    """This host's addresses (as /32 and /128) and the networks they are in.

    Asks ``ip -j addr``. Raises `HostError`: without an answer no endpoint can be vetted.
    """
    try:
        run = subprocess.run(
            [programs.path_of("ip"), "-j", "addr"],
            capture_output=True,
            check=True,
            timeout=10,
            text=True,
            env=programs.environment(),
        )
        return networks_of(json.loads(run.stdout))
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise HostError(
            f"can't list this machine's addresses: {error}", hint="apt install iproute2"
        ) from None


def networks_of(links: object) -> tuple[Network, ...]:
    """The pure half of `host_networks`: the output of ``ip -j addr``, read."""
    own: list[Network] = []
    neighbours: list[Network] = []
    for link in links if isinstance(links, list) else []:
        for entry in link.get("addr_info", []) if isinstance(link, dict) else []:
            if "local" not in entry:
                continue
            address = addresses.address(entry["local"])
            own.append(addresses.only(address))
            length = int(entry.get("prefixlen", address.max_prefixlen))
            # A point-to-point address names the far side; that is a neighbour, too.
            peer = entry.get("address", entry["local"])
            neighbours.append(addresses.network(f"{peer}/{length}", strict=False))
    return tuple(dict.fromkeys([*own, *(net for net in neighbours if net.prefixlen > 0)]))


def shown(address: Address, port: int) -> str:
    """``address:port``."""
    return addresses.written(str(address), port)


def unconnected(version: int) -> socket.socket:
    """A non-blocking UDP socket of IPv4 or IPv6, not yet connected. Raises `EndpointError`."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    try:
        return socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    except OSError as error:
        raise EndpointError(f"no socket for the endpoint: {error.strerror}") from None


def connect(address: Address, port: int, sock: socket.socket | None = None) -> socket.socket:
    """A non-blocking UDP socket connected to ``address:port``, or ``sock`` made that.

    Raises `EndpointError`; the socket is closed then.
    """
    sock = unconnected(address.version) if sock is None else sock
    try:
        sock.connect((str(address), port))
    except OSError as error:
        sock.close()
        raise EndpointError(
            f"this machine has no way to the endpoint {address}: {error.strerror or error}"
        ) from None
    return sock
