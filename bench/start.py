"""What a cell costs to start: ``wgcell run -- true`` against booting the same kernel to /init.

Both are whole processes, alternating in one run, on the same accelerator and kernel, each after a
pause of random length: back to back, each of the two meets the same state of a shared processor
every time. The figures are medians of the wall time in seconds and their ratio. Run by
``make bench``.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from wgcell.image import store
from wgcell.vm.qemu.accelerator import choose, host_tsc_khz
from wgcell.vm.qemu.argv import CPU, kernel_command_line
from wgcell.vm.qemu.process import find_qemu
from wgcell.vm.spec import Accelerator

MEMORY = "512M"
"""What a cell gets if nobody asks for more."""
ROUNDS = 9
PAUSE = (0.3, 2.0)
"""Seconds."""


def bare_argv(image: store.Image, accelerator: Accelerator) -> list[str]:
    """A cell's kernel, processor, memory and initramfs; its first process powers off at once."""
    tsc = host_tsc_khz(Path("/proc/cpuinfo").read_text())
    line = kernel_command_line(accelerator, tsc) + " rdinit=/bin/busybox -- poweroff -f"
    return [
        *(find_qemu(), "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-machine", f"q35,accel={accelerator.value},usb=off,graphics=off"),
        *("-cpu", CPU[accelerator], "-m", MEMORY, "-kernel", str(image.kernel)),
        *("-initrd", str(image.initramfs), "-serial", "stdio"),
        *("-append", line),
    ]


def timed(argv: list[str]) -> float:
    time.sleep(random.uniform(*PAUSE))  # noqa: S311
    started = time.monotonic()
    subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=180)
    return time.monotonic() - started


def main() -> int:
    image = store.load("debian")
    accelerator, _ = choose(find_qemu(), image.kernel, store.cache_folder().parent)
    with tempfile.TemporaryDirectory() as temporary:
        wgcell = [str(Path(sys.executable).with_name("wgcell")), "run", "--state-dir", temporary]
        wgcell += ["--", "true"]
        bare = bare_argv(image, accelerator)
        timed(bare)
        pairs = [(timed(bare), timed(wgcell)) for _ in range(ROUNDS)]
    kernel, cell = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(cell / kernel for kernel, cell in pairs)
    print(f"{'kernel to /init and off':<26} {kernel:6.2f} s")
    print(f"{'wgcell run -- true':<26} {cell:6.2f} s")
    spread = [f"{cell / kernel:.2f}" for kernel, cell in pairs]
    print(f"{'ratio (goal: at most 2)':<26} {ratio:6.2f}   each: {' '.join(sorted(spread))}")
    figures = {"accelerator": accelerator.value, "kernel": kernel, "cell": cell, "ratio": ratio}
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
