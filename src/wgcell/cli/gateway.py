"""``wgcell gateway``: the requester's side, on its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import stat
import sys
from collections.abc import Mapping
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from wgcell.cell import endpoint
from wgcell.cell.children import GatewayProcess
from wgcell.cell.folder import find, state_folder
from wgcell.cli import flows
from wgcell.cli.terminal import as_json, clean, console, out, warn
from wgcell.errors import HostError, PolicyError, StateError
from wgcell.gateway import words
from wgcell.gateway.configfile import (
    add_peer,
    check_name,
    load,
    load_config,
    new_gateway,
    remove_peer,
    write_secret,
)
from wgcell.gateway.engines.nftables import forwarding
from wgcell.gateway.engines.nftables.machine import INTERFACE
from wgcell.gateway.model import remarks, wgquick
from wgcell.gateway.model.config import GatewayConfig
from wgcell.gateway.model.keys import generate_private_key, public_key
from wgcell.gateway.model.parsing import configured
from wgcell.gateway.model.policy import Policy
from wgcell.gateway.peer.tally import Tally
from wgcell.net import addresses

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Run the requester's side of the tunnel.")
peer_app = typer.Typer(no_args_is_help=True, help="Add, list and cut off a gateway's peers.")
app.add_typer(peer_app, name="peer")

_LOOK_EVERY = 0.25
"""Seconds between two looks at the file: a peer that is taken out is cut off within them."""
_LARGEST_LOG = 64 << 20
"""Bytes; then the log is turned over, and one older is kept."""

File = Annotated[Path, typer.Argument(metavar="GATEWAY.toml")]
FileOption = Annotated[Path, typer.Option("--file", metavar="GATEWAY.toml")]
Interface = Annotated[str, typer.Option(help="The kernel engine's interface.")]


class Engine(Enum):
    """The keys of a gateway's file."""

    EMBEDDED = "embedded"
    NAMESPACE = "namespace"
    KERNEL = "kernel"


class Export(Enum):
    """The form of the output."""

    NFTABLES = "nftables"
    WG_QUICK = "wg-quick"


def _order(file: Path, *, learn: bool) -> words.Configure:
    """A gateway file as its process takes it, with this machine's own networks protected."""
    order, _ = load(file)
    own = map(str, endpoint.host_networks())
    return replace(order, protected=(*order.protected, *own), learn=learn or order.learn)


