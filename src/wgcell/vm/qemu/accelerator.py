"""The accelerator that works here, found by starting a guest, and not by looking for a device file.

There are hosts where ``/dev/kvm`` opens and QEMU starts on it, and no stock kernel boots. So the
probe boots the very kernel that cells use, with no root filesystem: a kernel that runs says so on
the console, panics, and QEMU (``-no-reboot``, ``panic=-1``) exits. The answer is kept for as long
as this host stays up.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

from wgcell import atomic, programs
from wgcell.vm.qemu.argv import CPU
from wgcell.vm.spec import Accelerator

__all__ = ["PROBE_TIMEOUT", "choose", "host_tsc_khz", "kvm_boots"]

PROBE_TIMEOUT = 8.0
"""Seconds. A kernel on working KVM panics for want of a root within one."""

_BANNER = b"Linux version"


def host_tsc_khz(cpuinfo: str) -> int | None:
    """The host's TSC rate in kHz from the text of ``/proc/cpuinfo``; None where it is not constant.

    Linux prints BogoMIPS as twice the TSC's MHz once it trusts the TSC.
    """
    fields = {
        key.strip(): value.strip()
        for key, found, value in (line.partition(":") for line in cpuinfo.splitlines())
        if found
    }
    if "constant_tsc" not in fields.get("flags", "").split():
        return None
    try:
        return round(float(fields["bogomips"]) * 500)
    except (KeyError, ValueError):
        return None


def kvm_boots(qemu: str, kernel: Path, *, device: Path = Path("/dev/kvm")) -> tuple[bool, str]:
    """Whether ``kernel`` starts on KVM here, and the reason if not."""
    if not device.exists():
        return False, f"{device} is not there"
    if not os.access(device, os.R_OK | os.W_OK):
        return False, f"{device} may not be opened by this user"
    argv = [qemu, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
    argv += ["-machine", "q35,accel=kvm", "-cpu", CPU[Accelerator.KVM], "-m", "256M"]
    argv += ["-kernel", str(kernel), "-append", "console=ttyS0 panic=-1", "-serial", "stdio"]
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PROBE_TIMEOUT,
            check=False,
            env=programs.environment(),
        )
    except subprocess.TimeoutExpired:
        return False, f"a kernel started on KVM did not run within {PROBE_TIMEOUT:.0f} s"
    if done.returncode == 0 and _BANNER in done.stdout:
        return True, ""
    said = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return False, said[-1] if said else "a kernel started on KVM said nothing"


def choose(qemu: str, kernel: Path, cache: Path) -> tuple[Accelerator, str]:
    """The accelerator to use, and why not KVM if it isn't. Probes once per boot of this host."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    stat = kernel.stat()
    key = f"{boot_id}|{qemu}|{kernel}|{stat.st_mtime_ns}|{stat.st_size}|{os.getuid()}"
    file = cache / f"kvm-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    try:
        kept = json.loads(file.read_text())
        boots, reason = bool(kept["boots"]), str(kept["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        boots, reason = kvm_boots(qemu, kernel)
        try:
            cache.mkdir(parents=True, exist_ok=True)
            atomic.write(file, json.dumps({"boots": boots, "reason": reason}).encode())
        except OSError:
            pass  # a cache that can't be written only costs the next run a probe
    return (Accelerator.KVM if boots else Accelerator.TCG), reason
