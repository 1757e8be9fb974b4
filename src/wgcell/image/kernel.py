"""The kernel that QEMU starts: taken out of Debian's bzImage, without its trailing zeros.

QEMU starts an uncompressed vmlinux by PVH, so the guest decompresses nothing under emulation.
"""

from __future__ import annotations

import struct

from wgcell.errors import ImageError
from wgcell.image.commands import piped

__all__ = ["uncompressed_kernel", "without_trailing_zeros"]

# The setup header of a bzImage, by offset (Linux, Documentation/arch/x86/boot.rst).
_SETUP_SECTORS = 0x1F1
_HEADER_MAGIC = slice(0x202, 0x206)
_PAYLOAD = 0x248
# ELF64, by offset: of the file's header, then of a program header.
_E_PHOFF, _E_SHOFF, _E_PHENTSIZE, _E_SHENTSIZE = 32, 40, 54, 58
_P_OFFSET, _P_FILESZ = 8, 32
_PT_LOAD = 1
_PACKED = {
    # The first bytes: the program, its package, and the length of the trailer. The kernel appends
    # its unpacked size to each stream but gzip's.
    b"\x02\x21\x4c\x18": ("lz4", "lz4", 4),
    b"\xfd7zXZ\x00": ("xz", "xz-utils", 4),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstd", 4),
    b"\x1f\x8b\x08": ("gzip", "gzip", 0),
}


def uncompressed_kernel(bzimage: bytes) -> bytes:
    """The vmlinux inside a bzImage.

    The setup header has its place (setup_sects, payload_offset, payload_length); its first bytes
    show the compression. Raises ImageError for another file and for an unknown compression.
    """
    if bzimage[_HEADER_MAGIC] != b"HdrS":
        raise ImageError("the kernel is no bzImage")
    setup_sectors = bzimage[_SETUP_SECTORS] or 4
    offset, length = struct.unpack_from("<II", bzimage, _PAYLOAD)
    at = (setup_sectors + 1) * 512 + offset
    payload = bzimage[at : at + length]
    for magic, (program, package, trailer) in _PACKED.items():
        if payload.startswith(magic):
            packed = payload[: len(payload) - trailer]
            unpacked = piped([program, "-dc"], packed, hint=f"apt-get install {package}")
            if unpacked.startswith(b"\x7fELF"):
                return unpacked
    raise ImageError("the kernel is packed in a way that is not known here")


def without_trailing_zeros(vmlinux: bytes) -> bytes:
    """A vmlinux whose last segment ends, in the file, with its last byte that is not zero.

    ``p_filesz`` below ``p_memsz`` means zeros (ELF, "Program Header"). Debian's kernel has its
    .bss in the file, because a section with contents follows it. QEMU would map and copy these
    eleven megabytes, and unmap them page by page when it is killed: a quarter of the kill's time.
    The section headers behind them are removed too. Raises ImageError if nothing is loaded.
    """
    (heads,) = struct.unpack_from("<Q", vmlinux, _E_PHOFF)
    size, count = struct.unpack_from("<HH", vmlinux, _E_PHENTSIZE)
    loaded = [
        at
        for at in range(heads, heads + size * count, size)
        if struct.unpack_from("<I", vmlinux, at)[0] == _PT_LOAD
    ]
    if not loaded:
        raise ImageError("the kernel has nothing to load")
    last = max(loaded, key=lambda at: struct.unpack_from("<Q", vmlinux, at + _P_OFFSET)[0])
    (offset,) = struct.unpack_from("<Q", vmlinux, last + _P_OFFSET)
    (length,) = struct.unpack_from("<Q", vmlinux, last + _P_FILESZ)
    made = bytearray(vmlinux[: offset + length].rstrip(b"\0").ljust(offset, b"\0"))
    struct.pack_into("<Q", made, last + _P_FILESZ, len(made) - offset)
    struct.pack_into("<Q", made, _E_SHOFF, 0)
    struct.pack_into("<HHH", made, _E_SHENTSIZE, 0, 0, 0)
    return bytes(made)
