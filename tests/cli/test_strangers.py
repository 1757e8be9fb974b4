"""Whatever a stranger writes, wherever: no control byte of his comes out, and no line of his.

Job files, wg-quick files, gateway files, a guest's words, events, and cells' folders that somebody
else has written. Strings are enumerated from the schemas, so that a new one is tried by itself.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import json
import os
import select
import unicodedata
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from tests.support.shown import is_text, told
from tests.support.supervisors import closed, supervisor, with_streams  # noqa: F401
from tests.support.vpnfiles import PRIVATE
from tests.support.zygotes import Zygote

import wgcell
from wgcell import errors
from wgcell.announcement import opens
from wgcell.cell.core import events as seen
from wgcell.cell.events import EventLog
from wgcell.cell.folder import create
from wgcell.cell.job import HostLimits, JobOptions
from wgcell.cell.jobfile import job_keys, load_job
from wgcell.cell.states import State
from wgcell.cli.terminal import clean
from wgcell.display import INVISIBLE, one_line, paragraph
from wgcell.errors import GuestError, LaunchError, WgcellError
from wgcell.gateway.model import document, remarks
from wgcell.gateway.model.rules import parse_rule
from wgcell.guest import protocol
from wgcell.guest.walls import Wall

FORGED = "wgcell: all is well"
HOSTILE = [
    *("\x1b[2J\x1b[1A\x1b]0;title\x07", "\x9b2J", "\r", "\x08\x08", "\x00", "\x7f", "\x0b\x0c"),
    *(f"\n{FORGED}", f"\r\n{FORGED}", f"\x85{FORGED}", f"\u2028{FORGED}\u2029{FORGED}"),
    *("\u202egnp\u2066", "\u200b\u200e\u200f\ufeff\u2060\xad", "\U000e0041", "[red]x[/] :skull:"),
]
ALL = "x" + "".join(HOSTILE)
TEXTS = (ALL, HOSTILE[0], f"\n{FORGED}")
"""All at once, and those that may matter as the first character."""
HOST = HostLimits(cpus=64, memory=2**40, disk=2**40)


def assert_ours(said: str, *begins: str) -> None:
    """Every line is text, none is the stranger's, none hides or reorders."""
    for line in said.split("\n"):
        assert is_text(line, but="\t"), repr(line)
        assert not any(one in line for one in ("\u200b", "\ufeff", "\xad", "\U000e0041")), repr(
            line
        )
        assert not line.startswith(FORGED), repr(line)
        if begins and line:
            assert line.startswith((*begins, "  ")), repr(line)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    place = tmp_path_factory.mktemp("strangers")
    (place / "cells").mkdir()
    with contextlib.closing(Zygote(place)) as made:
        yield made


@pytest.fixture
def zygote(started: Zygote) -> Iterator[Zygote]:
    """A process for all command lines of a test."""
    with started.batch():
        yield started


def said_by(zygote: Zygote, *argv: str) -> tuple[int, str]:
    try:
        code = zygote.run(argv)
        said = (zygote.place / "stderr").read_bytes().decode()  # as it is, no newline translated
        assert_ours(said, "wgcell: ")
        assert_ours((zygote.place / "stdout").read_bytes().decode())
    except AssertionError as error:
        error.add_note(f"wgcell {' '.join(map(repr, argv))}")
        for file in filter(Path.is_file, map(zygote.place.joinpath, argv)):
            error.add_note(f"{file.name}: {file.read_bytes()!r}")
        raise
    return code, said


def toml(text: str) -> str:
    """A string of TOML with that text, whatever it is."""
    return '"' + "".join(f"\\U{ord(one):08x}" for one in text) + '"'


def values(text: str) -> list[str]:
    string = toml(text)
    return [
        string,
        f"[{string}]",
        f"{{ {string} = {string} }}",
        f"{{ a = {string} }}",
        f"[[{string}]]",
    ]


@pytest.mark.parametrize("key", [*job_keys(), "unknown", "env.x", "gateway.services.x"])
def test_a_job_files_values(zygote: Zygote, key: str) -> None:
    for text in TEXTS:
        for value in values(text):
            (zygote.place / "job.toml").write_text(f"command = ['true']\n{key} = {value}\n")
            code, said = said_by(zygote, "run", "job.toml")
            assert code == 125 and said


