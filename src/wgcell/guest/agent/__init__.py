"""The guest's agent: one process, from the loading of the kernel's modules to the machine's end.

It runs from the initramfs, in memory, and nothing of the workload's root is executed or trusted to
set that up. ``main`` is its life; ``kernel`` the system calls that Python lacks; ``tools`` the
initramfs's programs; ``loop`` waits; ``network``, ``root`` and ``workload`` set up what their names
say; ``standing`` is what the reports say; ``streams`` carries bytes to the host; ``results`` brings
home what the workload left.

An emulated processor pays for each import: 40 ms for `ctypes`, 70 for `re`, 90 for `socket`, 160
for `dataclasses`, 2,800 for `asyncio`. So nothing but modules that are built into the interpreter,
`os`, and `_ctypes` (`tests/guest/test_lean.py`). The initramfs has no others.
"""
