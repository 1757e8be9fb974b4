"""The agent's life: hello, the configuration, the set-up, the report, the workload, its results."""

from __future__ import annotations

import os
import sys
import time

from wgcell.errors import GuestError
from wgcell.guest import config as configuration
from wgcell.guest import protocol
from wgcell.guest.agent import files, kernel, network, root, standing, tools
from wgcell.guest.agent.loop import READABLE, Loop
from wgcell.guest.walls import Wall

__all__ = ["Agent", "main"]

_PORTS = "/sys/class/virtio-ports"
_MOST_WAITING = 10.0
"""Seconds until the ports must be there."""
_LOOK = 0.02
"""Seconds between two looks for them."""
_BEAT = 5.0
_FIRST_BEAT = 0.5
"""Seconds until the watch begins, which are the workload's own: a change made in them is found by
the first look."""
_PROBES = 20
"""Echoes, one a second, to an endpoint that has moved: the first of them makes a handshake, and the
others make up for a loss."""
_MOST_BLIND = 12
"""Beats without a look: a minute, as long as the host waits for a beat."""
_MOST_STANDING, _MOST_CHANGE = 12288, 4096
"""Bytes of a change's text."""
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from wgcell.guest.agent.sessions import Sessions
    from wgcell.guest.agent.workload import Workload
    from wgcell.guest.config import GuestConfig
    from wgcell.guest.protocol import Message


class Lines:
    """Whole lines of a descriptor, for several callers."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._left = b""
        self._lines: list[bytes] = []

    def more(self) -> list[bytes]:
        """The lines that one reading completes. Raises EOFError where there is no more to read."""
        part = os.read(self.descriptor, 65536)
        if not part:
            raise EOFError
        *lines, self._left = (self._left + part).split(b"\n")
        return self.held() + lines

    def held(self) -> list[bytes]:
        """Lines that were read, and not taken yet."""
        lines, self._lines = self._lines, []
        return lines

    def next(self) -> bytes:
        """The next line, which is waited for. Raises EOFError."""
        while not self._lines:
            self._lines = self.more()
        return self._lines.pop(0)


class Init:
    """The shell's word on what the kernel has loaded, on standard input."""

    def __init__(self, descriptor: int = 0) -> None:
        self._lines = Lines(descriptor)

    def wait_for(self, stage: str) -> None:
        """Until ``stage`` is reached. Raises GuestError with init's words for a failure."""
        try:
            said = self._lines.next().decode()
        except EOFError:
            said = "init has ended"
        if said != stage:
            raise GuestError(said)


def ports() -> Mapping[str, str]:
    """The devices of the ports to the host, by name, once all of them are there."""
    wanted = {"control", *protocol.STREAMS, "files", protocol.SESSIONS}
    deadline = time.monotonic() + _MOST_WAITING
    while True:
        found = {}
        for node in os.listdir(_PORTS):
            name = files.read(f"{_PORTS}/{node}/name").strip()
            found[name.removeprefix("wgcell.")] = f"/dev/{node}"
        if wanted <= found.keys() and all(map(os.path.exists, found.values())):
            return found
        if time.monotonic() > deadline:
            raise GuestError("the ports to the host are not there")
        time.sleep(_LOOK)