TABLES = [
    "",
    *sorted({key.rpartition(".")[0] for key in job_keys()} - {""}),
    "env",
    "gateway.services",
]


@pytest.mark.parametrize("table", TABLES)
def test_a_job_files_keys(zygote: Zygote, table: str) -> None:
    for text in TEXTS:
        head = f"[{table}]\n" if table else ""
        (zygote.place / "job.toml").write_text(f"command = ['true']\n{head}{toml(text)} = 'x'\n")
        said_by(zygote, "run", "job.toml")
        # As they are, which TOML forbids for most.
        raw = f'command = [\'true\']\n{head}"{text}" = "{text}"\n'.encode("utf-8", "replace")
        (zygote.place / "job.toml").write_bytes(raw)
        said_by(zygote, "run", "job.toml")


WG_QUICK = {
    # wg-quick(8) and wg(8), written down apart from what reads them.
    "Interface": (
        *("PrivateKey", "ListenPort", "FwMark", "Address", "DNS", "MTU", "Table", "SaveConfig"),
        *("PreUp", "PostUp", "PreDown", "PostDown"),
    ),
    "Peer": ("PublicKey", "PresharedKey", "AllowedIPs", "Endpoint", "PersistentKeepalive"),
}
PLAIN = {
    "Interface": {"PrivateKey": PRIVATE, "Address": "10.9.0.2/32"},
    "Peer": {"PublicKey": PRIVATE, "AllowedIPs": "0.0.0.0/0", "Endpoint": "203.0.113.9:51820"},
}


def wg_quick(changed: dict[str, dict[str, str]]) -> str:
    sections = {name: {**PLAIN[name], **changed.get(name, {})} for name in PLAIN}
    return "".join(
        f"[{name}]\n" + "".join(f"{key} = {value}\n" for key, value in lines.items())
        for name, lines in sections.items()
    )


@pytest.mark.parametrize(
    ("section", "key"), [(name, key) for name, keys in WG_QUICK.items() for key in (*keys, "Odd")]
)
def test_a_wg_quick_file(zygote: Zygote, section: str, key: str) -> None:
    for text in (*TEXTS, f"fe80::1%{ALL}", f"[fe80::1%{ALL}]:51820", f"{ALL}:51820"):
        for file in (
            wg_quick({section: {key: text}}),
            wg_quick({section: {f"{key}{text}": "1"}}),
            wg_quick({}) + f"[{text}]\n",
            wg_quick({}) + f"{text}\n",
        ):
            (zygote.place / "v.conf").write_bytes(file.encode("utf-8", "replace"))
            said_by(zygote, "run", "--vpn", "v.conf", "--", "true")


def pieces(said: str, secret: str) -> set[str]:
    """Runs of six characters of ``secret`` that were said."""
    return {secret[at : at + 6] for at in range(len(secret) - 5)} & {
        said[at : at + 6] for at in range(len(said) - 5)
    }


@pytest.mark.parametrize("name", ["PrivateKey", "PresharedKey"])
def test_no_piece_of_a_key_is_said_however_it_is_written(zygote: Zygote, name: str) -> None:
    secret = "qT7/uV3+Zx9KcR2mWfE8yLbNaPdGhJkSoXiYtUvBnM0="
    section = "Interface" if name == "PrivateKey" else "Peer"
    whole = wg_quick({section: {name: secret}})
    wrapped = [
        whole.replace(secret, secret[:at] + between + secret[at:])
        for at in (0, 1, 10, 22, 30, 36, 43)
        for between in ("\n", "\n  ", "\r\n", " ", "=\n", "\\\n", ",")
    ]
    others = [
        whole.replace(f"{name} = ", instead)
        for instead in (f"{name}: ", f"{name} ", "", f"{name}", f"# {name}\n", f"[{section}] ")
    ]
    for text in (*wrapped, *others, secret, f"{secret}\n{whole}", whole.replace("=\n", "\n")):
        (zygote.place / "v.conf").write_bytes(text.encode())
        _, said = said_by(zygote, "run", "--vpn", "v.conf", "--", "true")
        assert not pieces(said, secret), (text, said)


GATEWAY = {
    "private_key": PRIVATE,
    "peers": {"alice": {"public_key": PRIVATE, "address": "10.99.0.2"}},
}


