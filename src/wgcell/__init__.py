"""wgcell: run untrusted code in a VM whose only way out is one WireGuard tunnel.

::

    import wgcell

    done = wgcell.run("python3", "-c", "print(6*7)", allow=["api.example.com:443"])   # blocks

    async with wgcell.Cell(allow=["packages.example.com:443"], memory="1GiB") as cell:
        await cell.files.write("a.py", b"...")
        result = await cell.exec("python3", "a.py", timeout=60)

`wgcell.sync.Cell` is the same without an event loop. Nothing is loaded before it is used.
"""

__version__ = "0.1.0"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from wgcell import sync as sync
    from wgcell.client.cell import Cell as Cell
    from wgcell.client.cell import connect as connect
    from wgcell.client.commands import Process as Process
    from wgcell.client.completed import Completed as Completed
    from wgcell.client.completed import Refusal as Refusal
    from wgcell.client.completed import Usage as Usage
    from wgcell.client.files import Entry as Entry
    from wgcell.client.record import Event as Event
    from wgcell.client.rules import Change as Change
    from wgcell.client.rules import Rule as Rule
    from wgcell.client.settings import CellSettings as CellSettings
    from wgcell.errors import CellError as CellError
    from wgcell.errors import CommandFailed as CommandFailed
    from wgcell.errors import Ended as Ended
    from wgcell.errors import HostError as HostError
    from wgcell.errors import InputError as InputError
    from wgcell.errors import NeverRan as NeverRan
    from wgcell.errors import OutcomeUnknown as OutcomeUnknown
    from wgcell.errors import Refused as Refused
    from wgcell.errors import Rogue as Rogue
    from wgcell.errors import StateError as StateError
    from wgcell.errors import TimedOut as TimedOut
    from wgcell.errors import Unverified as Unverified
    from wgcell.errors import WgcellError as WgcellError
    from wgcell.sync import run as run

_MODULES = {
    "sync": ("sync",),
    "wgcell.client.cell": ("Cell", "connect"),
    "wgcell.client.commands": ("Process",),
    "wgcell.client.completed": ("Completed", "Refusal", "Usage"),
    "wgcell.client.files": ("Entry",),
    "wgcell.client.record": ("Event",),
    "wgcell.client.rules": ("Change", "Rule"),
    "wgcell.client.settings": ("CellSettings",),
    "wgcell.errors": (
        *("CellError", "CommandFailed", "Ended", "HostError", "InputError", "NeverRan"),
        *("OutcomeUnknown", "Refused", "Rogue", "StateError", "TimedOut", "Unverified"),
        "WgcellError",
    ),
    "wgcell.sync": ("run",),
}
"""The module of each public name."""
__all__ = ["__version__", *(name for names in _MODULES.values() for name in names)]


def __getattr__(name: str) -> object:
    """A public name, loaded when it is first used."""
    from importlib import import_module

    if name == "sync":
        return import_module("wgcell.sync")
    for module, names in _MODULES.items():
        if name in names:
            found: object = getattr(import_module(module), name)
            globals()[name] = found
            return found
    raise AttributeError(f"module 'wgcell' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
