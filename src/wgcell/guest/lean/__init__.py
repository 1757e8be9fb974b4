"""Stand-ins for modules that cost an emulated guest too much: what `wgcell.guest.protocol` needs of
them, and no more.

They lie in the initramfs under the names of the real ones. There an import of `dataclasses` takes
165 ms of processor time and one of `enum` 50, a third of what Python itself takes to start. The
host uses the real ones; `tests/guest/test_lean.py` holds both ends to the same words.
"""
