"""Starts, verifies, watches and ends one cell.

Every task here only *reports*: it puts a ``Cause`` with its reason on one queue. One loop takes
them off, asks ``states.step`` what each means, and acts. So whatever happens first decides, and
the walk through a cell's life is the body of ``Supervisor.run`` and ``_live`` read downwards.

The host never believes the guest that all is well: the workload is released only after the relay
has *seen* a handshake by the guest and transport both ways. It does believe the guest that
something is wrong.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import math
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

from wgcell import programs
from wgcell.cell import archive, consent, endpoint, listening, outputs, probe, renewal
from wgcell.cell.children import GatewayProcess, RelayProcess, b64
from wgcell.cell.ending import EndStep, in_thread, run_all, words
from wgcell.cell.events import Event, EventLog
from wgcell.cell.folder import CappedLog, Folder
from wgcell.cell.inputs import pack
from wgcell.cell.job import GatewayAsked, Job, OnRogue
from wgcell.cell.renewal import Renewal
from wgcell.cell.states import EXIT_CODES, TRANSITIONS, Cause, Outcome, State, settled, step
from wgcell.cell.streams import ArrivingOutputs, Sink, Stream
from wgcell.cell.unpacking import Unpacking
from wgcell.cell.vouched import file_digest, job_digests, record_digests
from wgcell.cell.wgquick import VpnConfig
from wgcell.errors import (
    ConsentError,
    EndpointError,
    GuestError,
    HostError,
    LaunchError,
    StateError,
    WgcellError,
)
from wgcell.gateway import control as gateway_words
from wgcell.gateway.keys import decode_key, generate_private_key, public_key
from wgcell.gateway.way import has_ipv6
from wgcell.guest import protocol
from wgcell.guest.walls import Wall
from wgcell.image.store import Image
from wgcell.net.addresses import Address
from wgcell.relay import control as said
from wgcell.relay import evidence, link
from wgcell.relay.seal import unprivileged_id
from wgcell.vm.kill_switch import KillSwitch
from wgcell.vm.qemu.accelerator import host_tsc_khz
from wgcell.vm.qemu.argv import Accelerator, Drive, MachineSpec, kernel_command_line
from wgcell.vm.qemu.boot import Boot
from wgcell.vm.qemu.process import KVM_DEVICE, Machine, find_qemu
from wgcell.vm.sandbox import cgroup
from wgcell.vm.sandbox.jail import Jail, find_jail

__all__ = ["EMBEDDED_GATEWAY", "Supervisor", "Surroundings"]

VERIFY_TIMEOUT = {Accelerator.KVM: 30.0, Accelerator.TCG: 120.0}
"""Seconds from QEMU's start to a verified tunnel, or the cell ends."""

TUNNEL_TIMEOUT = 180.0 + 20.0
"""Seconds without a valid message of the endpoint: REJECT_AFTER_TIME and a margin."""

HEARTBEAT_TIMEOUT = {Accelerator.KVM: 20.0, Accelerator.TCG: 60.0}
"""Seconds without a word of the guest's agent, which speaks every 5 s."""

STOPPED = 5.0
"""Seconds between two looks, a second apart, that mean: the host was suspended, or we stopped."""

CLOCK_INTERVAL = 60.0
CLOCK_JUMP = 0.5
"""Seconds between two words to the guest about the time; and by how much this host's clock must
have jumped against CLOCK_MONOTONIC, by a suspend or a step, for one at once."""

RESULTS_STALL = 60.0
"""Seconds in which no byte of what the guest still owes arrives, or the results are lost."""

RESULTS_LEAST = 256 * 1024
RESULTS_START = 300.0
"""Bytes a second, on average, that results must come home with, after so many seconds: a guest
can't hold a cell open for good by sending a byte a minute. The time that our own reader takes does
not count."""

LAST_BYTES = 3.0
"""Seconds for what is on its way to the reader when a cell ends that did not complete."""

KILL_PATIENCE = {Accelerator.KVM: 5.0, Accelerator.TCG: 20.0}
"""Seconds from the order to kill the workload until the guest says that it has ended."""

MOST_IN_FLIGHT = 64 << 20
"""Bytes of a stream that may still be on their way when its workload is dead, and more: a port's
queue has 128 places of 32 KiB, and there are pipes and sockets around it."""

EMBEDDED_HOST = "127.0.0.1"
EMBEDDED_GATEWAY = "10.99.0.1"
EMBEDDED_GUEST = "10.99.0.2/32"
# Unique local ones (RFC 4193), where this machine's kernel has IPv6 at all.
EMBEDDED_GATEWAY6 = "fd77:6763:656c::1"
EMBEDDED_GUEST6 = "fd77:6763:656c::2/128"

UNPACKED_WITHIN = 45.0
"""Seconds that the unpacking of the outputs may go on after the last byte that came."""

DIGESTED_AT_LEAST = 20 << 20
"""Bytes a second of the outputs that a disk lets us read, at the least."""

_EVEN_NOW = (Cause.HOST_FAULTED, Cause.OUTPUT_FAILED, Cause.ROGUE_FRAME)
"""What counts although the cell has ended: it is about what happened before."""

_LINE_LIMIT = protocol.LONGEST_LINE
_LOOK = 0.25
"""Seconds between two looks at a workload that was killed."""
_SHOWN = 16 * 1024
"""Characters of each of a guest's wrong reports that are kept."""
_PORTS = ("control", *protocol.STREAMS, "files")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the host gives a cell: everything that the job itself does not say.

    ``vpn`` is None for the embedded gateway, which has no ``addresses``: those are its endpoint's,
    vetted, in the order in which they are to be tried.
    """

    folder: Folder
    image: Image
    accelerator: Accelerator
    accelerator_reason: str
    vpn: VpnConfig | None
    addresses: tuple[Address, ...] = ()
    require_walls: bool = False
    gateway_engine: str = "auto"
    """Of a gateway of the cell's own: ``auto``, ``namespace`` or ``embedded``."""
    land: Callable[[Mapping[str, Any]], outputs.Landed] | None = None
    """Brings the outputs to whoever asked for them, when all else has ended; it is given the event
    that told of their unpacking. None leaves them in the cell's folder. Raises StateError."""
    known_links: frozenset[tuple[str, str]] = frozenset()
    """Links among the inputs that lead out, by path and target: no news if they come back."""
    vet_again: Callable[[], tuple[Address, ...]] | None = None
    """Resolves the endpoint's name anew and vets its addresses, as the start did. Raises
    EndpointError if none may be an endpoint."""


