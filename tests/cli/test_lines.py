"""`--json`: the record's own lines, and the workload's bytes whatever they are."""

from __future__ import annotations

import base64
import json
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.supervisors import Finished, lived
from tests.support.waiting import GENEROUS, until

from wgcell.cell.events import Event, EventLog, broken_link
from wgcell.cli.lines import JsonLines, following

pieces = st.sampled_from([b"a", "é".encode(), "\U0001f600".encode(), b"\xff", b"\n", b"\xe2\x82"])
chunks = st.lists(st.lists(pieces | st.binary(max_size=3), max_size=5).map(b"".join), max_size=6)


@given(chunks)
def test_the_workloads_bytes_come_back_whole(given_: list[bytes]) -> None:
    printed: list[bytes] = []
    lines = JsonLines("x-abcdef", printed.append)
    write = lines.output("stdout")
    for chunk in given_:
        write(chunk)
    lines.close()
    back = b""
    for line in printed:
        entry = json.loads(line)
        assert entry["cell"] == "x-abcdef" and entry["output"] == "stdout" and "event" not in entry
        back += entry["text"].encode() if "text" in entry else base64.b64decode(entry["base64"])
    assert back == b"".join(given_)


def test_a_character_cut_at_a_chunks_border_stays_text() -> None:
    printed: list[bytes] = []
    lines = JsonLines("x", printed.append)
    write = lines.output("stderr")
    for byte in "aé\U0001f600".encode():
        write(bytes([byte]))
    lines.close()
    assert [json.loads(line)["text"] for line in printed] == ["a", "é", "\U0001f600"]


def test_events_are_the_files_lines_among_the_output(tmp_path: Path) -> None:
    printed: list[bytes] = []
    lines = JsonLines("x", printed.append)
    log = EventLog(tmp_path / "events.jsonl", lines.event)
    log.append("state", state="running")
    lines.output("stdout")(b'{"event":"forged","prev":"","seq":9}\n')
    log.append("ended", outcome="completed")
    log.close()
    lines.close()
    events = [line for line in printed if "event" in json.loads(line)]
    assert b"".join(events) == (tmp_path / "events.jsonl").read_bytes()
    assert broken_link(events) is None and len(printed) == 3


def test_whoever_tells_an_event_never_waits_for_a_reader(tmp_path: Path) -> None:
    reads, given_up = threading.Event(), threading.Event()

    def write(data: bytes) -> None:
        reads.wait(GENEROUS)

    lines = JsonLines("x", write)
    log = EventLog(tmp_path / "events.jsonl", lines.event)
    for _ in range(100):
        log.append("state", state="running")

    def say() -> None:
        lines.output("stdout")(b"x")
        given_up.set()

    output = threading.Thread(target=say, daemon=True)
    output.start()
    assert not given_up.wait(0.2)  # the workload's output does wait
    reads.set()
    assert given_up.wait(GENEROUS)
    output.join()
    log.close()
    lines.close()


def test_a_reader_that_is_gone_is_told_to_the_output_and_not_to_the_events(tmp_path: Path) -> None:
    def write(data: bytes) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    lines = JsonLines("x", write)
    log = EventLog(tmp_path / "events.jsonl", lines.event)
    log.append("state", state="running")
    sink = lines.output("stdout")
    for _ in range(2):
        with pytest.raises(BrokenPipeError):
            sink(b"x")
    log.append("ended")
    log.close()
    lines.close()
    assert isinstance(lines.failure, BrokenPipeError)


FULL = OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("error", "outcome"), [(FULL, "error"), (BrokenPipeError(32, "Broken pipe"), "completed")]
)
def test_events_that_cant_be_written_are_in_the_result_and_not_in_the_exit_code_alone(
    tmp_path: Path, error: OSError, outcome: str
) -> None:
    """A reader that is gone has no use for them; a full disk has lost them."""

    def write(line: bytes) -> None:
        raise error

    lines = JsonLines("x", write, "--json-file: events")
    cell = Finished(tmp_path)

    def follow(event: Event) -> None:
        follower(event)
        until(lambda: lines.failure is not None)

    follower = following([lines], cell.fail)
    cell._report = follow
    result, raised = lived(cell)
    lines.close()
    assert raised is None and result is not None and result["outcome"] == outcome
    assert (result["reason"] == lines.fault) is (outcome == "error")
    assert bool(lines.fault) is (outcome == "error")
    assert cell.written is not None and cell.written["outcome"] == outcome
