"""The kernel of an image: what is taken off it, and what is not."""

from __future__ import annotations

import gzip
import struct

import pytest

from wgcell.errors import ImageError
from wgcell.image import kernel


def vmlinux(*segments: tuple[int, bytes, int]) -> bytes:
    """An ELF64 with nothing but what is read: segments at their offsets, each with its p_memsz."""
    head = bytearray(64 + 56 * len(segments))
    head[:4] = b"\x7fELF"
    struct.pack_into("<QQ", head, 32, 64, 9999)
    struct.pack_into("<HHHHH", head, 54, 56, len(segments), 64, 7, 6)
    file = head
    for n, (offset, data, memory) in enumerate(segments):
        struct.pack_into("<IIQQQQQ", head, 64 + 56 * n, 1, 7, offset, 0, 0, len(data), memory)
    for offset, data, _ in segments:
        file = file.ljust(offset, b"\0") + data
    return bytes(file + b"section headers")


def test_a_kernels_trailing_zeros_are_left_to_its_memory_size() -> None:
    whole = vmlinux((4096, b"text" + bytes(4), 8), (8192, b"init" + bytes(9000), 9004))
    made = kernel.without_trailing_zeros(whole)
    assert made == vmlinux((4096, b"text" + bytes(4), 8), (8192, b"init", 9004))[:8196].replace(
        struct.pack("<Q", 9999), bytes(8)
    ).replace(struct.pack("<HHH", 64, 7, 6), bytes(6))
    assert kernel.without_trailing_zeros(made) == made
    with pytest.raises(ImageError, match="nothing to load"):
        kernel.without_trailing_zeros(vmlinux())


def bzimage(payload: bytes, magic: bytes = b"HdrS") -> bytes:
    """Four sectors of setup, then the payload, 100 bytes into the protected-mode code."""
    setup = bytearray(5 * 512)
    setup[0x1F1] = 4
    setup[0x202:0x206] = magic
    struct.pack_into("<II", setup, 0x248, 100, len(payload))
    return bytes(setup) + bytes(100) + payload + b"not the kernel's"


def test_the_kernel_is_taken_out_of_its_bzimage() -> None:
    elf = b"\x7fELF" + bytes(range(256)) * 8
    assert kernel.uncompressed_kernel(bzimage(gzip.compress(elf))) == elf


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (bzimage(gzip.compress(b"\x7fELF"), magic=b"none"), "no bzImage"),
        (bzimage(gzip.compress(b"no ELF")), "not known here"),
        (bzimage(b"\x7fELF"), "not known here"),
        (b"", "no bzImage"),
    ],
)
def test_what_holds_no_kernel_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        kernel.uncompressed_kernel(data)
