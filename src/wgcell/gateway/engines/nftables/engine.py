"""The nftables engine: WireGuard of the kernel, or wireguard-go where it has none, and nftables.

One engine for two host contexts (see `host`): the machine's own network, and a private network
namespace. Every change of the policy has the same steps: policy, text, one atomic transaction, and
a check that the kernel has it. The table stands before the interface does, so the tunnel is never
open without the policy.

What rules can't do, this process does: the resolver inside the tunnel, which fills the sets of
names (see `sets`), and the proxy for services and redirected flows (see `connections` and
`datagrams`).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

from wgcell import programs
from wgcell.errors import HostError, PolicyError
from wgcell.gateway import words
from wgcell.gateway.engines.nftables import transactions
from wgcell.gateway.engines.nftables.commands import run_tool
from wgcell.gateway.engines.nftables.connections import TcpFlows
from wgcell.gateway.engines.nftables.cutting import cut, forwarded
from wgcell.gateway.engines.nftables.datagrams import UdpFlows
from wgcell.gateway.engines.nftables.device import Device
from wgcell.gateway.engines.nftables.host import HostContext
from wgcell.gateway.engines.nftables.listeners import Listeners
from wgcell.gateway.engines.nftables.observer import FlowObserver
from wgcell.gateway.engines.nftables.publishing import Listening, Publisher
from wgcell.gateway.engines.nftables.sets import NameSets, Peers, ServedPeer
from wgcell.gateway.engines.nftables.table import table_name
from wgcell.gateway.model.config import GatewayConfig, Peer
from wgcell.gateway.model.policy import Policy
from wgcell.gateway.model.published import Published
from wgcell.gateway.peer.events import Report
from wgcell.net.addresses import Address

__all__ = ["NftablesEngine"]

_TOOLS = {"ip": "iproute2", "nft": "nftables", "wg": "wireguard-tools"}


class NftablesEngine:
    """One gateway on ``host``. It is an `engines.engine.Engine`.

    ``listening`` are the sockets of the published ports of ``config``.
    ``preexec`` is called in wireguard-go before its exec, so that it can die with this process.
    ``give_up`` is called when the tunnel is gone for good.
    """

    def __init__(
        self,
        config: GatewayConfig,
        report: Report,
        host: HostContext,
        listening: Listening | None = None,
        *,
        preexec: Callable[[], None] | None = None,
        give_up: Callable[[], None] = lambda: None,
    ) -> None:
        self._config = config
        self._report = report
        self._host = host
        self._give_up = give_up
        self._device = Device(host.interface, preexec)
        self._peers: Peers = {}
        self._half_changed = False
        """A change of the interface has failed half way: the next one sets all of it."""
        self._name_sets = NameSets(self._nft, host.interface, report)
        self._tcp = TcpFlows(host, self._peers)
        self._udp = UdpFlows(host, self._peers) if host.proxies_udp else None
        self._listeners = Listeners(host, self._peers, self._tcp.accepted)
        self._observer = FlowObserver(host, self._peers)
        self._publisher = Publisher(host, self._peers, listening or {})

    async def start(self) -> None:
        """Be up, and report ``ready``. Raises HostError with a hint, and OSError; then nothing of
        the engine stays."""
        try:
            for tool, package in _TOOLS.items():
                if programs.find(tool) is None:
                    raise HostError(f"{tool} is missing", hint=f"apt-get install {package}")
            self._host.claim(self._config)
            self._host.run(self._set_up)
            await self._serve(self._config)
            if self._udp is not None:
                self._udp.start()
            self._observer.start()
            self._tcp.start()
            self._device.watch(self._daemon_died)
        except BaseException:
            await self.stop()
            raise
        host, port = self._host.place(self._config)
        ports = {peer.name: port for peer in self._config.peers}
        self._report(words.Ready(host, port, ports, self._host.name, reason=""))
        for place in await self._publisher.start(self._config):
            self._report(place)

    def _set_up(self) -> None:
        self._host.prepare(self._config, self._device)
        self._apply_rules(self._config)
        self._device.make()
        self._configure(self._config)

    async def apply(self, config: GatewayConfig) -> int:
        """Change to ``config``. Returns how many open flows that has ended.

        Raises HostError; then the former configuration holds. Raises OSError if a port is taken,
        and PolicyError if another is to be published. A peer that is gone is cut off. Changed rules
        hold for new flows and for open ones.
        """
        before = self._config
        if _published(config) != _published(before):
            raise PolicyError(
                "publish: ports are published from the start, or not at all",
                hint="start the gateway anew",
            )
        with self._host.changing(before, config):
            async with self._name_sets.paused:
                try:
                    self._host.run(self._apply_rules, config)
                    if self._half_changed or _without_rules(config) != _without_rules(before):
                        self._half_changed = True
                        self._host.run(self._configure, config)
                        self._half_changed = False
                except HostError:
                    self._take_back()
                    raise
                ended = await self._serve(config)
        if self._host.proxies_udp:
            return ended
        return ended + await self._cut_forwarded({*_local(before), *_local(config)})

    async def _cut_forwarded(self, local: Collection[Address]) -> int:
        """Cut what the kernel forwards and the rules do not allow. Returns how many flows.

        The rules hold already; a kernel that can't cut is reported.
        """
        try:
            open_ones = await forwarded(self._host, frozenset(self._peers))
            others = (flow for flow in open_ones if flow.address not in local)
            refused = [flow for flow in others if not self._observer.allows(flow)]
            self._observer.cut(refused)
            await cut(self._host, refused)
        except HostError as error:
            self._report(words.Fault(error.message))
            return 0
        return len(refused)

    def _take_back(self) -> None:
        """Return to the former rules after half of a change, or end.

        The rules of one policy with the names of the other may allow what neither does. What else
        was changed, the next change sets.
        """
        try:
            self._host.run(self._apply_rules, self._config)
        except HostError as error:
            self._report(words.Fault(f"no way back: {error.message}"))
            self._give_up()
        with contextlib.suppress(HostError):
            self._host.run(self._configure, self._config)

    def _apply_rules(self, config: GatewayConfig) -> None:
        """Replace the table, with the valid answers in the new sets, and check that it is there.

        It is one transaction, unless the kernel would not take one that long: then no new flow
        passes from the first to the last.
        """
        text, name = self._host.ruleset(config), self._host.interface
        carried = []
        for peer in config.peers:
            known = self._known(peer, config)
            if known is not None:
                carried += known.carried_over(peer)
        first, *parts = transactions.portions(text)
        elements = transactions.add_elements(name, carried, empty=True)
        if not parts and len(elements) <= 1:
            run_tool("nft", "-f", "-", text="".join([first, *elements]))
        else:
            shut = first + transactions.shut(name, router=self._host.router)
            for part in (shut, *parts, *elements, transactions.unshut(name)):
                run_tool("nft", "-f", "-", text=part)
        table = table_name(name).split()
        seen = json.loads(run_tool("nft", "-t", "-j", "list", "table", *table))
        wrong = transactions.difference(text, seen)
        if wrong:
            raise HostError(f"nftables did not take the policy: {wrong}")

    def _configure(self, config: GatewayConfig) -> None:
        with self._host.configuring(config, self._device):
            self._device.configure(config, self._host.settings(config), self._peers)

    async def _nft(self, text: str) -> None:
        await self._host.run_aside(run_tool, "nft", "-f", "-", text=text)

    async def _serve(self, config: GatewayConfig) -> int:
        """Serve the peers of ``config`` and no others. Returns how many flows that has ended."""
        served: Peers = {}
        ended = 0
        for peer in config.peers:
            known = self._known(peer, config)
            if known is None:
                known = ServedPeer(peer, config, self._report, self._name_sets)
            else:
                ended += known.admission.change(peer)
            served |= dict.fromkeys(peer.addresses, known)
        for address, one in self._peers.items():
            if served.get(address) is not one:
                ended += len(one.close())
        # All parts of the engine hold this very table.
        self._peers.clear()
        self._peers.update(served)
        await self._listeners.listen(config)
        self._config = config
        return ended

    def _known(self, peer: Peer, config: GatewayConfig) -> ServedPeer | None:
        """The served peer, if only the policy of ``peer`` differs from it."""
        known = self._peers.get(peer.address)
        same = (config.addresses, config.resolver) == (
            self._config.addresses,
            self._config.resolver,
        )
        if known is None or not same or known.admission.peer.addresses != peer.addresses:
            return None
        return known if known.admission.peer.name == peer.name else None

    def _daemon_died(self) -> None:
        self._device.forget()
        self._report(words.Fault("wireguard-go died, and with it the tunnel"))
        self._give_up()

    async def stop(self) -> None:
        """End all flows, and take away everything that was made."""
        self._device.forget()
        await self._publisher.close()
        self._listeners.close()
        if self._udp is not None:
            self._udp.close()
        self._tcp.close()
        self._observer.close()
        self._host.close(self._device)
        for served in dict.fromkeys(self._peers.values()):
            served.close()


def _without_rules(config: GatewayConfig) -> GatewayConfig:
    """What WireGuard, the interface and the host must know of ``config``."""
    peers = tuple(replace(peer, policy=Policy()) for peer in config.peers)
    return replace(config, peers=peers)


def _published(config: GatewayConfig) -> dict[str, tuple[Published, ...]]:
    return {peer.name: peer.published for peer in config.peers if peer.published}


def _local(config: GatewayConfig) -> Iterator[Address]:
    """The addresses in the tunnel that this machine itself has, or no flow may lead to."""
    yield from config.inside
    yield from (service.address for service in config.services)
