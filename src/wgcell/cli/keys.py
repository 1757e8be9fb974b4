"""The keys that leave a terminal session, as docker has them: ``ctrl-p,ctrl-q``. Pure."""

from __future__ import annotations

from wgcell.errors import InputError

__all__ = ["DETACH_KEYS", "DetachKeys", "parsed"]

DETACH_KEYS = "ctrl-p,ctrl-q"
_CONTROLS = {f"ctrl-{key}": ord(key) & 0x1F for key in "abcdefghijklmnopqrstuvwxyz@[\\]^_"}


def parsed(text: str) -> bytes:
    """The bytes of keys as they are written, separated by commas; none for an empty text.

    Raises InputError.
    """
    found = bytearray()
    for key in text.split(",") if text else ():
        if len(key) == 1 and key.isascii() and key.isprintable():
            found += key.encode()
        elif key.lower() in _CONTROLS:
            found.append(_CONTROLS[key.lower()])
        else:
            raise InputError(
                f"command line: --detach-keys: found {key[:20]!r}; allowed: single characters and "
                "ctrl- with one of a-z @ [ \\ ] ^ _, separated by commas"
            )
    return bytes(found)


class DetachKeys:
    """What is typed, until the keys come. A part of them is held back until it is known to be
    none."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._seen = 0
        """How many of them were typed last, one behind the other."""
        self.came = False

    def feed(self, typed: bytes) -> bytes:
        """What of it, and of what was held back, goes to the program; nothing once they came."""
        if not self._keys:
            return typed
        passed = bytearray()
        for byte in typed:
            if self.came:
                break
            if byte != self._keys[self._seen] and self._seen:
                passed += self._keys[: self._seen]
                self._seen = 0
            if byte == self._keys[self._seen]:
                self._seen += 1
                self.came = self._seen == len(self._keys)
            else:
                passed.append(byte)
        return bytes(passed)