class _Log:
    """Flows as lines, on standard output or in a file of bounded size."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        try:
            self._file = path.open("a", encoding="utf-8") if path else sys.stdout
        except OSError as error:
            raise StateError(f"--log {path}: {error.strerror}") from None

    def write(self, event: Mapping[str, object]) -> None:
        self._file.write(as_json(event) + "\n")
        self._file.flush()
        if self._path is not None and self._file.tell() > _LARGEST_LOG:
            self._file.close()
            self._path.replace(self._path.with_name(self._path.name + ".1"))
            self._file = self._path.open("a", encoding="utf-8")


async def _serve(file: Path, log: _Log, learn: bool, arguments: tuple[str, ...]) -> int:
    mark = file.stat()
    order = _order(file, learn=learn)
    gateway = await GatewayProcess.start(order, *arguments)
    _say(f"listening on {_places(gateway, configured(order))}, by the {gateway.engine} engine")
    tally = Tally()
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, asked.set)
    log.write({"event": "ready", "host": gateway.host, "port": gateway.port})

    code = 0

    async def follow() -> None:
        nonlocal code
        try:
            async for word in gateway.flows():
                if isinstance(word, words.Fault):
                    warn(word.detail)
                elif isinstance(word, words.Applied):
                    _say(f"{file} has changed, and is applied")
                event = words.EVENTS.entry(word)
                tally.add(event)
                log.write(event)
        except OSError as error:
            # A flow that can't be recorded must not pass.
            warn(f"the gateway ends, for the log can't be written: {error.strerror}")
            code = 125
        except HostError as error:
            warn(f"the gateway ends: {error.message}")
            code = 125
        asked.set()

    following = asyncio.create_task(follow())
    while not asked.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asked.wait(), _LOOK_EVERY)
        with contextlib.suppress(OSError):
            now = file.stat()
            if (now.st_mtime_ns, now.st_ino) != (mark.st_mtime_ns, mark.st_ino):
                mark = now
                try:
                    order = _order(file, learn=learn)
                    _warn_of_rules(configured(order))
                    if order.engine != gateway.engine:
                        warn(f"the engine stays {gateway.engine}: another one takes a restart")
                    gateway.send(order)
                except PolicyError as error:
                    warn(f"the file is not applied: {error}")
    code = await gateway.quit() or code
    following.cancel()
    for line in tally.summary():
        _say(line)
    if learn:
        out(learned_policy(tally))
    return code


def _say(text: str) -> None:
    console.print(f"[dim]wgcell:[/] {clean(text)}", soft_wrap=True)


def _places(gateway: GatewayProcess, config: GatewayConfig) -> str:
    """The address that peers come to."""
    host = f"[{gateway.host}]" if ":" in gateway.host else gateway.host
    if config.one_port or not config.peers:
        return f"{host}, UDP port {gateway.port}"
    ports = ", ".join(f"{peer.port} for {peer.name}" for peer in config.peers)
    return f"{host}, UDP ports {ports}"


def _warn_of_rules(config: GatewayConfig) -> None:
    for remark in remarks.of_gateway(config):
        warn(remark)


def learned_policy(tally: Tally) -> str:
    """The rules that would have sufficed, as a gateway's file has them."""
    lines = [f"  {json.dumps(f'allow {rule}')}," for rule in tally.learned()]
    return "\n".join(["rules = [", *lines, "]"])


@app.command("run")
def run(
    file: File,
    interface: Interface = INTERFACE,
    learn: Annotated[
        bool, typer.Option("--learn", help="Allow what no rule refuses; print what was needed.")
    ] = False,
    log: Annotated[Path | None, typer.Option(help="Where flows go, instead of stdout.")] = None,
) -> None:
    """Run a gateway; each flow is one JSON line. A changed file is applied at once.

    The file's engine: "embedded" is one program, without root; "kernel" is WireGuard and nftables,
    as root; "namespace" is the same in a network of its own, without root.
    """
    config = load_config(file)
    _warn_of_readers(file)
    _warn_of_rules(config)
    raise typer.Exit(asyncio.run(_serve(file, _Log(log), learn, (config.engine, interface))))


def _warn_of_readers(file: Path) -> None:
    if file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        warn(f"{file} holds a private key and others can read it: chmod 600 {file}")


@app.command()
def check(file: File) -> None:
    """Say whether a gateway's file is right; where it is wrong, in which line, and how."""
    config = load_config(file)
    _warn_of_readers(file)
    for peer in config.peers:
        where = f"{peer.address}, UDP port {config.port_of(peer)}"
        console.print(f"{clean(peer.name)} ({where}): {clean(_reachable(peer.policy))}")
    _warn_of_rules(config)
    count = len(config.peers)
    peers = "1 peer" if count == 1 else f"{count} peers"
    console.print(f"[green]{clean(file)} is right[/], {peers}")


def _reachable(policy: Policy) -> str:
    """The targets that a peer may reach, as the file has them."""
    opened = [rule.text for rule in policy.rules]
    opened += [
        f"{addresses.written(str(one.address), one.port)} = "
        f"{addresses.written(one.target_host, one.target_port)}"
        for one in policy.services
    ]
    return ", ".join(opened) or "nothing"


@app.command()
def export(
    file: File,
    engine: Annotated[Export, typer.Option()] = Export.NFTABLES,
    interface: Interface = INTERFACE,
) -> None:
    """Print what the kernel engine would apply, to be run without wgcell.

    The sets of names are filled by wgcell's resolver: without it, rules with names open nothing.
    wg-quick's text holds the private key.
    """
    config = configured(_order(file, learn=False), str(file))
    if engine is Export.WG_QUICK:
        out(wgquick.server_file(config), end="")
    else:
        out(forwarding.ruleset(config, interface), end="")


