"""Reads a gateway's configuration as tables: which keys they have, of which types. Pure.

Its keys are the fields of `words.Configure`, which is also what comes of it::

    engine = "embedded"               # or "namespace", or "kernel"
    listen = "0.0.0.0:51820"          # where peers send to; embedded: the first peer, see below
    endpoint = "vpn.example.com"      # the host in the peers' files; without :PORT, the peer's port
    private_key = "…"
    address = "10.99.0.1"             # the gateway's own in the tunnel; its resolver answers there
    address6 = "fd99::1"              # a second one, of IPv6
    rules = ["deny ads.example.com:*", "allow *.example.com:443", "allow 203.0.113.0/24:8000-8010"]
    resolver = ["192.0.2.53:53"]      # instead of this machine's own
    protected = ["198.51.100.0/24"]   # networks of this side, refused as private ones are
    [services]
    "10.99.0.5:80" = "127.0.0.1:8000"
    db = "127.0.0.1:5432"             # at any free address, and named db.internal
    [limits]                          # of each peer
    flows = 512
    [peers.alice]
    public_key = "…"
    address = "10.99.0.2"
    address6 = "fd99::2"              # a second one, if the gateway has one
    port = 51820                      # embedded: each peer has a UDP port of its own
    rules = ["allow 203.0.113.7:22"]  # read before the gateway's own
    publish = ["8080:80"]             # ports of the peer's on this side, as [ADDRESS:]PORT:PORT
    [peers.alice.limits]
    flows_per_second = 8

What its texts mean, and whether they fit together, `parsing` reads.
"""

from __future__ import annotations

from dataclasses import fields

from wgcell.gateway.model.source import Source, Table
from wgcell.gateway.words import Configure, Limits, Peer

__all__ = ["HINTS", "KEYS", "PEER_KEYS", "written"]

KEYS = tuple(field.name for field in fields(Configure))
PEER_KEYS = tuple(field.name for field in fields(Peer))
_LIMITS = tuple(field.name for field in fields(Limits))

HINTS = {
    "private_key": "wgcell gateway keys makes a pair of keys",
    "public_key": "wgcell gateway peer add NAME makes a peer with its keys",
}
"""What to do about a key that is missing or wrong."""
_DEFAULTS = Configure("")


def written(raw: object, source: Source) -> Configure:
    """What stands in ``raw``. Raises `PolicyError` for the first thing that is wrong in form."""
    table = Table(source, "", raw, KEYS)
    return Configure(
        private_key=table.required("private_key", hint=HINTS["private_key"]),
        engine=table.text("engine", _DEFAULTS.engine),
        listen=table.text("listen", _DEFAULTS.listen),
        endpoint=table.text("endpoint", _DEFAULTS.endpoint),
        address=table.text("address", _DEFAULTS.address),
        address6=table.text("address6", None),
        rules=table.texts("rules"),
        resolver=table.texts("resolver"),
        protected=table.texts("protected"),
        # A port alone is a number in TOML, and no service's target either.
        services={inside: str(outside) for inside, outside in table.items("services")},
        limits=_limits(table),
        learn=table.flag("learn"),
        peers={name: _peer(source, name, one) for name, one in table.items("peers")},
    )


def _peer(source: Source, name: str, raw: object) -> Peer:
    table = Table(source, f"peers.{name}", raw, PEER_KEYS)
    return Peer(
        public_key=table.required("public_key", hint=HINTS["public_key"]),
        address=table.required("address", "it is the peer's own in the tunnel"),
        preshared_key=table.text("preshared_key", None),
        address6=table.text("address6", None),
        port=table.number("port"),
        rules=table.texts("rules"),
        publish=table.texts("publish"),
        limits=_limits(table),
    )


def _limits(table: Table) -> Limits:
    within = table.table("limits", _LIMITS)
    return Limits(**{name: within.number(name) for name in _LIMITS})
