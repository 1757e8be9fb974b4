from __future__ import annotations

from wgcell.vm.qemu.argv import (
    NIC_OFFLOADS,
    QemuSpec,
    kernel_command_line,
    qemu_argv,
)
from wgcell.vm.spec import Accelerator, Drive

SPEC = QemuSpec(
    qemu="qemu-system-x86_64",
    accelerator=Accelerator.TCG,
    kernel_fd=20,
    initramfs_fd=21,
    command_line="quiet",
    cpus=2,
    memory=512,
    drives=(Drive(22), Drive(23, 24)),
    mac="02:77:67:00:00:02",
    nic_fd=5,
    qmp_fd=6,
    console_fd=7,
    ports={"wgcell.control": 8, "wgcell.stdout": 9},
)


def after(argv: list[str], option: str) -> list[str]:
    return [argv[i + 1] for i, word in enumerate(argv) if word == option]


def test_the_one_network_backend_is_the_inherited_socket() -> None:
    argv = qemu_argv(SPEC)
    assert "-nodefaults" in argv and "-no-user-config" in argv and "-no-reboot" in argv
    assert after(argv, "-netdev") == ["stream,id=link,addr.type=fd,addr.str=5"]
    assert "-nic" not in argv and "-net" not in argv
    cards = [device for device in after(argv, "-device") if "net" in device]
    assert len(cards) == 1
    assert ",romfile=," in cards[0]
    for offload in NIC_OFFLOADS:
        assert f"{offload}=off" in cards[0]


def test_no_channel_needs_a_socket_of_qemus_own() -> None:
    argv = qemu_argv(SPEC)
    for chardev in after(argv, "-chardev"):
        assert chardev.startswith("socket,id=") and ",fd=" in chardev
        assert "path=" not in chardev and "host=" not in chardev
    assert SPEC.fds == (20, 21, 22, 23, 24, 5, 6, 7, 8, 9)


def test_everything_is_denied_to_qemu_that_its_sandbox_can_deny() -> None:
    assert after(qemu_argv(SPEC), "-sandbox") == [
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
    ]


def test_no_instruction_runs_before_it_is_let() -> None:
    assert "-S" in qemu_argv(SPEC)


def test_every_file_is_an_inherited_descriptor() -> None:
    argv = qemu_argv(SPEC)
    assert after(argv, "-kernel") == ["/proc/self/fd/20"]
    assert after(argv, "-initrd") == ["/proc/self/fd/21"]
    assert after(argv, "-add-fd") == ["fd=22,set=0", "fd=23,set=1", "fd=24,set=1"]
    first, second = after(argv, "-drive")
    assert "file=/dev/fdset/0,read-only=on" in first
    assert "file=/dev/fdset/1,read-only=off" in second


def test_kernel_command_line() -> None:
    emulated = kernel_command_line(Accelerator.TCG, 2596145)
    assert "tsc_early_khz=2596145 lpj=10384580" in emulated
    assert "tsc_early_khz" not in kernel_command_line(Accelerator.TCG, None)
    assert "tsc" not in kernel_command_line(Accelerator.KVM, 2596145)


def test_only_kvm_is_called_hardware() -> None:
    assert Accelerator.KVM.assurance == "hardware"
    assert Accelerator.TCG.assurance == "emulated"