@dataclass(slots=True)
class _Seen:
    """What has been observed of this cell so far."""

    relay_verified: bool = False
    configured: bool = False
    guest_ready: bool = False
    tampered: bool = False
    outputs: protocol.Outputs | None = None
    out_of_memory: protocol.OutOfMemory | None = None
    unpacked: archive.Unpacked | None = None
    inputs: dict[str, Any] = field(default_factory=dict)
    """The digest of what the guest is given, and its bytes."""
    closed: set[str] = field(default_factory=set)
    """Streams that the guest was told nobody reads."""
    told_exit: bool = False
    home: bool = False
    stopping_since: float = 0.0
    stood_still: float = 0.0
    """Until when the host, or we, stood still: nothing could have come before."""
    came_before: int = 0
    """Bytes of results that had come before the workload's end: they buy no time after it."""
    reader_waited: float = 0.0
    """Seconds, since then, in which only our own reader was waited for."""
    reports: dict[str, str] = field(default_factory=dict)
    judged: dict[str, str] = field(default_factory=dict)
    """The reports as they were when they were last compared with what was asked."""
    exit_code: int | None = None
    drops: int = 0
    last_valid: float = 0.0
    last_heartbeat: float = 0.0
    stats: dict[str, Any] = field(default_factory=dict)
    frames: list[evidence.CapturedFrame] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=dict)
    mtu: int = 0
    """The tunnel's, as the guest was last told it."""
    rogue_at: float | None = None
    killed_after: float | None = None
    """Seconds from the relay's reading of the first rogue frame until QEMU was reaped."""
    flows: dict[str, int] = field(default_factory=lambda: {"allow": 0, "refuse": 0})


