"""Found by playing the guest's walls one by one: root without a capability wrote to /proc/sys.

It could name the program that the kernel starts when a process dies (core_pattern), as root of the
first namespaces. With /proc/sys read-only it could still mount another proc in a user namespace,
because the initramfs's own was left in the workload's mount namespace, in full.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.vm, pytest.mark.timeout(120)]

WRITES = "echo one > /proc/sys/kernel/core_pattern\n"
ESCAPES = """
unshare -Urpfm sh -c 'mount -t proc p /mnt && echo two > /mnt/sys/kernel/core_pattern'
unshare -Urpfmn sh -c 'mount -t sysfs s /mnt && [ -w /mnt/kernel/mm ] && echo sysfs'
mount -o remount,rw /proc/sys || umount /proc/sys && echo three > /proc/sys/kernel/core_pattern
echo b > /proc/sysrq-trigger
"""
ASKS = """
cat /proc/sys/kernel/core_pattern
echo 5 > /proc/self/oom_score_adj && echo and its own it may
"""


@pytest.mark.parametrize(
    ("walls", "tries", "said"), [("on", WRITES + ESCAPES, "core"), ("off", WRITES, "one")]
)
def test_root_in_the_workload_names_no_helper(
    tmp_path: Path, walls: str, tries: str, said: str
) -> None:
    argv = [sys.executable, "-m", "wgcell", "run", "--guest-walls", walls]
    argv += ["--state-dir", str(tmp_path), "--", "sh", "-c", tries + ASKS]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=100)
    assert done.stdout == f"{said}\nand its own it may\n", done.stderr