@app.command()
def watch(
    source: Annotated[
        str, typer.Argument(metavar="LOG|CELL", help="A file, or a cell's name, id, or its start.")
    ],
    state_dir: Annotated[Path | None, typer.Option("--state-dir")] = None,
) -> None:
    """A live table of flows: of a gateway's --log file, or of a cell's events.

    A cell's ends with the cell. Piped, each flow is a line.
    """
    path, lives = Path(source), lambda: True
    if not path.is_file():
        if path.suffix or path.name != source:  # as no cell is called
            raise StateError(
                f"{path}: there is no such log",
                hint="wgcell gateway run --log FILE writes one; a cell is named as in wgcell ps -a",
            )
        cell = find(state_folder(state_dir), source)
        path, lives = cell.path / "events.jsonl", lambda: cell.alive
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        if sys.stdout.isatty():
            flows.watch(path, lives)
        else:
            flows.print_lines(path, lives)


@app.command()
def keys() -> None:
    """Make a pair of keys: the private on standard output, the public on standard error."""
    private = generate_private_key()
    out(private)
    console.print(f"public: {public_key(private)}")


def _best_engine() -> Engine:
    """Of those that take no root: the one that refuses in the network's own words, if it can be."""
    from wgcell.cli.checks import why_no_namespace_engine

    why = why_no_namespace_engine()
    if not why:
        return Engine.NAMESPACE
    console.print(f"no namespace engine here: {clean(why.splitlines()[0])}")
    return Engine.EMBEDDED


@peer_app.command("add")
def peer_add(
    name: str,
    file: FileOption = Path("gateway.toml"),
    endpoint_host: Annotated[
        str,
        typer.Option("--endpoint", metavar="HOST[:PORT]", help="Where peers come to, as they do."),
    ] = "",
    preshared: Annotated[
        bool, typer.Option("--preshared", help="With a preshared key: not for the embedded engine.")
    ] = False,
    engine: Annotated[
        Engine | None,
        typer.Option(
            help="If the file is not there: the engine of the one that is made. Without it, the "
            "namespace engine where it can be, else the embedded one.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Make a peer: keys, an address, and NAME.conf, ready for wgcell run --vpn.

    A gateway's file that is not there is made.
    """
    check_name(name)
    conf = file.with_name(f"{name}.conf")
    if not file.exists():
        chosen = engine or _best_engine()
        write_secret(file, new_gateway(chosen.value), fresh=True)
        made = f"made {clean(file)}, for the {chosen.value} engine"
        console.print(f"{made}: nothing is allowed yet")
    if conf.exists():
        raise PolicyError(f"{conf} exists already", hint="take it away first, or name another peer")
    peer, text = add_peer(file, name, endpoint=endpoint_host, preshared=preshared)
    write_secret(conf, text, fresh=True)
    console.print(f"peer {peer.name}, {peer.address}: wgcell run --vpn {clean(conf)} …")


@peer_app.command("rm")
def peer_rm(name: str, file: FileOption = Path("gateway.toml")) -> None:
    """Take a peer out. A running gateway cuts it off at once."""
    remove_peer(file, name)
    console.print(f"peer {clean(name)} is out; a running gateway cuts it off at once")
    if (conf := file.with_name(f"{name}.conf")).exists():
        console.print(f"{clean(conf)} is of no use any more, and holds its private key: delete it")


@peer_app.command("ls")
def peer_ls(file: FileOption = Path("gateway.toml")) -> None:
    """List the peers."""
    config = load_config(file)
    for peer in config.peers:
        psk = "  preshared" if peer.preshared_key else ""
        port = config.port_of(peer)
        out(f"{peer.name:<32}  {peer.address!s:<15}  {port:>5}  {peer.public_key}{psk}")
