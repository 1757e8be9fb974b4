"""The modules of an image: all that are needed, and no other."""

from __future__ import annotations

from wgcell.image import modules


def test_the_modules_that_are_needed_come_along_and_no_others() -> None:
    listed = "k/a.ko: k/b-x.ko k/c.ko\nk/b-x.ko: k/c.ko\nk/c.ko:\nk/other.ko:\n"
    needs = modules.modules_needed(listed, ["a", "built_in"])
    assert needs == {"k/a.ko": ("k/b-x.ko", "k/c.ko"), "k/b-x.ko": ("k/c.ko",), "k/c.ko": ()}
    assert modules.dependencies_text(needs) == "a.ko: b-x.ko c.ko\nb-x.ko: c.ko\nc.ko:\n"


def test_a_modules_signature_is_taken_off_and_nothing_else() -> None:
    module, signature = b"\x7fELF" + bytes(100), b"s" * 300
    about = bytes(8) + len(signature).to_bytes(4, "big")
    signed = module + signature + about + b"~Module signature appended~\n"
    assert modules.without_signature(signed) == module
    assert modules.without_signature(module) == module
