from __future__ import annotations

from pathlib import Path

from wgcell.machine.argv import (
    NIC_OFFLOADS,
    Accelerator,
    Drive,
    MachineSpec,
    kernel_command_line,
    qemu_argv,
)

SPEC = MachineSpec(
    qemu="qemu-system-x86_64",
    accelerator=Accelerator.TCG,
    kernel=Path("/images/vmlinux"),
    initramfs=Path("/images/initramfs"),
    command_line="quiet",
    cpus=2,
    memory=512,
    drives=(Drive(Path("/images/root,fs"), True), Drive(Path("/cells/scratch"), False)),
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
    assert SPEC.fds == (5, 6, 7, 8, 9)


def test_everything_is_denied_to_qemu_that_its_sandbox_can_deny() -> None:
    assert after(qemu_argv(SPEC), "-sandbox") == [
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
    ]


def test_a_comma_in_a_path_is_not_an_option() -> None:
    first, second = after(qemu_argv(SPEC), "-drive")
    assert "file=/images/root,,fs,read-only=on" in first
    assert "read-only=off" in second


def test_kernel_command_line() -> None:
    emulated = kernel_command_line(Accelerator.TCG, 2596145)
    assert "tsc_early_khz=2596145 lpj=10384580" in emulated
    assert "tsc_early_khz" not in kernel_command_line(Accelerator.TCG, None)
    assert "tsc" not in kernel_command_line(Accelerator.KVM, 2596145)


def test_only_kvm_is_called_hardware() -> None:
    assert Accelerator.KVM.assurance == "hardware"
    assert Accelerator.TCG.assurance == "emulated"