def as_toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{toml(k)} = {as_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    return toml(value) if isinstance(value, str) else json.dumps(value)


@pytest.mark.parametrize("key", [*document.KEYS, *document.PEER_KEYS, "unknown"])
def test_a_gateway_file(zygote: Zygote, key: str) -> None:
    for text in (*TEXTS, f"allow {ALL}:80", f"fe80::1%{ALL}"):
        for value in (text, [text], {text: text}, {text: {text: text}}):
            peer = {**GATEWAY["peers"]["alice"], key: value}  # type: ignore[index]
            of_peer = {**GATEWAY, "peers": {"alice": peer, text: peer}}
            for file in ({**GATEWAY, key: value}, of_peer):
                lines = (f"{toml(name)} = {as_toml(one)}\n" for name, one in file.items())
                (zygote.place / "gateway.toml").write_text("".join(lines))
                said_by(zygote, "gateway", "check", "gateway.toml")


def harmless_looking(text: str) -> str:
    """A job that is taken, with strangers' words wherever it can have them."""
    return (
        f"command = [{toml(text)}, 'x']\nexclude = [{toml(text)}]\n"
        f"inputs = [{toml(text.replace('/', ''))}]\n[env]\nA = {toml(text)}\n"
        "[gateway]\nallow = ['example.com:443', '[2001:db8::1]:443']\n"
        "services = { '10.99.0.5:80' = '8.8.8.8:80' }\n"
    )


def test_what_a_run_says_before_it_begins(tmp_path: Path) -> None:
    taken = 0
    for text in (ALL, *HOSTILE):
        (tmp_path / "job.toml").write_text(harmless_looking(text))
        with contextlib.suppress(WgcellError):
            job = load_job(tmp_path / "job.toml", HOST, JobOptions(outputs=("x",)))
            taken += 1
            assert_ours(clean(opens(job, None, ())))
            rules = tuple(map(parse_rule, job.gateway.allow if job.gateway else ()))
            assert_ours("\n".join(map(one_line, remarks.of_rules(rules))))
    assert taken > 5


def shapes(hint: Any, text: str) -> list[Any]:
    """Values of a field with that type, hostile ones where it is text."""
    if hint is str:
        return [text]
    if hint is int:
        return [0, 2**53]
    return [dict.fromkeys(protocol.REPORTS, text), {text: text}]  # Mapping[str, str]


def hostile_messages() -> Iterator[Any]:
    for kind in get_args(protocol.Message):
        hints = get_type_hints(kind)
        for text in (ALL, ALL * 200):
            choices = [shapes(hints[column.name], text) for column in fields(kind)]
            for at in range(max(map(len, choices), default=1)):
                yield kind(*(choice[at % len(choice)] for choice in choices))


@pytest.mark.parametrize("state", list(State))
def test_a_guests_words(tmp_path: Path, state: State) -> None:
    async def body() -> None:
        events: list[Any] = []
        walls = frozenset(Wall)
        one = with_streams(supervisor(tmp_path, events.append, guest_walls=walls))
        one.core.state = state
        causes: list[Any] = []
        one.core._cause = lambda cause, reason="": causes.append((cause, str(reason)))  # type: ignore[method-assign]
        for message in hostile_messages():
            one.feed(seen.FromGuest(message))
        for cause, reason in causes:
            events.append(
                {"event": "ended", "outcome": cause.name, "reason": reason, "exit_code": 1}
            )
        assert_ours(told(events), "wgcell: ")
        log = (one.host.folder.path / "events.jsonl").read_bytes()
        assert all(0x20 <= byte < 0x7F or byte == 0x0A for byte in log)
        assert b"all is well" in log and len(causes) > 1

    asyncio.run(body())


def made(kind: type[WgcellError], text: str, more: str) -> WgcellError:
    """An error with ``more`` of a stranger's in each text that it has."""
    texts = dict.fromkeys(("hint", "cell", "folder", "outcome", "rule", "what"), more)
    given: dict[str, Any] = {**texts, "exit_code": 1}
    named = inspect.signature(kind).parameters.keys() & given
    return kind(text, **{name: given[name] for name in named})


def test_no_error_has_more_lines_than_it_was_given() -> None:
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, WgcellError):
            for text in (ALL, *HOSTILE):
                assert len(str(made(kind, text, text)).split("\n")) <= 2
                assert_ours(str(made(kind, f"x{text}", text)))
    assert str(LaunchError("x", output=ALL)).count("\n") < 6


