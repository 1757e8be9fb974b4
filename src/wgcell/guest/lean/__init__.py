"""Stand-ins for modules that cost an emulated guest too much: what `wgcell.guest.protocol` needs of
them, and no more.

They lie in the initramfs under the names of the real ones. There an import of `dataclasses` takes
160 ms of an emulated processor's time and one of `enum` 45; Python itself starts in 70. The
host uses the real ones; `tests/guest/test_lean.py` holds both ends to the same words.
"""