class Agent:
    """One guest's agent. An error in the set-up is reported to the host, and ends the machine."""

    def __init__(self, first_beat: float = _FIRST_BEAT) -> None:
        self._first_beat = first_beat
        self._loop = Loop()
        self._init = Init()
        self._namespaces = network.Namespaces()
        self._control: Lines | None = None
        self._devices: Mapping[str, str] = {}
        self._asked: Mapping[str, str] = {}
        self._mtu = 0
        self._beats = self._drops = self._blind = 0
        self._orders: list[protocol.Order] = []
        self.released = False
        self._work: Workload | None = None

    def say(self, message: Message) -> None:
        """Tell the host, if the port is there."""
        if self._control is not None:
            files.write_all(self._control.descriptor, protocol.encode(message))

    def live(self) -> None:
        """To the machine's end."""
        control = self._greet()
        config = self._configured(control)
        self._set_up(config)
        self._wait_for_release(control)
        work, sessions = self._start(config)
        self._loop.run(lambda: not (work.carried and sessions.over))
        self._send_results(config, work)
        self._loop.run(lambda: True)  # the host ends the machine when it has it all

    # Until the workload may run.

    def _greet(self) -> Lines:
        self._init.wait_for("early")
        self._devices = ports()
        control = Lines(os.open(self._devices["control"], os.O_RDWR))
        self._control = control
        self.say(protocol.Hello(protocol.VERSION))
        return control

    def _configured(self, control: Lines) -> GuestConfig:
        lines = [control.next()]
        while lines[-1] != b"end":
            lines.append(control.next())
        return configuration.parse_config(lines)

    def _set_up(self, config: GuestConfig) -> None:
        # The endpoint has seen the host's clock, in the consent, and this one must not be behind.
        time.clock_settime(time.CLOCK_REALTIME, config.time)
        files.write("/proc/sys/kernel/hostname", config.hostname)
        self._config, self._mtu = config, config.mtu
        self._init.wait_for("late")
        if Wall.FIREWALL not in config.walls:
            tools.run("nft", "flush", "ruleset")
        network.link_up(config, self._namespaces)
        self._namespaces.inside(lambda: network.tunnel_up(config))
        self._probe = self._namespaces.inside(lambda: network.Probe(config.probe))
        self._probe.send()
        root.put_together(config)
        self._asked = standing.look(self._namespaces)
        self.say(protocol.Report(self._asked))
        self.say(protocol.Ready())

    def _wait_for_release(self, control: Lines) -> None:
        self._loop.after(1.0, self._probe_again)
        self._loop.watch(control.descriptor, READABLE, lambda: self._obey(control))
        self._loop.run(lambda: not self.released)

    def _probe_again(self) -> None:
        if not self.released:
            self._probe.send()
            self._loop.after(1.0, self._probe_again)

    def _reconnect(self) -> None:
        """Forget the tunnel's sessions, so that the next packet makes a handshake."""
        try:
            self._namespaces.inside(lambda: network.connect(self._config))
        except OSError:  # no room for a process
            self._loop.after(self._first_beat, self._reconnect)
            return
        self._probe_moved(_PROBES)

    def _probe_moved(self, left: int) -> None:
        self._probe.send()
        if left > 1:
            self._loop.after(1.0, lambda: self._probe_moved(left - 1))

    # The workload.

    def _start(self, config: GuestConfig) -> tuple[Workload, Sessions]:
        # The out-of-memory killer spares the agent and all that brings results home; the workload
        # takes this back.
        files.write("/proc/self/oom_score_adj", "-1000")
        root.dress()
        self._run_folder = os.open(f"{root.ROOT}/run", os.O_PATH | os.O_DIRECTORY)
        # What made the setup quick is the workload's no more.
        files.write("/proc/sys/kernel/randomize_va_space", "2")
        files.write("/sys/kernel/rcu_expedited", "0")
        work, sessions = self._run(config)
        # A guest that was asked to leave a wall out is not watched for what it lacks.
        self._watched = config.walls == frozenset(Wall)
        self._loop.after(self._first_beat, self._begin_watch)
        self.runs(work)
        return work, sessions

    def _run(self, config: GuestConfig) -> tuple[Workload, Sessions]:
        """The command, then the sessions, whose modules take longer to load than it to start."""
        from wgcell.guest.agent import workload

        place = workload.enclosure(config.walls, root.ROOT, self._namespaces.inside)
        ports = {name: self._port(name, os.O_WRONLY) for name in protocol.STREAMS}
        work = workload.Workload(self._loop, config, place, ports)
        from wgcell.guest.agent.sessions import Sessions

        port = self._port(protocol.SESSIONS, os.O_RDWR)
        return work, Sessions(self._loop, port, config, place, work)

    def _port(self, name: str, mode: int) -> int:
        return os.open(self._devices[name], mode | os.O_NONBLOCK)

    def runs(self, work: Workload) -> None:
        """The workload has begun: what the host has ordered since the release is done."""
        self._work = work
        self.take([])

    def _obey(self, control: Lines) -> None:
        self.take(control.more())

    def take(self, lines: list[bytes]) -> None:
        """The host's orders, in order; those behind the release once the workload runs."""
        self._orders += map(protocol.parse_order, lines)
        while self._orders and (self._work is not None or not self.released):
            match self._orders.pop(0):
                case protocol.Release():
                    self.released = True
                case protocol.TunnelMtu(mtu):
                    # The path is narrower than it was thought. Known before it is done.
                    self._mtu = mtu
                    self._namespaces.inside(lambda mtu=mtu: network.set_mtu(mtu))  # type: ignore[misc]
                case protocol.Clock(now):
                    kernel.bring_clock_to(now)
                case protocol.Reconnect():
                    self._reconnect()
                case order:
                    if self._work is not None:
                        self._work.obey(order)

    # The watch.

    def _begin_watch(self) -> None:
        if self._watched:
            follow = ("ip", "-o", "monitor", "link", "address", "route", "rule")
            self._follow_soon(lambda: self._follow("firewall", "nft", "monitor"))
            self._follow_soon(lambda: self._follow("network", *follow))
            inside = self._namespaces.inside
            self._follow_soon(lambda: inside(lambda: self._follow("network", *follow)))
        self._beat()

    def _follow_soon(self, follow: Callable[[], None]) -> None:
        """Now, or as soon as the workload leaves room for one more process."""
        try:
            follow()
        except OSError:
            self._loop.after(self._first_beat, lambda: self._follow_soon(follow))

    def _follow(self, what: str, *argv: str) -> None:
        """Report each change to the host that a program reports."""
        reading, writing = os.pipe()
        null = os.open("/dev/null", os.O_RDONLY)
        try:
            tools.start(argv, stdin=null, stdout=writing)
        except OSError:
            os.close(reading)
            raise
        finally:
            os.close(writing)
            os.close(null)
        lines = Lines(reading)
        self._loop.watch(reading, READABLE, lambda: self._heard(what, lines))

    def _heard(self, what: str, lines: Lines) -> None:
        try:
            news = lines.more()
        except EOFError:
            self._loop.forget(lines.descriptor)
            os.close(lines.descriptor)
            self.say(protocol.Changed(what, "nobody watches it any more"))
            return
        for line in news:
            text = line[:_MOST_CHANGE].decode("utf-8", "backslashreplace")
            if not standing.is_expected(text, self._mtu):
                self.say(protocol.Changed(what, text))

    def _beat(self) -> None:
        """A heartbeat, and a look at all that stands, against what stood before the release."""
        self._loop.after(_BEAT, self._beat)
        try:
            seen = standing.look(self._namespaces)
            self._blind = 0
        except OSError as error:
            # The workload may have taken all memory, or all processes this kernel has room for.
            self._blind += 1
            seen = self._asked
            if self._blind > _MOST_BLIND:
                self.say(protocol.Changed("standing", f"nothing is seen of it any more: {error}"))
        self._beats += 1
        self._drops = max(self._drops, standing.drops(seen["firewall"]))
        self.say(protocol.Heartbeat(self._beats, self._drops))
        changed = standing.changes(self._asked, seen) if self._watched else ""
        if changed:
            self.say(protocol.Changed("standing", changed[:_MOST_STANDING]))

    # The results.

    def _send_results(self, config: GuestConfig, work: Workload) -> None:
        # Only now: what it imports costs time.
        from wgcell.guest.agent import results

        if count := results.kills(files.read("/proc/vmstat")):
            victim = results.victim(tools.output("dmesg"))
            self.say(protocol.OutOfMemory(count, victim[:64]))
        self.say(work.exited())
        if config.outputs:
            port = self._port("files", os.O_WRONLY)
            outputs = results.Outputs(self._loop, config.outputs, self._run_folder, port)
            self._loop.run(lambda: not outputs.sent)
            self.say(outputs.statement())


def _where(error: BaseException) -> str:
    """The place of an error that nobody foresaw: the last line of this package's."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_name}, line {trace.tb_lineno}" if trace else ""


def main() -> None:
    """The program. Its end is the machine's."""
    os.umask(0o022)
    agent = Agent()
    try:
        agent.live()
    except EOFError:
        text = "the host's end of the control port is gone"
    except GuestError as error:
        text = str(error)
    except BaseException as error:
        text = f"{type(error).__name__}: {error} ({_where(error)})"
    agent.say(protocol.Fault(text[: protocol.LONGEST_FAULT]))
    sys.stderr.write(f"wgcell: fault: {text}\n")
    time.sleep(1)  # the words are on their way