def test_a_guests_lines_that_are_no_messages() -> None:
    for text in HOSTILE:
        for line in (f"{text}\n", f"fault {text}\n", f"changed {text} x\n", f"exit {text} 1 2\n"):
            with pytest.raises(GuestError) as caught:
                protocol.parse(line.encode())
            assert_ours(str(caught.value))
            assert "\n" not in str(caught.value)


WRITERS = ("append", "log_bounded", "_log", "_log_bounded", "log")
"""What a call is named that writes an event into the record, or has it written."""


def _name(called: ast.expr) -> str:
    return called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")


def events_in_source() -> dict[str, set[str]]:
    """Each event's name, and the names of its fields, by whoever appends it."""
    found: dict[str, set[str]] = {}
    for path in Path(wgcell.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and _name(node.func) in WRITERS
                and node.args
                and isinstance(node.args[0], ast.Constant)
                and isinstance(node.args[0].value, str)
                and node.keywords
            ):
                names = {word.arg for word in node.keywords if word.arg}
                found.setdefault(node.args[0].value, set()).update(names)
    return found


STRUCTURED: dict[tuple[str, str], Any] = {
    # Fields that a reader of events takes apart.
    ("walls", "missing"): {ALL: ALL},
    ("walls", "seal"): False,
    ("walls", "jail"): False,
    ("outputs", "left_out"): [ALL],
}
FLOW = ("peer", "verdict", "rule", "reason", "hint", "host", "name", "address", "protocol", "port")


def hostile_events(text: str) -> list[dict[str, Any]]:
    made = []
    for name, names in sorted(events_in_source().items()):
        known = {*names, "reason", "outcome", "exit_code", "state", "folder", "verdict"}
        known |= {"seal", "jail", "missing"} if name == "walls" else set()
        made.append(
            {"event": name, **{one: STRUCTURED.get((name, one), text) for one in sorted(known)}}
        )
    for kind in ("flow", "flow_end", "flows_omitted", "fault", text):
        for verdict in ("allow", "refuse", "failed", text):
            flow = {**dict.fromkeys((*FLOW, "refuse", "bytes_out"), text), "verdict": verdict}
            made.append({"event": kind, **flow, "rule": "learn" if verdict == "allow" else text})
    return made


def test_every_event_told_as_it_happens() -> None:
    assert len(events_in_source()) > 15
    for text in TEXTS:
        for event in hostile_events(text):
            # What an event lacks is our own doing; what its fields say is not.
            with contextlib.suppress(KeyError):
                assert_ours(told([event, {**event, "event": "ended"}]), "wgcell: ")


def strangers_cells(cells: Path) -> list[str]:
    """Folders that somebody else wrote: by the log, and by hand with raw bytes."""
    names = []
    job = {"name": ALL, "command": [ALL, *HOSTILE], "image": ALL, "env": [ALL]}
    result = {"outcome": ALL, "reason": ALL, "exit_code": 1, "relay": {ALL: ALL}}
    odd = [
        *({**job, "command": value} for value in (ALL, {ALL: ALL}, [[ALL]], 7, None)),
        *([ALL], ALL, 7, None),
    ]
    for number, raw in enumerate((False, True, *odd)):
        cell = create(cells, f"stranger-{number}")
        os.close(cell.hold())
        names.append(cell.id)
        log = EventLog(cell.path / "events.jsonl", lambda event: None)
        for event in hostile_events(ALL) if number == 0 else ():
            log.append(event.pop("event"), **event)
        log.close()
        content = odd[number - 2] if number > 1 else job
        as_it_is = raw is True
        for name, whole in (
            ("job.json", content),
            ("result.json", result if number < 2 else content),
        ):
            (cell.path / name).write_text(json.dumps(whole, ensure_ascii=not as_it_is))
        if as_it_is:
            with (cell.path / "events.jsonl").open("ab") as file:
                file.write(ALL.encode() + b"\n\xff\x9b2J\n")
                for event in hostile_events(ALL):
                    file.write(json.dumps(event, ensure_ascii=False).encode() + b"\n")
        for name in ("stdout.log", "console.log"):
            (cell.path / name).write_bytes(ALL.encode() + b"\xff\x9b2J\n")
    return names


