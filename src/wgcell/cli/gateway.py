"""``wgcell gateway``: the requester's side, on its own."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from wgcell.cell.children import GatewayProcess
from wgcell.errors import PolicyError
from wgcell.gateway.keys import decode_key, generate_private_key, public_key

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Run the requester's side of the tunnel.")

_KEYS: dict[str, type] = {
    "listen": str,
    "private_key": str,
    "peers": list,
    "allow": list,
    "services": dict,
    "address": str,
}


def _load(file: Path) -> dict[str, Any]:
    """A gateway file as the engine takes it. Raises PolicyError naming the key."""
    try:
        given = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise PolicyError(f"{file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PolicyError(f"{file}: {error}") from error
    for key, value in given.items():
        if key not in _KEYS:
            raise PolicyError(f"{file}: unknown key {key!r}", mend=f"known: {', '.join(_KEYS)}")
        if not isinstance(value, _KEYS[key]):
            raise PolicyError(f"{file}: {key}: expected a {_KEYS[key].__name__}, found {value!r}")
    for key in ("private_key", "peers"):
        if key not in given:
            raise PolicyError(
                f"{file}: {key} is missing", mend="wgcell gateway keys makes a pair of keys"
            )
    for place, key in [("private_key", given["private_key"])] + [
        ("peers", k) for k in given["peers"]
    ]:
        try:
            decode_key(str(key))
        except PolicyError as error:
            raise PolicyError(f"{file}: {place}: {error.message}") from None
    host, _, port = str(given.get("listen", "0.0.0.0:51820")).rpartition(":")
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise PolicyError(f"{file}: listen: expected ADDRESS:PORT, found {given['listen']!r}")
    return {
        "allow": [],
        "services": {},
        "address": "10.99.0.1",
        **given,
        "listen": [host.strip("[]"), int(port)],
    }


async def _serve(configuration: dict[str, Any]) -> int:
    gateway = await GatewayProcess.start(configuration)
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, asked.set)
    print(json.dumps({"event": "ready", "host": gateway.host, "port": gateway.port}), flush=True)

    async def flows() -> None:
        async for flow in gateway.flows():
            print(json.dumps(flow), flush=True)
        asked.set()

    following = asyncio.create_task(flows())
    await asked.wait()
    code = await gateway.quit()
    following.cancel()
    return code


@app.command("run")
def run(file: Annotated[Path, typer.Argument(metavar="GATEWAY.toml")]) -> None:
    """Run a gateway in user space; each flow is one JSON line on standard output.

    The file's keys: listen = "ADDRESS:PORT", private_key, peers = [public keys],
    allow = ["HOST:PORT", …], services = {"10.99.0.5:80" = "127.0.0.1:8000"}.
    """
    raise typer.Exit(asyncio.run(_serve(_load(file))))


@app.command()
def keys() -> None:
    """Make a pair of keys: the private on standard output, the public on standard error."""
    private = generate_private_key()
    print(private)
    print(f"public: {public_key(private)}", file=sys.stderr)
