"""A cell's start, step by step, and everything that it acquires.

::

    bounds, kill switch, link
        |
        +- gateway ---+
        +- relay -----+-- consent -- relay configured -- its socket handed over -- run
        +- machine ---+      (an address that consents,   (a relay behind its seal,
                              with the job's key)           then the first instruction)

The slow parts begin at once: the gateway and the relay, two interpreters that load their code, and
the machine, whose processors are stopped. The order of the other steps is a wall: an endpoint that
consents, a relay behind its seal, the guest's first instruction.

Every resource goes onto one `AsyncExitStack` as it is acquired, so a start that fails half way
leaves no descriptor, process or file once the stack is closed. An end in order ends the parts by
name first; each part then ends only once.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from enum import Enum
from types import MappingProxyType
from typing import Protocol

from wgcell.acquiring import acquired
from wgcell.cell import consent, endpoint, probe
from wgcell.cell.children import GatewayProcess, RelayProcess
from wgcell.cell.disks import FILES, Disks
from wgcell.cell.ending import in_thread
from wgcell.cell.events import EventLog
from wgcell.cell.host import HostContext
from wgcell.cell.job import GatewayAsked, Job, OnRogue
from wgcell.cell.outlets import OUTPUTS
from wgcell.cell.own_gateway import OwnGateway
from wgcell.cell.renewal import Renewal
from wgcell.cell.result import HostWalls
from wgcell.cell.roaming import first_consenting, fitting
from wgcell.cell.tasks import together
from wgcell.cell.wgquick import VpnConfig
from wgcell.errors import HostError
from wgcell.guest import protocol
from wgcell.guest.config import GuestConfig
from wgcell.net.routes import has_ipv6
from wgcell.relay import link
from wgcell.relay.control import Configure
from wgcell.relay.seal import unprivileged_id
from wgcell.vm import backends
from wgcell.vm.kill_switch import KillSwitch
from wgcell.vm.machine import Backend, Machine
from wgcell.vm.sandbox import cgroup
from wgcell.vm.sandbox.jail import Jail, find_jail
from wgcell.vm.spec import MachineSpec

__all__ = ["AGENT", "Hears", "Launch", "SpawnRelay", "Step", "guest_config"]

AGENT = "control"
"""The port over which the guest's agent speaks."""
PORTS = (AGENT, *protocol.STREAMS, OUTPUTS, protocol.SESSIONS)

SpawnRelay = Callable[..., Coroutine[object, None, RelayProcess]]


class Step(Enum):
    """Each step that acquires something, or hands it over."""

    BOUNDS = "the machine's cgroup"
    KILL_SWITCH = "the kill switch"
    LINK = "the link"
    SOCKET = "the relay's first socket"
    GATEWAY = "the gateway"
    RELAY = "the relay"
    DISKS = "the disks"
    JAIL = "the jail"
    MACHINE = "the machine"
    ATTESTED = "the machine's network card"
    CONSENT = "the endpoint's consent"
    CONFIGURED = "the relay's configuration"
    HANDED_OVER = "the relay's socket"
    RUNNING = "the guest's first instruction"


class Hears(Protocol):
    """The listener for the parts that a start has started, from that moment on."""

    def hear_gateway(self, gateway: GatewayProcess) -> None:
        """Listen to the cell's own gateway."""

    def hear_machine(self, machine: Machine) -> None:
        """Listen to the machine: its death, and what it says of itself."""