@pytest.fixture(scope="module")
def cells(started: Zygote) -> list[str]:
    return strangers_cells(started.place / "cells")


VERBS = (
    *(("ps", "-a"), ("ps", "-a", "--json"), ("ps", "-a", "-q"), ("inspect", "CELL")),
    *(("events", "CELL"), ("events", "--verify", "CELL"), ("gateway", "watch", "CELL")),
    ("ps", "-a", "--format", "{{.Cell}} {{.Name}} {{.User}} {{.Status}} {{.Reason}} {{.Command}}"),
)


@pytest.mark.parametrize("verb", VERBS)
def test_cells_that_a_stranger_wrote(
    zygote: Zygote, cells: list[str], verb: tuple[str, ...]
) -> None:
    for cell in cells if "CELL" in verb else cells[:1]:
        said_by(zygote, *(cell if word == "CELL" else word for word in verb))
    if verb[0] == "ps":
        printed = (zygote.place / "stdout").read_text()
        assert len(printed.splitlines()) == len(cells) + (verb == ("ps", "-a"))


@pytest.mark.parametrize("verb", [*VERBS, ("logs", "CELL"), ("logs", "--console", "CELL")])
def test_and_on_a_terminal(started: Zygote, cells: list[str], verb: tuple[str, ...]) -> None:
    for cell in cells[:2]:
        ours, theirs = os.openpty()
        try:
            argv = tuple(cell if word == "CELL" else word for word in verb)
            shown = on_terminal(started, argv, ours, os.ttyname(theirs))
        finally:
            os.close(ours)
            os.close(theirs)
        plain = shown.replace("\r\n", "\n")
        if verb[0] == "logs":
            # A workload's movement within its line, which `wgcell.cli.escapes` lets through.
            plain = plain.replace("\r", "").replace("\b", "")
            assert is_text(plain, but="\n\t"), repr(plain)
        elif verb[1] != "watch":
            assert_ours(plain)


def on_terminal(zygote: Zygote, argv: tuple[str, ...], ours: int, name: str) -> str:
    """What a verb writes to a terminal that is read meanwhile."""
    import threading

    shown = bytearray()
    over = threading.Event()

    def read() -> None:
        while True:
            if select.select((ours,), (), (), 0.05)[0]:
                shown.extend(os.read(ours, 65536))
            elif over.is_set():
                return

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        zygote.run(argv, {"fds": {"1": name}})
    finally:
        over.set()
        reader.join()
    return shown.decode()


def printers(tree: ast.AST) -> set[str]:
    """Calls that write to a standard stream without anything in between."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in (
                "print",
                "typer.echo",
                "typer.secho",
                "click.echo",
                "Console",
                "rich.print",
            ):
                found.add(called)
            if called.endswith(("stdout.write", "stderr.write", "stdout.buffer.write")):
                found.add(called)
    return found


DIRECT = {
    "cli/terminal.py": "the one place",
    "cli/main.py": "the version, and the help of a verb without one: wgcell's own text",
    "cell/children.py": "",
}


def test_one_place_writes_to_a_terminal() -> None:
    root = Path(wgcell.__file__).parent
    for path in sorted((root / "cli").rglob("*.py")):
        place = str(path.relative_to(root))
        if place not in DIRECT:
            assert not printers(ast.parse(path.read_text())), place
    assert printers(ast.parse("print(x); sys.stderr.write(y)")) == {"print", "sys.stderr.write"}


DRAWN = (
    # Signs before a number, and joiners of hieroglyphs: of category Cf, but not to be ignored.
    *(*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD),
    *range(0x13430, 0x13456),
)


def test_invisible_characters_are_those_that_unicode_says_to_ignore() -> None:
    shown = "".join(chr(code) for code in range(0x20, 0x110000) if not 0xD800 <= code < 0xE000)
    left = paragraph(shown)
    assert is_text(left)
    drawn = {c for c in left if unicodedata.category(c) == "Cf"}
    assert drawn <= set(map(chr, DRAWN)), drawn
    assert "\u200b" not in left and INVISIBLE
