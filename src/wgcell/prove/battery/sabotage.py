"""Guests that are hostile from their first process on: what they do, and how the cell must end.

There are two kinds. A *saboteur* runs beside the stock init, as root of the first namespaces. Once
the workload runs, it takes down the guest's walls or the agent that watches them. Another kind has
an init of its own *instead*, which sets up no wall and reports all of them. Each is an `overlay` of
the image, so the host's side of the cell is the same as every user's.

All but one send no frame. The supervisor must end the cell: by the agent's reports, by its silence,
or because the relay has seen no tunnel. The control is the same cell without a saboteur, which must
complete, so that the sabotage and nothing else has ended the others.
"""

from __future__ import annotations

from dataclasses import dataclass

from wgcell.prove.verdict import Phase, Verdict

__all__ = ["HONEST", "SABOTAGES", "Sabotage"]

# The agent fills the workload's /dev when it releases the workload.
_RUNNING = "while [ ! -e /newroot/dev/null ]; do usleep 100000; done; sleep 1"
# The agent is a child of the first process, which is a shell.
_AGENTS = """for stat in /proc/[0-9]*/stat; do
    read -r pid comm _ parent _ <$stat && [ "$comm$parent" = '(python3)1' ] && kill -{signal} "$pid"
done"""
_PORTS = """export PATH=/bin
busybox mkdir -p /proc /sys /dev /run
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox mount -t devtmpfs dev /dev
for list in /modules/early /modules/late; do
    read -r names <$list
    modprobe -a $names
done
port() {
    for node in /sys/class/virtio-ports/*; do
        read -r name <"$node/name"
        [ "$name" = "$1" ] && echo "/dev/${node##*/}"
    done
}
control=''
while [ -z "$control" ]; do control=$(port wgcell.control); usleep 50000; done
exec 3<>"$control"
"""
_LIES = 'VPN OK\\n{"event":"verified"}\\nrelease\\nROGUE-ATTEMPT: \\n'

# One page instead of a kernel: its first instructions mask interrupts and halt.
_KEXEC = """import ctypes
libc = ctypes.CDLL(None, use_errno=True)
code = ctypes.create_string_buffer(b"\\xfa\\xf4\\xeb\\xfd", 4096)
segment = (ctypes.c_uint64 * 4)(ctypes.addressof(code), 4, 0x1000000, 4096)
if libc.syscall(246, 0x1000000, 1, segment, 62 << 16) != 0:
    raise OSError(ctypes.get_errno(), "kexec_load")
libc.syscall(169, 0xFEE1DEAD, 672274793, 0x45584543, 0)
"""


@dataclass(frozen=True, slots=True)
class Sabotage:
    """One such guest. ``ends``: the outcomes that the cell may end with.

    ``beside`` is a shell script that runs beside the stock init, ``instead`` a whole init, and
    ``patch`` the beginning of a line that is removed from the stock init. ``mark`` is in each of
    its frames, if it sends any; its control is then that the captures see the mark through a
    pass-through relay. ``patience`` is the time in seconds within which the cell must end.
    """

    name: str
    does: str
    ends: tuple[str, ...]
    beside: str = ""
    instead: str = ""
    patch: str = ""
    files: tuple[tuple[str, str], ...] = ()
    mark: bytes = b""
    phase: Phase = Phase.RUNNING
    patience: float = 20.0

    @property
    def verdict(self) -> Verdict:
        """Each must end the cell."""
        return Verdict.KILL

    @property
    def group(self) -> str:
        """The report's group."""
        return "tampering"

    @property
    def long(self) -> bool:
        """Whether it takes so long that ``--long`` alone runs it."""
        return self.patience > 60


HONEST = Sabotage("no-sabotage", "is as it should be", ("completed",), patience=8.0)
"""The control."""

_FAULT = ("guest_fault",)
_NEVER = ("guest_fault", "unverified")
_ASKING = f"""{_PORTS}ip link set eth0 up
while :; do
    udhcpc -i eth0 -n -q -t 2 -T 1 -s /bin/true
    arping -c 1 -I eth0 192.0.2.10
    sleep 1
done"""
SABOTAGES = (
    Sabotage("init-replaced", "boots an init of its own, which turns ARP on and asks for DHCP", ("rogue", *_NEVER), instead=_ASKING, mark=bytes.fromhex("ffffffffffff0277670000020806"), phase=Phase.BOOT),
    Sabotage("firewall-flushed", "flushes its firewall while the workload runs", _FAULT, f"{_RUNNING}; nft flush ruleset"),
    Sabotage("firewall-opened", "puts one accepting rule before the others", _FAULT, f"{_RUNNING}; nft insert rule inet wgcell output accept"),
    Sabotage("route-added", "adds a route over the card", _FAULT, f"{_RUNNING}; ip route add 203.0.113.7/32 via 192.168.64.1 dev eth0"),
    Sabotage("peer-changed", "points its WireGuard at another port", _FAULT, f'{_RUNNING}; nsenter -n/run/netns/workload /bin/wg set wg0 peer "$(nsenter -n/run/netns/workload /bin/wg show wg0 peers)" endpoint 192.168.64.1:9'),
    Sabotage("agent-killed", "kills the agent", _FAULT, f"{_RUNNING}; {_AGENTS.format(signal='KILL')}", patience=90),
    Sabotage("heartbeat-stopped", "stops the agent", _FAULT, f"{_RUNNING}; {_AGENTS.format(signal='STOP')}", patience=90),
    Sabotage("reboot", "reboots, to come up without its walls", _FAULT, f"{_RUNNING}; reboot -f"),
    Sabotage("kexec", "jumps by kexec into code of its own, which keeps quiet", _FAULT, f"{_RUNNING}; cp /kexec.py /newroot/tmp; chroot /newroot python3 /tmp/kexec.py >/dev/console 2>&1", files=(("kexec.py", _KEXEC),), patience=90),
    Sabotage("firewall-left-out", "comes up without its firewall", _NEVER, patch="nft -f", phase=Phase.BEFORE),
    Sabotage("ok-on-console", "builds nothing, and says VPN OK on the console", _NEVER, instead=f"{_PORTS}while :; do printf '{_LIES}' >/dev/console; usleep 200000; done", phase=Phase.BEFORE),
    Sabotage("ok-on-port", "builds nothing, and says VPN OK on the control port", _NEVER, instead=f"{_PORTS}echo 'hello 1' >&3; while :; do printf '{_LIES}' >&3; usleep 200000; done", phase=Phase.BEFORE),
    Sabotage("report-forged", "builds nothing, and sends the report of a guest that did", _NEVER, instead=f"{_PORTS}echo 'hello 1' >&3; sleep 1; cat /forged >&3; echo ready >&3; n=1; while :; do echo \"heartbeat $n 0\" >&3; n=$((n + 1)); sleep 1; done", phase=Phase.BEFORE),
)  # fmt: skip