class Launch:
    """One cell's start. ``passed`` is called after each step, with all of it acquired.

    ``spawn_relay`` differs only in `wgcell.prove`, whose controls need the wall down.
    """

    def __init__(
        self,
        job: Job,
        host: HostContext,
        log: EventLog,
        *,
        spawn_relay: SpawnRelay = RelayProcess.spawn,
        backend: Backend | None = None,
        passed: Callable[[Step], None] = lambda step: None,
    ) -> None:
        self.stack = AsyncExitStack()
        self.kill_switch: KillSwitch | None = None
        self.gateway: GatewayProcess | None = None
        self.relay: RelayProcess | None = None
        self.machine: Machine | None = None
        self.limits = ""
        """The bounds on the machine's process, in words."""
        self._job = job
        self._host = host
        self._log = log
        self._spawn_relay = spawn_relay
        self._backend = backend or backends.default()
        self._passed = passed
        self._to_quit: dict[str, RelayProcess | GatewayProcess] = {}
        self._to_close: Machine | None = None
        self._cgroup: cgroup.Cgroup | None = None
        self._jail: Jail | None = None
        self._udp: socket.socket | None = None
        self._inputs: Mapping[str, object] = MappingProxyType({})

    # The steps, in order.

    async def prepare(self, hears: Hears) -> VpnConfig:
        """Start the gateway, the relay and the machine, its processors stopped; the tunnel."""
        self._bound()  # while there is no other process in our cgroup
        self._passed(Step.BOUNDS)
        if self._job.on_rogue is not OnRogue.FREEZE:
            # A machine that is to be frozen must outlive its rogue frame.
            self.kill_switch = KillSwitch()
            self.stack.callback(self.kill_switch.close)
        self._passed(Step.KILL_SWITCH)
        nic, card = socket.socketpair()
        self.stack.callback(nic.close)
        self.stack.callback(card.close)
        self._passed(Step.LINK)
        # The relay's, until there is one to an address that has consented.
        self._udp = endpoint.unconnected(4)
        self.stack.callback(self._udp.close)
        self._passed(Step.SOCKET)
        vpn, _, _ = await together(
            self._tunnel(hears), self._start_relay(nic, self._udp), self._start_machine(card, hears)
        )
        if self._inputs:
            self._log.append("inputs", **self._inputs)
        self._log.append("prepared", inputs=len(self._job.inputs), jail=self._jailed)
        return vpn

    async def obtain_consent(self, vpn: VpnConfig) -> tuple[Renewal, socket.socket, int]:
        """The way to the first address that consents, the socket to it, and the tunnel's MTU.

        Raises EndpointError and ConsentError.
        """
        log = self._log.log_bounded
        address, own = await first_consenting(self._host.addresses, vpn, log)
        self.stack.callback(own.close)
        if self._udp is not None:
            self._udp.close()
        self._passed(Step.CONSENT)
        loop = asyncio.get_running_loop()
        way = Renewal(address, str(own.getsockname()[0]), loop.time())
        return way, own, fitting(vpn, address, endpoint.path_mtu(own))

    async def connect(self, vpn: VpnConfig, own: socket.socket) -> tuple[RelayProcess, Machine]:
        """Give the relay its configuration, and when its seal stands, the socket that consented."""
        relay = self.relay
        if relay is None or self.machine is None:
            raise HostError("the cell ended while it was being prepared")
        await relay.configure(
            Configure(
                guest_public_key=consent.public_key(vpn.private_key),
                endpoint_public_key=vpn.peer_public_key,
                mtu=vpn.mtu,
                rate=self._job.rate,
                quota=self._job.quota,
            )
        )
        self._passed(Step.CONFIGURED)
        relay.replace_udp(own, met=False)
        self._passed(Step.HANDED_OVER)
        return relay, self.machine

    def require_walls(self) -> None:
        """Raises HostError if a wall is missing here and the provider wants them all."""
        walls = self.walls()
        self._log.append("walls", seal=walls.seal, jail=walls.jail, missing=walls.missing)
        self._require(walls.seal)

    async def run(self) -> None:
        """Let the guest's first instruction run."""
        if self.machine is None:
            raise HostError("the cell ended while it was being prepared")
        await self.machine.go()
        self._passed(Step.RUNNING)

    # What each step acquires.

    def _bound(self) -> None:
        """A cgroup for the machine, where one can be had; resource limits it has in any case."""
        place = cgroup.find()
        if isinstance(place, str):
            self.limits = f"resource limits ({place})"
            return
        bounds = cgroup.Bounds(self._job.memory, self._job.cpus)
        try:
            self.own_cgroup(cgroup.make(place, self._host.folder.id, bounds))
        except OSError as error:
            self.limits = f"resource limits ({error})"
        else:
            self.limits = f"cgroup ({', '.join(place.controllers)}), resource limits"

    async def _tunnel(self, hears: Hears) -> VpnConfig:
        """The tunnel to use; starts the cell's own gateway where there is no other."""
        if self._host.vpn is not None:
            return self._host.vpn
        protected = await asyncio.to_thread(endpoint.host_networks)
        own = OwnGateway.fresh(six=has_ipv6())
        gateway = await GatewayProcess.start(
            own.configuration(self._job.gateway or GatewayAsked(), tuple(protected)),
            self._host.gateway_engine,
        )
        self.own_gateway(gateway)
        self._passed(Step.GATEWAY)
        what = {"engine": gateway.engine, "reason": gateway.reason}
        self._log.append("gateway", address=gateway.host, port=gateway.port, **what)
        hears.hear_gateway(gateway)
        return own.tunnel(gateway.host, gateway.port)

    async def _start_relay(self, nic: socket.socket, udp: socket.socket) -> None:
        cell = self._host.folder.id
        self.own_relay(await self._spawn_relay(nic, udp, cell, self.kill_switch))
        self._passed(Step.RELAY)

    async def _start_machine(self, card: socket.socket, hears: Hears) -> None:
        """The machine in its jail, its processors stopped, its one network card looked at."""
        job, host = self._job, self._host
        device = self._backend.device(host.accelerator)
        disks, jail = await together(
            self._make_disks(),
            asyncio.to_thread(find_jail, unprivileged_id(host.folder.id), device),
        )
        self._jail = jail
        self._passed(Step.JAIL)
        self._require(sealed=True)
        spec = MachineSpec(
            accelerator=host.accelerator,
            kernel=host.image.kernel,
            initramfs=host.image.initramfs,
            cpus=job.cpus,
            memory=job.memory,
            disk=job.disk,
            drives=disks.drives,
            mac=link.GUEST_MAC_TEXT,
            nic=card,
            ports=PORTS,
        )
        machine = await self._backend.start(spec, jail, self._cgroup, self.kill_switch)
        self.own_machine(machine)
        self._passed(Step.MACHINE)
        card.close()
        disks.close()  # else a disk that is deleted takes its space until the stack's end
        hears.hear_machine(machine)
        await machine.attest()
        self._passed(Step.ATTESTED)

    async def _make_disks(self) -> Disks:
        folder = self._host.folder
        self.stack.callback(folder.discard, *FILES)
        rootfs = self._host.image.rootfs
        making = asyncio.to_thread(Disks.make, self._job, rootfs, folder.path)
        disks = await acquired(making, Disks.close)
        self.stack.callback(disks.close)
        self._inputs = disks.inputs
        self._passed(Step.DISKS)
        return disks

    # The parts that the cell has, and their end. Each part ends once, however often that is asked
    # for.

    def own_cgroup(self, made: cgroup.Cgroup) -> None:
        """The machine's cgroup is this cell's, to be removed."""
        self._cgroup = made
        self.stack.push_async_callback(self.remove_cgroup)

    def own_gateway(self, gateway: GatewayProcess) -> None:
        """The gateway is this cell's, to be ended."""
        self.gateway = self._to_quit["gateway"] = gateway
        self.stack.push_async_callback(self.quit, "gateway")

    def own_relay(self, relay: RelayProcess) -> None:
        """The relay is this cell's, to be ended."""
        self.relay = self._to_quit["relay"] = relay
        self.stack.callback(relay.close)
        self.stack.push_async_callback(self.quit, "relay")

    def own_machine(self, machine: Machine) -> None:
        """The machine is this cell's, to be killed."""
        self.machine = self._to_close = machine
        self.stack.push_async_callback(self.close_machine)

    async def close_machine(self) -> None:
        """Kill the machine if it lives, and let go of all that is left of it."""
        machine, self._to_close = self._to_close, None
        if machine is not None:
            machine.kill()
            try:
                await machine.reap()
            finally:
                await machine.close()

    async def remove_cgroup(self) -> None:
        """Remove the machine's cgroup. Raises OSError if it stays."""
        made, self._cgroup = self._cgroup, None
        if made is not None:
            await in_thread(made.remove)

    async def quit(self, name: str) -> None:
        """End the ``relay`` or the ``gateway``. Raises HostError if it did not end in order."""
        child = self._to_quit.pop(name, None)
        code = 0 if child is None else await child.quit()
        if code:
            how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
            raise HostError(f"it did not end in order ({how})")

    # The host's walls.

    @property
    def _jailed(self) -> bool:
        return self._jail is not None and self._jail.bwrap is not None

    def walls(self) -> HostWalls:
        """The host's walls that stand, and why the others don't."""
        relay, jail = self.relay, self._jail
        missing = {f"seal: {stage}": why for stage, why in (relay.missing if relay else {}).items()}
        if jail is not None and jail.missing:
            missing["jail"] = jail.missing
        return HostWalls(relay is not None and relay.sealed, self._jailed, missing)

    def _require(self, sealed: bool) -> None:
        if self._host.require_walls and not (sealed and self._jailed):
            raise HostError(
                f"this provider requires every wall: {dict(self.walls().missing)}",
                hint="wgcell doctor names the fix of each",
            )


def guest_config(job: Job, vpn: VpnConfig, mtu: int) -> GuestConfig:
    """The guest's configuration, but for the time, which it gets when it asks."""
    return GuestConfig(
        time=0,
        hostname=job.name,
        walls=job.guest_walls,
        private_key=vpn.private_key,
        peer_public_key=vpn.peer_public_key,
        preshared_key=vpn.preshared_key,
        addresses=tuple(map(str, vpn.addresses)),
        allowed_ips=tuple(map(str, vpn.allowed_ips)),
        mtu=mtu,
        keepalive=vpn.keepalive,
        dns=tuple(map(str, vpn.dns)),
        search=vpn.search,
        hosts=job.hosts,
        probe=str(probe.choose(vpn.addresses, vpn.allowed_ips, vpn.dns)),
        inputs=bool(job.inputs),
        command=job.command,
        environment=job.env,
        outputs=job.outputs,
        stdin=job.stdin,
        terminal=job.terminal,
    )
