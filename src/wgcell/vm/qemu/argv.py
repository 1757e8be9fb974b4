"""A machine's description -> QEMU's command line. Pure: the same spec gives the same text.

What is *not* there matters most: ``-nodefaults -no-user-config`` or QEMU adds a NIC on user-mode
NAT by itself; ``romfile=`` or the NIC's boot ROM emits DHCP and router solicitations before any
operating system runs. Every channel is an inherited file descriptor, so QEMU needs no right to
make a socket. Only options that QEMU 7.2 and 10 both know are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from wgcell.vm.spec import Accelerator, Drive

__all__ = [
    "NIC_OFFLOADS",
    "QemuSpec",
    "kernel_command_line",
    "qemu_argv",
]

# The relay verifies checksums and lengths as they would stand on a wire, so QEMU and the guest
# must not agree between themselves to leave any of it unfilled.
NIC_OFFLOADS = (
    "csum",
    "gso",
    "guest_csum",
    "guest_tso4",
    "guest_tso6",
    "guest_ecn",
    "guest_ufo",
    "host_tso4",
    "host_tso6",
    "host_ecn",
    "host_ufo",
    "mrg_rxbuf",
    "ctrl_rx",
    "ctrl_rx_extra",
    "ctrl_vlan",
    "ctrl_mac_addr",
    "ctrl_guest_offloads",
    "guest_announce",
    "ctrl_vq",
    "mq",
)


CPU: Mapping[Accelerator, str] = MappingProxyType(
    {
        Accelerator.KVM: "host",
        # rdrand lets the guest's kernel seed its generator at once; under TCG wider
        # vectors would only be slower.
        Accelerator.TCG: "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+rdrand",
    }
)


@dataclass(frozen=True, slots=True)
class QemuSpec:
    """QEMU's whole configuration.

    File descriptors are numbers in QEMU's own process: it gets no path of the cell's, and so needs
    no right to any. ``memory`` is in MiB, ``ports`` maps a virtio-serial port's name to the socket
    behind it.
    """

    qemu: str
    accelerator: Accelerator
    kernel_fd: int
    initramfs_fd: int
    command_line: str
    cpus: int
    memory: int
    drives: tuple[Drive, ...]
    mac: str
    nic_fd: int
    qmp_fd: int
    console_fd: int
    ports: Mapping[str, int]

    @property
    def _drive_fds(self) -> tuple[int, ...]:
        return tuple(fd for drive in self.drives for fd in drive.fds)

    @property
    def fds(self) -> tuple[int, ...]:
        """Every descriptor that QEMU must inherit."""
        return (
            *(self.kernel_fd, self.initramfs_fd, *self._drive_fds),
            *(self.nic_fd, self.qmp_fd, self.console_fd, *self.ports.values()),
        )


def kernel_command_line(accelerator: Accelerator, tsc_khz: int | None) -> str:
    """The guest kernel's command line.

    Under TCG the guest's TSC is the host's: naming its rate (kHz) saves the calibration, which
    costs half a second and is the part of a TCG boot that can hang.
    """
    words = [
        "console=ttyS0",
        "quiet",
        "loglevel=5",
        "panic=-1",
        "random.trust_cpu=on",
        "cryptomgr.notests",
        "lsm=capability",
        "net.ifnames=0",
        # For the setup only: the agent takes both back before the workload starts. Programs at the
        # same addresses let TCG use its translations again; grace periods are not waited for.
        "norandmaps",
        "rcupdate.rcu_expedited=1",
    ]
    if accelerator is Accelerator.TCG:
        words += ["no_timer_check", "tsc=reliable"]
        if tsc_khz is not None:
            words += [f"tsc_early_khz={tsc_khz}", f"lpj={tsc_khz * 4}"]
    return " ".join(words)


def qemu_argv(spec: QemuSpec) -> list[str]:
    """QEMU's command line for ``spec``."""
    offloads = ",".join(f"{name}=off" for name in NIC_OFFLOADS)
    argv = [
        spec.qemu,
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        # The processor waits for `Machine.go`.
        "-S",
        "-display",
        "none",
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        "-machine",
        f"q35,accel={spec.accelerator.value},usb=off,vmport=off,smbus=off,sata=off,graphics=off",
        "-cpu",
        CPU[spec.accelerator],
        "-smp",
        str(spec.cpus),
        "-m",
        f"{spec.memory}M",
        "-rtc",
        "base=utc,clock=host",
        "-kernel",
        f"/proc/self/fd/{spec.kernel_fd}",
        "-initrd",
        f"/proc/self/fd/{spec.initramfs_fd}",
        "-append",
        spec.command_line,
        "-chardev",
        f"socket,id=qmp,fd={spec.qmp_fd}",
        "-mon",
        "chardev=qmp,mode=control",
        "-chardev",
        f"socket,id=console,fd={spec.console_fd}",
        "-serial",
        "chardev:console",
        "-netdev",
        f"stream,id=link,addr.type=fd,addr.str={spec.nic_fd}",
        "-device",
        f"virtio-net-pci,netdev=link,mac={spec.mac},romfile=,{offloads}",
    ]
    for index, drive in enumerate(spec.drives):
        mode = "on" if drive.writable_fd is None else "off"
        for fd in drive.fds:
            argv += ["-add-fd", f"fd={fd},set={index}"]
        argv += [
            "-drive",
            f"if=none,id=drive{index},format=raw,file=/dev/fdset/{index},read-only={mode}"
            ",cache=unsafe",
            "-device",
            f"virtio-blk-pci,drive=drive{index}",
        ]
    argv += ["-device", f"virtio-serial-pci,id=serial,max_ports={len(spec.ports) + 1}"]
    for index, (name, fd) in enumerate(spec.ports.items(), start=1):
        argv += [
            "-chardev",
            f"socket,id=port{index},fd={fd}",
            "-device",
            f"virtserialport,bus=serial.0,nr={index},chardev=port{index},name={name}",
        ]
    return argv
