"""The endpoint is chosen by a stranger, so it is input: resolved once, vetted, then pinned.

A cell that could choose any address would make this machine send WireGuard-shaped datagrams into
its own LAN. `vet` refuses every address that is not plainly out on the Internet, in whatever IPv6
dress it comes, unless the provider listed it.
"""

from __future__ import annotations

import ipaddress
import json
import socket
import subprocess
from collections.abc import Iterable, Sequence

from wgcell import programs
from wgcell.errors import EndpointError, HostError

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

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# The first match gives the reason, so narrow ranges stand before the wide ones around them.
_REFUSED: tuple[tuple[Network, str], ...] = tuple(
    (ipaddress.ip_network(text), reason)
    for text, reason in (
        ("0.0.0.0/32", "unspecified"),
        ("0.0.0.0/8", "reserved (this network, RFC 791)"),
        ("10.0.0.0/8", "private (RFC 1918)"),
        ("100.64.0.0/10", "shared address space (CGNAT, RFC 6598)"),
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link-local"),
        ("172.16.0.0/12", "private (RFC 1918)"),
        ("192.0.0.0/24", "reserved (IETF protocol assignments)"),
        ("192.0.2.0/24", "reserved (documentation)"),
        ("192.88.99.0/24", "reserved (6to4 relay)"),
        ("192.168.0.0/16", "private (RFC 1918)"),
        ("198.18.0.0/15", "reserved (benchmarking)"),
        ("198.51.100.0/24", "reserved (documentation)"),
        ("203.0.113.0/24", "reserved (documentation)"),
        ("224.0.0.0/4", "multicast"),
        ("255.255.255.255/32", "broadcast"),
        ("240.0.0.0/4", "reserved"),
        ("::/128", "unspecified"),
        ("::1/128", "loopback"),
        ("::/96", "reserved (IPv4-compatible)"),
        ("64:ff9b:1::/48", "private (local NAT64)"),
        ("100::/64", "reserved (discard)"),
        ("2001:db8::/32", "reserved (documentation)"),
        ("2001::/32", "reserved (Teredo)"),
        ("fc00::/7", "private (unique local)"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "private (site-local)"),
        ("ff00::/8", "multicast"),
    )
)
# linux/in.h, linux/in6.h; Python's socket names neither.
_IP_MTU = 14
_IPV6_MTU = 24
_OUTER = {4: 20, 6: 40}
_UDP_HEADER = 8
# Header, counter and tag of a transport message (WireGuard paper, section 5.4.6).
_TRANSPORT_OVERHEAD = 32
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_COMPATIBLE = ipaddress.IPv6Network("::/96")
_MEND = "if you trust it: --allow-endpoint {address}, or allow_endpoints in the provider's config"


def resolve(host: str, port: int) -> tuple[Address, ...]:
    """Every address of ``host`` (a name or an address), in the resolver's order, which is that of
    RFC 6724: where this machine has no IPv4, IPv6 comes first.

    Blocks while it asks. Raises `EndpointError` if there is none.
    """
    try:
        return (ipaddress.ip_address(host),)
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError) as error:
        raise EndpointError(
            f"the endpoint {host!r} does not resolve: {error}",
            mend="check Endpoint in the VPN configuration, and this machine's DNS",
        ) from None
    addresses = [ipaddress.ip_address(str(entry[4][0])) for entry in found]
    unique = dict.fromkeys(addresses)
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


def plain_forms(address: Address) -> tuple[Address, ...]:
    """``address``, and the IPv4 address it carries: mapped, compatible, 6to4, NAT64."""
    if isinstance(address, ipaddress.IPv4Address):
        return (address,)
    inner = address.ipv4_mapped or address.sixtofour
    if inner is None and (address in _NAT64 or (address in _COMPATIBLE and int(address) > 1)):
        inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return (address,) if inner is None else (address, inner)


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
            f"the endpoint {address} has port 0", mend="give the port its server listens on"
        )
    if not 0 < port < 65536:
        raise EndpointError(f"the endpoint's port {port} is outside 1-65535")
    if any(address in network for network in allow):
        return
    mend = _MEND.format(address=f"{address}/{address.max_prefixlen}")
    for form in plain_forms(address):
        shown = str(address) if form == address else f"{address} (which carries {form})"
        for network, reason in _REFUSED:
            if form in network:
                raise EndpointError(f"the endpoint {shown} is {reason}", mend=mend)
        for network in host_networks:
            if form in network:
                whose = "this host's own" if network.num_addresses == 1 else "in this host's LAN"
                raise EndpointError(f"the endpoint {shown} is {whose} ({network})", mend=mend)


def path_mtu(udp: socket.socket) -> int:
    """Bytes of the largest packet that the kernel would send unfragmented on a connected socket.

    The card's own until a router has answered with ICMP's "fragmentation needed" (RFC 1191) or
    "packet too big" (RFC 8201).
    """
    if udp.family is socket.AF_INET6:
        return udp.getsockopt(socket.IPPROTO_IPV6, _IPV6_MTU)
    return udp.getsockopt(socket.IPPROTO_IP, _IP_MTU)


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
            networks.append(ipaddress.ip_network(text.strip()))
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
            f"can't list this machine's addresses: {error}", mend="apt install iproute2"
        ) from None


def networks_of(links: object) -> tuple[Network, ...]:
    """The pure half of `host_networks`: what ``ip -j addr`` printed, read."""
    own: list[Network] = []
    around: list[Network] = []
    for link in links if isinstance(links, list) else []:
        for entry in link.get("addr_info", []) if isinstance(link, dict) else []:
            if "local" not in entry:
                continue
            address = ipaddress.ip_address(entry["local"])
            own.append(ipaddress.ip_network(address))
            length = int(entry.get("prefixlen", address.max_prefixlen))
            # A point-to-point address names the far side; that is a neighbour, too.
            peer = entry.get("address", entry["local"])
            around.append(ipaddress.ip_network(f"{peer}/{length}", strict=False))
    return tuple(dict.fromkeys([*own, *(net for net in around if net.prefixlen > 0)]))


def shown(address: Address, port: int) -> str:
    """``address:port``, with the brackets that IPv6 wants (RFC 3986, section 3.2.2)."""
    return f"{address}:{port}" if address.version == 4 else f"[{address}]:{port}"


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