class Supervisor:
    """One cell's life. ``stdout`` and ``stderr`` receive the workload's bytes as they come.

    ``spawn_relay`` is another's only in `wgcell.prove`, whose controls need the wall down.
    """

    def __init__(
        self,
        job: Job,
        around: Surroundings,
        *,
        tell: Callable[[Event], None],
        stdout: Sink,
        stderr: Sink,
        spawn_relay: Callable[..., Coroutine[Any, Any, RelayProcess]] = RelayProcess.spawn,
    ) -> None:
        self._job = job
        self._spawn_relay = spawn_relay
        self._around = around
        self._sinks = {"stdout": stdout, "stderr": stderr}
        self._log = EventLog(around.folder.path / "events.jsonl", tell)
        self._causes = listening.Causes()
        self._state = State.PREPARING
        self._outcome: Outcome | None = None
        self._reason = ""
        self._seen = _Seen()
        self._tasks: set[asyncio.Task[None]] = set()
        self._starting: asyncio.Task[None] | None = None
        self._drains: list[asyncio.Task[None]] = []
        self._streams: dict[str, Stream] = {}
        self._cancelled = asyncio.Event()
        self._machine: Machine | None = None
        self._relay: RelayProcess | None = None
        self._jail: Jail | None = None
        # A machine that is to be frozen must outlive its rogue frame.
        self._kill_switch = None if job.on_rogue is OnRogue.FREEZE else KillSwitch()
        self._boot: Boot | None = None
        self._cgroup: cgroup.Cgroup | None = None
        self._limits = ""
        self._gateway: GatewayProcess | None = None
        self._control: asyncio.StreamWriter | None = None
        self._arriving: ArrivingOutputs | None = None
        self._unpacking: asyncio.Future[archive.Unpacked] | None = None
        self._console: CappedLog | None = None
        self._diagnostics = CappedLog(around.folder.path / "diagnostics.log", 1 << 20)
        self._config: protocol.GuestConfig | None = None
        self._started = time.monotonic()
        # Of the end.
        self._following_relay: asyncio.Task[None] | None = None
        self._came: dict[str, Any] | None = None
        self._unpacked_without: Mapping[str, str] = {}
        self._failures: list[str] = []
        """Steps of the end that failed, and why."""
        self._records: dict[str, Any] = {"files": {}, "outputs": None}
        self._result_written = False
        self._unrecorded: StateError | None = None

    # What others may ask of a running cell.

    def cancel(self, reason: str) -> None:
        """End the cell in order, with a grace period for the workload; called again, at once.

        May be called from a signal's callback in the loop.
        """
        again = self._cancelled.is_set()
        self._cancelled.set()
        self._cause(Cause.ABORT if again else Cause.CANCEL, reason)

    def abort(self, reason: str) -> None:
        """End the cell at once: no grace period, no results."""
        self._cancelled.set()
        self._cause(Cause.ABORT, reason)

    async def run(self) -> dict[str, Any]:
        """Live the cell's life; its result, which is also in ``result.json``.

        Never raises for what happens to the cell: that is the outcome. StateError means that the
        record itself could not be kept; the cell is dead then all the same.
        """
        try:
            if (self._around.folder.path / "job.json").exists():
                self._log.append(
                    "job", **job_digests(self._around.folder.path, self._around.image.folder)
                )
            self._enter_state(State.PREPARING)
            self._starting = self._spawn(self._live(), "the cell's start")
            while self._state is not State.ENDED:
                cause, reason = await self._causes.get()
                await self._act(cause, reason)
        except BaseException as error:
            # The record, or we, failed: whatever the guest said by then, nothing was completed.
            if self._outcome in (None, Outcome.COMPLETED):
                self._outcome, self._reason = Outcome.ERROR, str(error) or type(error).__name__
            raise
        finally:
            await self._end()
        return self._result()

    # Causes in, actions out.

    def _cause(self, cause: Cause, reason: str = "") -> None:
        self._causes.put(cause, reason)

    def _spawn(self, work: Coroutine[Any, Any, None], what: str) -> asyncio.Task[None]:
        """Run ``work``; if it fails, that is a cause and not a lost traceback."""

        async def watched() -> None:
            try:
                await work
            except ConsentError as error:
                self._cause(Cause.NO_CONSENT, str(error))
            except GuestError as error:
                self._cause(Cause.GUEST_FAULTED, error.message)
            except WgcellError as error:
                self._cause(Cause.HOST_FAULTED, str(error))
            except Exception as error:
                self._cause(Cause.HOST_FAULTED, f"{what}: {type(error).__name__}: {error}")

        task = asyncio.create_task(watched())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _act(self, cause: Cause, reason: str) -> None:
        taken = step(self._state, cause)
        if taken is None:
            return
        outcome = settled(self._outcome, cause, taken.outcome)
        if outcome is not self._outcome:
            self._outcome, self._reason = outcome, reason
        if taken.state is State.ENDED and self._machine is not None:
            freeze = cause is Cause.ROGUE_FRAME and self._job.on_rogue is OnRogue.FREEZE
            if freeze and await self._machine.freeze():
                self._write_evidence()  # whoever looks into the machine looks at this first
                self._log.append("frozen", reason=reason)
                await self._until_stopped_or_dead(self._machine)
            # First the machine, then the words about it, which wait for the disk.
            with contextlib.suppress(HostError):  # the end tries again, and says so
                await self._kill(self._machine)
        if taken.state is not self._state:
            self._enter_state(taken.state, reason)

    async def _kill(self, machine: Machine) -> None:
        """Kill it and wait until it is gone; more than once does no harm."""
        machine.kill()
        await machine.dead()
        if self._seen.rogue_at is not None and self._seen.killed_after is None:
            now = time.clock_gettime(time.CLOCK_BOOTTIME)
            self._seen.killed_after = round(now - self._seen.rogue_at, 6)
        await machine.reap()

    async def _until_stopped_or_dead(self, machine: Machine) -> None:
        """The frozen machine's wait: the link is cut, its relay and QEMU may still die."""
        waits = [
            asyncio.create_task(self._cancelled.wait()),
            asyncio.create_task(machine.process.wait()),
        ]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    def _enter_state(self, state: State, reason: str = "") -> None:
        self._state = state
        self._seen.phases[state.value] = round(time.monotonic() - self._started, 3)
        self._log.append("state", state=state.value, **({"reason": reason} if reason else {}))
        if state is State.RUNNING:
            self._release()
        if state is State.TERMINATING:
            self._spawn(self._terminate(), "the workload's end")
        if state is State.STOPPING:
            self._seen.stopping_since = self._seen.stood_still = time.monotonic()
            self._seen.came_before = self._received()
            if self._arriving is not None:
                self._unpacking = asyncio.ensure_future(self._unpack(self._arriving))
                self._spawn(self._follow_outputs(self._unpacking), "the outputs")
            self._check_home()

    # The walk: prepare, ask for consent, boot. What follows is driven by what is seen.

    async def _live(self) -> None:
        # What takes time at once: the gateway and the relay, two interpreters that load their code,
        # and QEMU. But in this order only: an endpoint that consents, a relay behind its seal, the
        # guest's first instruction.
        around = self._around
        self._bound()  # while there is nobody but us
        ours, theirs = _socketpairs("nic", "qmp", "console", *_PORTS)
        udp = endpoint.unconnected(4)  # the relay's, until there is one to who has consented
        try:
            vpn, _, _ = await _together(
                self._tunnel(),
                self._relay_of(ours.pop("nic"), udp),
                self._machine_of(theirs, ours.pop("qmp")),
            )
            if self._seen.inputs:
                self._log.append("inputs", **self._seen.inputs)
            self._log.append("prepared", inputs=len(self._job.inputs), jail=self._jailed)
            self._cause(Cause.PREPARED)
            address, own = await self._consenting(vpn)
        finally:
            udp.close()
        with own:
            self._cause(Cause.CONSENTED, "the endpoint answered a handshake with the job's key")
            self._seen.mtu = _fitting(vpn, address, endpoint.path_mtu(own))
            way = Renewal(address, str(own.getsockname()[0]), time.monotonic())
            relay, machine = self._relay, self._machine
            if relay is None or machine is None:
                raise HostError("the cell ended while it was being prepared")
            await relay.configure(
                {
                    "guest_public_key": b64(consent.public_key(vpn.private_key)),
                    "endpoint_public_key": b64(vpn.peer_public_key),
                    "mtu": vpn.mtu,
                    "rate": self._job.rate,
                    "quota": self._job.quota,
                },
            )
            relay.replace_udp(own, met=False)
        self._following_relay = self._spawn(self._follow_relay(relay), "the relay's reports")
        self._log.append("walls", **self._host_walls())
        self._require_walls(relay.sealed)
        self._config = self._guest_config(vpn)
        self._console = CappedLog(around.folder.path / "console.log")
        self._log.append("booting", accelerator=around.accelerator.value, pid=machine.pid)
        patience = self._job.verify_timeout or VERIFY_TIMEOUT[around.accelerator]
        asyncio.get_running_loop().call_later(
            patience,
            self._cause,
            Cause.NOT_VERIFIED,
            f"the tunnel was not verified within {patience:g} s",
        )
        self._drain(self._console_to_log(ours["console"]))
        for name in protocol.STREAMS:
            log = CappedLog(around.folder.path / f"{name}.log")
            stream = Stream(name, self._sinks[name], log, partial(self._hear_stream, name))
            self._streams[name] = stream
            stream.carry(ours[name])
        if self._job.outputs:
            self._arriving = ArrivingOutputs(ours["files"])
        else:
            ours["files"].close()
        self._spawn(self._follow_guest(ours["control"]), "the guest's reports")
        await machine.go()
        self._spawn(self._watch(), "the watch")
        self._spawn(self._follow_network(relay, vpn, way), "the network's changes")

    def _bound(self) -> None:
        """A cgroup for QEMU, where one can be had; resource limits it has in any case."""
        place = cgroup.find()
        if isinstance(place, str):
            self._limits = f"resource limits ({place})"
            return
        bounds = cgroup.Bounds(self._job.memory, self._job.cpus)
        try:
            self._cgroup = cgroup.make(place, self._around.folder.id, bounds)
        except OSError as error:
            self._limits = f"resource limits ({error})"
        else:
            self._limits = f"cgroup ({', '.join(place.controllers)}), resource limits"

    async def _relay_of(self, nic: socket.socket, udp: socket.socket) -> None:
        self._relay = await self._spawn_relay(nic, udp, self._around.folder.id, self._kill_switch)

    async def _machine_of(self, theirs: Mapping[str, socket.socket], qmp: socket.socket) -> None:
        """QEMU in its jail, its processor stopped, its one network card looked at."""
        job, around = self._job, self._around
        device = KVM_DEVICE if around.accelerator is Accelerator.KVM else None
        self._boot, drives, jail = await _together(
            asyncio.to_thread(Boot, around.image.kernel, around.image.initramfs),
            asyncio.to_thread(self._drives),
            asyncio.to_thread(find_jail, unprivileged_id(around.folder.id), device),
        )
        self._jail = jail
        self._require_walls(sealed=True)
        spec = MachineSpec(
            qemu=find_qemu(),
            accelerator=around.accelerator,
            kernel_fd=self._boot.kernel,
            initramfs_fd=self._boot.initramfs,
            command_line=kernel_command_line(
                around.accelerator, host_tsc_khz(Path("/proc/cpuinfo").read_text())
            ),
            cpus=job.cpus,
            memory=job.memory >> 20,
            drives=drives,
            mac=link.GUEST_MAC_TEXT,
            nic_fd=theirs["nic"].fileno(),
            qmp_fd=theirs["qmp"].fileno(),
            console_fd=theirs["console"].fileno(),
            ports={f"wgcell.{name}": theirs[name].fileno() for name in _PORTS},
        )
        machine = await Machine.start(spec, qmp, jail, job.disk, self._cgroup)
        self._machine = machine
        if self._kill_switch is not None:
            with contextlib.suppress(ProcessLookupError):
                self._kill_switch.arm(machine.process.pid)
        for handed_over in theirs.values():
            handed_over.close()
        for drive in drives:
            for fd in drive.fds:
                os.close(fd)
        if machine.process.stderr is not None:
            self._drain(self._copy(machine.process.stderr, self._diagnostics.write))
        self._spawn(self._follow_machine(machine), "QEMU's end")
        await machine.connect_monitor()

    @property
    def _jailed(self) -> bool:
        return self._jail is not None and self._jail.bwrap is not None

    def _require_walls(self, sealed: bool) -> None:
        """Raises HostError if a wall is missing here and the provider wants them all."""
        if self._around.require_walls and not (sealed and self._jailed):
            raise HostError(
                f"this provider requires every wall: {self._host_walls()['missing']}",
                mend="wgcell doctor names what mends each",
            )

    async def _consenting(self, vpn: VpnConfig) -> tuple[Address, socket.socket]:
        """The first of the endpoint's addresses that consents, and the socket on which it did.

        A name may lead to any number of strangers: as many are asked as in a renewal.
        Raises EndpointError where this host has no way to any, and ConsentError.
        """
        refusals: list[EndpointError | ConsentError] = []
        vetted = self._around.addresses or (ip_address(vpn.endpoint_host),)
        for address in vetted[: renewal.MOST_ASKED]:
            try:
                return address, await self._reached(address, vpn)
            except (EndpointError, ConsentError) as error:
                refusals.append(error)
        if len(refusals) == 1:
            raise refusals[0]
        worst = next((one for one in refusals if isinstance(one, ConsentError)), refusals[0])
        raise type(worst)("; ".join(one.message for one in refusals), mend=worst.mend)

    async def _tunnel(self) -> VpnConfig:
        """The tunnel to use; starts the embedded gateway if it's ours."""
        around = self._around
        if around.vpn is not None:
            return around.vpn
        asked = self._job.gateway or GatewayAsked()
        gateway_key, guest_key = generate_private_key(), generate_private_key()
        own = await asyncio.to_thread(endpoint.host_networks)
        six = has_ipv6()
        here = {"address6": EMBEDDED_GATEWAY6} if six else {}
        there = {"address6": str(ip_interface(EMBEDDED_GUEST6).ip)} if six else {}
        gateway = await GatewayProcess.start(
            {
                "listen": f"{EMBEDDED_HOST}:0",
                "private_key": gateway_key,
                "peers": {
                    "cell": {
                        "public_key": public_key(guest_key),
                        "address": str(ip_interface(EMBEDDED_GUEST).ip),
                        **there,
                    }
                },
                "rules": [f"allow {rule}" for rule in asked.allow],
                "services": dict(asked.services),
                "address": EMBEDDED_GATEWAY,
                **here,
                "protected": [str(network) for network in own],
                "resolver": list(asked.resolver),
                "learn": asked.learn,
            },
            around.gateway_engine,
        )
        self._gateway = gateway
        what = {"engine": gateway.engine, "reason": gateway.reason}
        self._log.append("gateway", address=gateway.host, port=gateway.port, **what)
        self._spawn(self._follow_gateway(gateway), "the gateway's reports")
        return VpnConfig(
            private_key=decode_key(guest_key),
            peer_public_key=decode_key(public_key(gateway_key)),
            endpoint_host=gateway.host,
            endpoint_port=gateway.port,
            addresses=tuple(map(ip_interface, (EMBEDDED_GUEST, EMBEDDED_GUEST6)[: 1 + six])),
            allowed_ips=tuple(map(ip_network, ("0.0.0.0/0", "::/0")[: 1 + six])),
            dns=(ip_address(EMBEDDED_GATEWAY),),
        )

    def _drives(self) -> tuple[Drive, ...]:
        """The root filesystem, a scratch disk for what the guest writes, and the inputs."""
        folder = self._around.folder.path
        scratch = folder / "scratch.img"
        with scratch.open("wb") as file:
            file.truncate(self._job.disk)
        mke2fs = programs.path_of("mke2fs")
        options = "lazy_itable_init=1,nodiscard"
        features = "^has_journal,^metadata_csum,uninit_bg"
        argv = [mke2fs, "-q", "-F", "-t", "ext4", "-O", features, "-m", "0"]
        argv += ["-E", options, str(scratch)]
        try:
            done = subprocess.run(
                argv, capture_output=True, text=True, check=False, env=programs.environment()
            )
        except OSError as error:
            raise LaunchError(
                f"mke2fs: {error.strerror}", argv=argv, mend="apt-get install e2fsprogs"
            ) from error
        if done.returncode != 0:
            raise LaunchError(
                "the cell's scratch disk could not be made",
                argv=argv,
                exit_code=done.returncode,
                output=done.stderr,
            )
        drives = [
            Drive(_opened(self._around.image.rootfs)),
            Drive(_opened(scratch), _opened(scratch, os.O_RDWR)),
        ]
        if self._job.inputs:
            packed = folder / "inputs.tar"
            pack(self._job.inputs, packed, self._job.disk, self._job.excludes)
            self._seen.inputs = file_digest(packed)
            drives.append(Drive(_opened(packed)))
        return tuple(drives)

    def _guest_config(self, vpn: VpnConfig) -> protocol.GuestConfig:
        job = self._job
        return protocol.GuestConfig(
            time=0,  # when it is sent
            hostname=job.name,
            walls=job.guest_walls,
            private_key=vpn.private_key,
            peer_public_key=vpn.peer_public_key,
            preshared_key=vpn.preshared_key,
            addresses=tuple(map(str, vpn.addresses)),
            allowed_ips=tuple(map(str, vpn.allowed_ips)),
            mtu=self._seen.mtu,
            keepalive=vpn.keepalive,
            dns=tuple(map(str, vpn.dns)),
            search=vpn.search,
            probe=str(probe.choose(vpn.addresses, vpn.allowed_ips, vpn.dns)),
            inputs=bool(job.inputs),
            command=job.command,
            environment=job.env,
            outputs=job.outputs,
        )

    # What is seen, and what each sight means.

    async def _follow_relay(self, relay: RelayProcess) -> None:
        async for word in listening.fair(relay.events()):
            match word:
                case said.Verified():
                    self._seen.relay_verified = True
                    self._check_verified()
                case said.Alive():
                    self._seen.last_valid = time.monotonic()
                case said.Handshake(initiator):
                    self._seen.last_valid = time.monotonic()
                    self._log.chatter("handshake", initiator=initiator)
                case said.Stats():
                    self._seen.stats = asdict(word)
                case said.Rogue():
                    reason = f"{word.reason}: {word.detail}".rstrip(": ")
                    self._seen.rogue_at = self._seen.rogue_at or word.boottime
                    self._cause(Cause.ROGUE_FRAME, reason)
                    self._keep_evidence(word)
                case said.Quota():
                    self._cause(
                        Cause.QUOTA_SPENT,
                        f"the tunnel has carried {word.bytes} bytes of {self._job.quota}",
                    )
                case said.OutOfStep():
                    self._log.chatter("out_of_step", reason=word.reason)
                case said.Fault():
                    self._cause(Cause.HOST_FAULTED, f"the relay: {word.detail}")
                case said.Begun() | said.Ready():
                    raise HostError("the relay said out of its turn that it is ready")
        if self._state is not State.ENDED:
            self._cause(Cause.HOST_FAULTED, "the relay died")

    def _keep_evidence(self, rogue: said.Rogue) -> None:
        comment = f"{rogue.reason}: {rogue.detail}"
        frame = evidence.CapturedFrame(rogue.frame, rogue.time, comment)
        if len(self._seen.frames) < 64:
            self._seen.frames.append(frame)

    async def _follow_guest(self, ours: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=ours, limit=_LINE_LIMIT)
        self._control = writer
        try:
            async for line in listening.fair(reader):
                self._on_guest(protocol.parse(line))
        except ValueError as error:
            raise GuestError("the guest sent a line that is too long") from error
        except OSError:
            pass  # QEMU is gone; _follow_machine says so
        finally:
            writer.close()

    def _on_guest(self, message: protocol.Message) -> None:
        seen = self._seen
        seen.last_heartbeat = time.monotonic()
        match message:
            case protocol.Hello():
                if seen.configured:
                    raise GuestError("the guest said hello twice")
                seen.configured = True
                if self._boot is not None:
                    self._boot.forget()
                if self._control is not None and self._config is not None:
                    config = replace(self._config, time=time.time())
                    self._control.write(protocol.encode_config(config))
                self._cause(Cause.GUEST_READY)
            case protocol.Report():
                seen.reports.update(message.texts)
            case protocol.Ready():
                if seen.guest_ready:
                    raise GuestError("the guest said ready twice")
                seen.guest_ready = True
                self._check_verified()
            case protocol.Heartbeat():
                if message.drops > seen.drops:
                    self._log.chatter("guest_drops", count=message.drops)
                seen.drops = message.drops
            case protocol.Changed():
                watched = self._state in (State.VERIFYING, State.RUNNING)
                if self._job.guest_walls == frozenset(Wall) and watched and not seen.tampered:
                    seen.tampered = True
                    self._log.append("changed", what=message.what, seen=message.text[:4096])
                    self._cause(Cause.TAMPERED, f"the guest's {message.what} changed")
            case protocol.Fault():
                self._cause(Cause.GUEST_FAULTED, f"the guest could not start: {message.text}")
            case protocol.OutOfMemory():
                if seen.out_of_memory is None:
                    seen.out_of_memory = message
                    self._log.append("out_of_memory", count=message.count, victim=message.victim)
            case protocol.Exited():
                if self._state in (State.RUNNING, State.TERMINATING) and seen.exit_code is None:
                    for name, count in (("stdout", message.stdout), ("stderr", message.stderr)):
                        if count - self._streams[name].delivered > MOST_IN_FLIGHT:
                            raise GuestError(f"the guest owes more of {name} than a port can hold")
                    seen.exit_code = message.code
                    self._streams["stdout"].stated = message.stdout
                    self._streams["stderr"].stated = message.stderr
                    self._cause(Cause.WORKLOAD_EXITED, self._how_it_exited(message.code))
            case protocol.Outputs():
                if self._state is not State.STOPPING and seen.exit_code is None:
                    raise GuestError("the guest sent outputs before the workload's end")
                if seen.outputs is None and self._arriving is not None:
                    seen.outputs = message
                    self._log.append("outputs_sent", bytes=message.size, sha256=message.sha256)
                    self._arriving.state(message.size, message.sha256)

    def _how_it_exited(self, code: int) -> str:
        """The workload's end in words; the out-of-memory killer's work is named as its own."""
        oom = self._seen.out_of_memory
        if code == 128 + signal.SIGKILL and oom is not None:
            return (
                f"the guest's memory ({self._job.memory >> 20} MiB) was used up, and its kernel "
                f"killed {oom.victim or 'the workload'}; --memory gives it more"
            )
        return f"the workload exited with {code}"

    def _order(self, words: bytes) -> None:
        """Tell the guest; nothing if it is gone."""
        if self._control is not None:
            self._control.write(words)

    def _close_stream(self, name: str) -> None:
        """Tell the guest that nobody reads this stream; a workload that has ended needs no word."""
        if self._seen.exit_code is None:
            self._order(protocol.closed(name))

    # The results, until all of them are home.

    def _hear_stream(self, name: str) -> None:
        """`_on_stream`, as a callback of the loop's: an error is a cause and not a traceback."""
        try:
            self._on_stream(name)
        except WgcellError as error:
            self._cause(Cause.HOST_FAULTED, str(error))

    def _on_stream(self, name: str) -> None:
        """Something happened to a stream: see what."""
        stream = self._streams[name]
        if stream.reader_gone and name not in self._seen.closed:
            self._seen.closed.add(name)
            self._log.append("reader_gone", stream=name)
            self._close_stream(name)
        if stream.failure is not None and name not in self._seen.closed:
            self._seen.closed.add(name)
            why = getattr(stream.failure, "strerror", None) or str(stream.failure)
            self._log.append("output_failed", stream=name, reason=why)
            self._close_stream(name)
            self._cause(
                Cause.OUTPUT_FAILED,
                f"what the workload wrote to {name} could not be written: {why}",
            )
        self._check_home()

    async def _follow_outputs(self, unpacking: asyncio.Future[archive.Unpacked]) -> None:
        """Wait for the outputs; what is wrong with them is a cause by itself."""
        try:
            self._seen.unpacked = await asyncio.shield(unpacking)
        except GuestError as error:
            self._cause(Cause.RESULTS_LOST, error.message)
            return
        self._check_home()

    def _check_home(self) -> None:
        """If the workload has ended and nothing is owed any more, say so."""
        seen = self._seen
        if self._state is not State.STOPPING or seen.home:
            return
        for stream in self._streams.values():
            if stream.failure is not None and stream.name not in seen.closed:
                return  # its thread has called `_hear_stream`, which says so first
            ended = stream.ended  # first: its last bytes count before it ends
            owed = stream.owed
            if owed < 0 or (owed > 0 and ended):
                seen.home = True
                self._cause(
                    Cause.RESULTS_LOST,
                    f"{stream.delivered} of the {stream.stated} bytes came that the workload "
                    f"wrote to {stream.name}",
                )
                return
        if not all(stream.home for stream in self._streams.values()):
            return
        if not seen.told_exit:
            seen.told_exit = True
            self._log.append("exited", exit_code=seen.exit_code)
        if self._arriving is None:
            seen.home = True
            self._cause(Cause.RESULTS_HOME)
        elif seen.unpacked is not None and seen.outputs is not None:
            seen.home = True
            missing = self._missing(seen.unpacked, seen.outputs)
            if missing:
                self._cause(Cause.RESULTS_MISSING, missing)
            else:
                self._cause(Cause.RESULTS_HOME)

    def _missing(self, unpacked: archive.Unpacked, sent: protocol.Outputs) -> str:
        """What is missing of the outputs, in a sentence; empty if nothing is."""
        if sent.status:
            return f"the guest could not read all of the outputs (tar's exit code {sent.status})"
        return outputs.verdict(unpacked, self._job.outputs) or ""

    def _watch_results(self, now: float, passed: float) -> None:
        """What the workload left must come, and keep coming; our own reader may take its time."""
        seen = self._seen
        if passed > STOPPED:
            seen.stood_still = now
            seen.reader_waited += passed
            return
        waiting = [s for s in self._streams.values() if s.waits_for_reader]
        if waiting:
            seen.reader_waited += passed
            if self._outcome is Outcome.COMPLETED:
                return
            # A cell that was to end does not wait for good for a reader who stands still.
            for stream in waiting:
                if now - stream.moved > max(self._job.grace, LAST_BYTES):
                    self._give_up(stream)
            return
        arriving = self._arriving
        moved = [s.moved for s in self._streams.values() if not s.home]
        if arriving is not None and seen.unpacked is None:
            moved.append(arriving.moved)
        since = max([*moved, seen.stood_still])
        # More than a disk holds, twice over, buys no time.
        received = min(self._received() - seen.came_before, 2 * self._job.disk)
        took = now - seen.stopping_since - seen.reader_waited
        if now - since > RESULTS_STALL:
            self._cause(
                Cause.RESULTS_LOST, f"the guest sent nothing of its results for {now - since:.0f} s"
            )
        elif took > RESULTS_START + received / RESULTS_LEAST:
            self._cause(Cause.RESULTS_LOST, f"the results had not come home after {took:.0f} s")

    def _received(self) -> int:
        came = sum(stream.delivered for stream in self._streams.values())
        return came + (self._arriving.received if self._arriving is not None else 0)

    def _give_up(self, stream: Stream) -> None:
        stream.give_up()
        self._log.append("reader_stopped", stream=stream.name, delivered=stream.delivered)
        self._close_stream(stream.name)
        self._check_home()

    async def _terminate(self) -> None:
        """SIGTERM, the grace period, SIGKILL. The workload's end is the guest's word, as always."""
        patience = KILL_PATIENCE[self._around.accelerator]
        self._order(protocol.TERMINATE)
        await asyncio.sleep(self._job.grace)
        if self._state is State.TERMINATING:
            self._order(protocol.KILL)
        # It is dead soon, and what it wrote may wait for a reader: a slow one gets it all, one who
        # stands still does not. A guest that writes on, or never says that it is dead, is ended.
        streams = self._streams.values()
        most = sum(stream.delivered for stream in streams) + MOST_IN_FLIGHT
        silent = 0.0
        while self._state is State.TERMINATING:
            await asyncio.sleep(_LOOK)
            waiting = [stream for stream in streams if stream.waits_for_reader]
            for stream in waiting:
                if time.monotonic() - stream.moved > LAST_BYTES:
                    self._give_up(stream)
            silent += 0.0 if waiting else _LOOK
            if silent > patience or sum(stream.delivered for stream in streams) > most:
                break
        self._cause(Cause.GRACE_IS_OVER)

    def _check_verified(self) -> None:
        seen = self._seen
        if not (seen.relay_verified and seen.guest_ready and self._config is not None):
            return
        if seen.judged == seen.reports:
            return
        seen.judged = dict(seen.reports)
        wrong = protocol.mismatch(self._config, seen.reports)
        if wrong is not None:
            self._log.chatter("reports", **{k: v[:_SHOWN] for k, v in seen.reports.items()})
            self._cause(Cause.TAMPERED, wrong)
            return
        self._cause(Cause.VERIFIED, "the relay saw the guest's handshake and transport both ways")

    def _release(self) -> None:
        now = time.monotonic()
        self._seen.last_valid = self._seen.last_heartbeat = now
        if self._control is not None:
            self._control.write(protocol.RELEASE)
        if self._job.timeout is not None:
            asyncio.get_running_loop().call_later(self._job.timeout, self._time_is_up)

    def _time_is_up(self) -> None:
        # A workload that has ended in time is not late because of who reads what it wrote.
        if self._seen.exit_code is None:
            reason = f"the workload ran longer than {self._job.timeout:g} s"
            self._cause(Cause.TIME_IS_UP, reason)

    async def _follow_machine(self, machine: Machine) -> None:
        code = await machine.process.wait()
        # What it said before its end is still in the sockets; so is what the relay says of a pulled
        # kill switch, or the relay's own end.
        await asyncio.sleep(
            1 if self._kill_switch is not None and self._kill_switch.pulled else 0.05
        )
        self._cause(Cause.MACHINE_DIED, f"the machine ended by itself (exit code {code})")

    async def _follow_gateway(self, gateway: GatewayProcess) -> None:
        died = ""
        async for word in listening.fair(gateway.flows()):
            died = f": {word.detail}" if isinstance(word, gateway_words.Fault) else ""
            if isinstance(word, gateway_words.Ready):
                raise HostError("the gateway said out of its turn that it is ready")
            entry = gateway_words.SAID.entry(word)
            entry.pop("time", None)
            self._log.chatter(entry.pop("event"), **entry)
            if isinstance(word, gateway_words.Flow):
                self._seen.flows[word.verdict] = self._seen.flows.get(word.verdict, 0) + 1
        if self._state is not State.ENDED:
            self._cause(Cause.HOST_FAULTED, f"the gateway died{died}")

    async def _watch(self) -> None:
        patience = HEARTBEAT_TIMEOUT[self._around.accelerator]
        tunnel = self._job.tunnel_timeout or TUNNEL_TIMEOUT
        before = told = time.monotonic()
        offset = time.time() - told
        while True:
            await asyncio.sleep(1)
            now = time.monotonic()
            # CLOCK_MONOTONIC stands still while the host is suspended, the time of day does not.
            jumped = abs(time.time() - now - offset) > CLOCK_JUMP or now - before > STOPPED
            if self._state is State.RUNNING and (jumped or now - told > CLOCK_INTERVAL):
                told, offset = now, time.time() - now
                if self._control is not None:
                    self._control.write(protocol.clock(time.time()))
            if now - before > STOPPED:
                # The host, or we, stood still: the others' silence meanwhile says nothing.
                self._seen.last_valid += now - before
                self._seen.last_heartbeat += now - before
            passed, before = now - before, now
            self._log.settle()
            if self._state is State.STOPPING:
                self._watch_results(now, passed)
            if self._state is not State.RUNNING:
                continue
            if now - self._seen.last_valid > tunnel:
                self._cause(Cause.TUNNEL_SILENT, f"no valid message for {tunnel:g} s")
            if now - self._seen.last_heartbeat > patience:
                self._cause(Cause.HEARTBEAT_SILENT, f"the agent was silent for {patience:.0f} s")

    async def _follow_network(self, relay: RelayProcess, vpn: VpnConfig, way: Renewal) -> None:
        """Give the relay a fresh socket when `Renewal` says so, and follow the path's MTU."""
        while True:
            await asyncio.sleep(renewal.LOOK)
            source, path = _way(way.address, vpn.endpoint_port)
            moved = way.moved(source)
            self._fit_tunnel(path, _fitting(vpn, way.address, path), may_grow=moved)
            if way.due(source, self._seen.stats.get("unanswered", 0), time.monotonic()):
                await self._renew(relay, vpn, way, source)

    async def _renew(
        self, relay: RelayProcess, vpn: VpnConfig, way: Renewal, source: str | None
    ) -> None:
        """A fresh socket for the relay, where one may be had."""
        found: tuple[Address, ...] = (way.address,)
        refusals, asked = [], False
        try:
            if self._around.vet_again is not None:
                found = await in_thread(self._around.vet_again)  # a stranger's name may hang
        except EndpointError as error:
            refusals, found = [error.message], ()
        for address in way.order(found, source):
            met = way.must_consent(address)
            try:
                fresh = await self._reached(address, vpn, consenting=met)
            except (EndpointError, ConsentError) as error:
                refusals.append(error.message)
                asked = asked or isinstance(error, ConsentError)
                continue
            own = str(fresh.getsockname()[0])
            way.renewed(address, own, time.monotonic())
            if met:
                # A responder hears no initiation older than the last of the same key, which was
                # the supervisor's, by this host's clock.
                self._order(protocol.clock(time.time()))
            relay.replace_udp(fresh, met=met)
            where = endpoint.shown(address, vpn.endpoint_port)
            self._log.chatter("socket_renewed", endpoint=where, source=own, met=met)
            return
        way.refused(time.monotonic(), asked=asked)
        self._log.chatter("endpoint_refused", reason="; ".join(refusals))

    async def _reached(
        self, address: Address, vpn: VpnConfig, *, consenting: bool = True
    ) -> socket.socket:
        """A socket to ``address``, which has consented on it if that is asked.

        Raises EndpointError where there is no way, and ConsentError.
        """
        sock = endpoint.connect(address, vpn.endpoint_port)
        if consenting:
            self._log.chatter("consent_asked", endpoint=endpoint.shown(address, vpn.endpoint_port))
            try:
                await consent.obtain(sock, vpn.private_key, vpn.peer_public_key, vpn.preshared_key)
            except BaseException:
                sock.close()
                raise
        return sock

    def _fit_tunnel(self, path: int, fits: int, *, may_grow: bool) -> None:
        """Tell the guest of a narrower path. What is too long meanwhile, the kernel fragments.

        A wider one counts only on another way: the kernel forgets what a router told it, not the
        path.
        """
        if self._config is None or self._state is not State.RUNNING or not path:
            return
        if fits < self._seen.mtu or (may_grow and fits > self._seen.mtu):
            self._log.chatter("path_mtu", path=path, tunnel=fits, before=self._seen.mtu)
            self._seen.mtu = fits
            self._order(protocol.tunnel_mtu(fits))

    # Bytes that flow through: capped on disk, never able to hold up the loop.

    def _drain(self, work: Coroutine[Any, Any, None]) -> None:
        self._drains.append(self._spawn(work, "the cell's output"))

    async def _copy(self, reader: asyncio.StreamReader, write: Sink) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                write(data)

    async def _console_to_log(self, ours: socket.socket) -> None:
        reader, _ = await asyncio.open_connection(sock=ours)
        if self._console is not None:
            await self._copy(reader, self._console.write)

    async def _unpack(self, arriving: ArrivingOutputs) -> archive.Unpacked:
        unpacking = await Unpacking.start(
            self._around.folder.path / "outputs",
            self._job.outputs,
            self._job.disk,
            self._around.known_links,
        )
        try:
            return await unpacking.unpacked(arriving.carry, UNPACKED_WITHIN)
        finally:
            self._unpacked_without = unpacking.missing

    # The end: the machine first, whatever else fails.

    async def _end(self) -> None:
        """Run every step of the end. Raises StateError if the record could not be kept."""
        await run_all(self._ending(), self._not_ended)
        if self._unrecorded is not None:
            raise self._unrecorded

    def _ending(self) -> tuple[EndStep, ...]:
        """What is done at the end, in order: the machine's first, the record's last."""
        digested = 600 + self._job.disk / DIGESTED_AT_LEAST
        return (
            EndStep("the cell's start", self._end_start),
            EndStep("the machine's end", self._end_machine),
            EndStep("the machine's monitor", self._end_monitor),
            EndStep("the machine's cgroup", self._end_cgroup),
            EndStep("the relay's end", self._end_relay),
            EndStep("the machine's last words", self._end_drains),
            EndStep("what the workload wrote", self._end_streams),
            EndStep("the outputs", self._end_outputs, 2 * UNPACKED_WITHIN),
            EndStep("the gateway's end", self._end_gateway),
            EndStep("the cell's tasks", self._end_tasks),
            EndStep("the disks", self._end_disks),
            EndStep("the logs", self._end_logs),
            EndStep("the descriptors", self._end_descriptors),
            EndStep("what was reported last", self._end_causes),
            EndStep("the record of the outputs", self._record_outputs),
            EndStep("the rogue frames", self._record_frames),
            EndStep("the files' digests", self._end_digests, digested),
            # A person may be asked, and a signal ends it: there is no bound.
            EndStep("the landing of the outputs", self._land, math.inf),
            EndStep("result.json", self._record_result, is_record=True),
            EndStep("the record of the digests", self._record_digests),
            EndStep("the event of the end", self._record_end, is_record=True),
            EndStep("the events' end", self._log.close),
        )

    def _not_ended(self, step: EndStep, error: BaseException) -> None:
        """A step failed: whatever the guest said, this cell was not completed."""
        self._failures.append(f"{step.name}: {words(error)}")
        if self._outcome in (None, Outcome.COMPLETED):
            self._outcome, self._reason = Outcome.ERROR, self._failures[-1]
        if self._result_written:
            # It says otherwise by now. If it can't be written anew, it must not stand.
            try:
                self._around.folder.write("result.json", self._result())
            except StateError:
                self._around.folder.discard("result.json")
        if step.is_record:
            self._unrecorded = self._unrecorded or (
                error if isinstance(error, StateError) else StateError(self._failures[-1])
            )

    async def _end_start(self) -> None:
        if self._machine is not None:
            self._machine.kill()  # before anything is waited for
        if self._starting is not None:
            # A machine that is just being started must be known, or dead, before anyone waits.
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)

    async def _end_machine(self) -> None:
        if self._machine is not None:
            await self._kill(self._machine)

    async def _end_monitor(self) -> None:
        if self._machine is not None:
            await self._machine.hang_up()

    async def _end_cgroup(self) -> None:
        if self._cgroup is not None:
            await in_thread(self._cgroup.remove)

    async def _end_relay(self) -> None:
        if self._relay is not None:
            _expect_zero(await self._relay.quit())
        if self._following_relay is not None:
            await self._following_relay  # to its last line

    async def _end_drains(self) -> None:
        if self._drains:
            await asyncio.wait(self._drains)

    async def _end_streams(self) -> None:
        for stream in self._streams.values():
            # What was still on its way, for a reader who reads.
            if not (stream.home or await stream.over(LAST_BYTES)):
                self._log.append("reader_stopped", stream=stream.name, delivered=stream.delivered)

    async def _end_outputs(self) -> None:
        came = self._came = await self._outputs()
        if self._outcome is Outcome.COMPLETED and came is not None and not came["complete"]:
            raise GuestError(came.get("reason") or "they did not come whole")

    async def _end_gateway(self) -> None:
        if self._gateway is not None:
            _expect_zero(await self._gateway.quit())

    async def _end_tasks(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _end_disks(self) -> None:
        folder = self._around.folder
        for name in ("scratch.img", "inputs.tar"):
            folder.discard(name)
            if os.path.lexists(folder.path / name):
                raise StateError(f"{folder.path / name} can't be deleted")

    def _end_logs(self) -> None:
        with contextlib.ExitStack() as logs:
            for log in (self._console, self._diagnostics):
                if log is not None:
                    logs.callback(log.close)

    def _end_descriptors(self) -> None:
        with contextlib.ExitStack() as all_of_them:
            if self._relay is not None:
                all_of_them.callback(self._relay.close)
            if self._kill_switch is not None:
                all_of_them.callback(self._kill_switch.close)
            if self._boot is not None:
                all_of_them.callback(self._boot.forget)
            if self._arriving is not None and self._unpacking is None:
                all_of_them.callback(self._arriving.close)

    def _end_causes(self) -> None:
        """What failed, or was seen, after the cause that ended the cell, and that nobody took."""
        released = State.RUNNING.value in self._seen.phases
        meaning = TRANSITIONS[State.STOPPING if released else State.VERIFYING]
        while not self._causes.empty():
            cause, reason = self._causes.take()
            taken = meaning.get(cause)
            if cause in _EVEN_NOW and taken is not None:
                outcome = settled(self._outcome, cause, taken.outcome)
                if outcome is not self._outcome:
                    self._outcome, self._reason = outcome, reason

    def _record_outputs(self) -> None:
        if self._came is not None:
            self._log.append("outputs", **self._came)

    def _record_frames(self) -> None:
        with contextlib.ExitStack() as evidence_too:
            evidence_too.callback(self._write_evidence)
            for frame in self._seen.frames:
                shown = base64.b64encode(frame.data).decode("ascii")
                self._log.append("rogue_frame", at=frame.time, comment=frame.comment, frame=shown)

    async def _end_digests(self) -> None:
        path = self._around.folder.path
        records = self._records = await in_thread(lambda: record_digests(path))
        if records["outputs"] is not None and self._job.landing is not None:
            records["outputs"]["leave_for"] = str(self._job.landing.folder)
        unread = [name for name, file in records["files"].items() if "error" in file]
        if unread or "error" in (records["outputs"] or {}):
            raise StateError(f"can't be read: {', '.join(unread) or 'the outputs'}")

    def _land(self) -> None:
        """The last that can go wrong before the result says how the cell ended."""
        if self._around.land is None or not self._job.outputs:
            return
        landed = self._around.land(self._came or {})
        self._log.append("landed", whole=landed.whole, files=landed.files, sentence=landed.sentence)
        if landed.whole:
            return
        cause = Cause.CANCEL if landed.interrupted else Cause.RESULTS_MISSING
        taken = TRANSITIONS[State.STOPPING][cause]
        outcome = settled(self._outcome, cause, taken.outcome)
        if outcome is not self._outcome:
            self._outcome, self._reason = outcome, landed.sentence

    def _record_result(self) -> None:
        self._around.folder.write("result.json", self._result())
        self._result_written = True

    def _record_digests(self) -> None:
        records = self._records
        with contextlib.suppress(FileNotFoundError):  # then that is a failure by itself
            records["files"]["result.json"] = file_digest(self._around.folder.path / "result.json")
        self._log.append("records", **records)

    def _record_end(self) -> None:
        self._log.tell_unlogged()  # the end is the last line
        result = self._result()
        failures = {"failures": self._failures} if self._failures else {}
        self._log.append(
            "ended",
            outcome=result["outcome"],
            exit_code=result["exit_code"],
            reason=self._reason,
            **failures,
        )

    async def _outputs(self) -> dict[str, Any] | None:
        """What came of the outputs, for the record; None if none were asked for."""
        if self._arriving is None:
            return None
        if self._unpacking is None:
            return {"complete": False, "reason": "no outputs came: the workload had not ended"}
        try:
            unpacked = await asyncio.wait_for(self._unpacking, UNPACKED_WITHIN)
        except Exception as error:  # it may not cost the result
            return {"complete": False, "reason": str(error) or "their unpacking did not end"}
        return {
            "files": unpacked.files,
            "bytes": unpacked.bytes,
            "verdict": outputs.verdict(unpacked, self._job.outputs),
            "missing": list(unpacked.missing),
            "refused": [str(counted) for counted in unpacked.refusals],
            "refused_count": unpacked.refused,
            "left_out": [str(counted) for counted in unpacked.left_out],
            "complete": unpacked.complete,
            **({"walls_missing": self._unpacked_without} if self._unpacked_without else {}),
        }

    def _write_evidence(self) -> None:
        if self._seen.frames:
            self._around.folder.write_bytes("rogue.pcapng", evidence.pcapng(self._seen.frames))

    def _host_walls(self) -> dict[str, Any]:
        """Which walls of the host's stand, and why the others don't."""
        relay, jail = self._relay, self._jail
        missing = {f"seal: {stage}": why for stage, why in (relay.missing if relay else {}).items()}
        if jail is not None and jail.missing:
            missing["jail"] = jail.missing
        return {
            "seal": relay is not None and relay.sealed,
            "jail": self._jailed,
            "missing": missing,
        }

    def _result(self) -> dict[str, Any]:
        outcome = self._outcome or Outcome.ERROR
        own = self._seen.exit_code
        code = EXIT_CODES.get(outcome)
        if code is None or (outcome is Outcome.INCOMPLETE and own):
            code = own if own is not None else EXIT_CODES[Outcome.ERROR]
        return {
            "cell": self._around.folder.id,
            "outcome": outcome.value,
            "exit_code": code,
            "reason": self._reason,
            "failures": self._failures,
            "workload_exit_code": own,
            "accelerator": self._around.accelerator.value,
            "assurance": self._around.accelerator.assurance,
            "phases": self._seen.phases,
            "relay": self._seen.stats,
            "killed_after": self._seen.killed_after,
            "guest_drops": self._seen.drops,
            "flows": self._seen.flows,
            "image": self._around.image.name,
            "limits": self._limits,
            "walls": {
                "relay": True,
                **self._host_walls(),
                **{f"guest_{wall.value}": wall in self._job.guest_walls for wall in Wall},
                "gateway": self._around.vpn is None,
            },
        }


def _expect_zero(code: int) -> None:
    """Raises HostError for a child that did not go when it was asked to, and not in order."""
    if code:
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        raise HostError(f"it did not end in order ({how})")


async def _together(*works: Coroutine[Any, Any, Any]) -> list[Any]:
    """All of ``works`` at once; when one fails, the others are ended before its error goes on."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def _way(address: Address, port: int) -> tuple[str | None, int]:
    """The address this host would send from now, and the path's MTU; None and 0 without a way."""
    try:
        with endpoint.connect(address, port) as asked:
            return str(asked.getsockname()[0]), endpoint.path_mtu(asked)
    except EndpointError:
        return None, 0


def _fitting(vpn: VpnConfig, address: Address, path: int) -> int:
    """The MTU of the tunnel to ``address`` whose path carries ``path`` bytes a packet."""
    return endpoint.tunnel_mtu(path, address.version, vpn.mtu, carries_ipv6=vpn.carries_ipv6)


def _opened(path: Path, mode: int = os.O_RDONLY) -> int:
    """A descriptor to hand to QEMU, which is given no path. Raises HostError."""
    try:
        return os.open(path, mode | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}") from error


def _socketpairs(*names: str) -> tuple[dict[str, socket.socket], dict[str, socket.socket]]:
    """A socket pair for each name: our ends, and the ends that QEMU inherits."""
    ours, theirs = {}, {}
    for name in names:
        ours[name], theirs[name] = socket.socketpair()
    return ours, theirs
