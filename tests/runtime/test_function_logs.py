from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from stoker.placement.errors import BadRequest
from stoker.runtime import function_logs
from stoker.runtime.function_logs import FunctionLogs, LineSplitter, LogQuery

KEY = "chat.openfaas-fn"
NOON = datetime(2026, 1, 2, 12, 0, 0, tzinfo=UTC)


def texts(lines: list[bytes]) -> list[str]:
    return [json.loads(line)["text"] for line in lines]


def test_a_line_names_its_function_its_instance_and_its_moment(tmp_path: Path) -> None:
    logs = FunctionLogs(tmp_path, lambda: NOON)
    logs.append(KEY, "1-2", ["hello"])
    (line,) = logs.open(LogQuery(KEY)).lines()
    assert json.loads(line) == {
        "name": "chat",
        "namespace": "openfaas-fn",
        "instance": "1-2",
        "timestamp": "2026-01-02T12:00:00.000000Z",
        "text": "hello",
    }


def test_tail_since_and_instance_select_lines(tmp_path: Path) -> None:
    moment = NOON
    logs = FunctionLogs(tmp_path, lambda: moment)
    for number in range(4):
        logs.append(KEY, f"i-{number % 2}", [f"line {number}"])
        moment += timedelta(seconds=1)
    assert texts(logs.open(LogQuery(KEY, tail=2)).lines()) == ["line 2", "line 3"]
    assert texts(logs.open(LogQuery(KEY, tail=0)).lines()) == []
    since = NOON + timedelta(seconds=1)
    assert texts(logs.open(LogQuery(KEY, since=since)).lines()) == ["line 1", "line 2", "line 3"]
    assert texts(logs.open(LogQuery(KEY, instance="i-1")).lines()) == ["line 1", "line 3"]


def test_control_characters_cannot_reach_a_terminal(tmp_path: Path) -> None:
    logs = FunctionLogs(tmp_path)
    logs.append(KEY, "i", ["\x1b[2Jgone\ttab \x9b1m", "a\rb\x00"])
    assert texts(logs.open(LogQuery(KEY)).lines()) == [
        "\\x1b[2Jgone\ttab \\x9b1m",
        "a\\x0db\\x00",
    ]


def test_a_long_line_is_split_at_8_kib(tmp_path: Path) -> None:
    logs = FunctionLogs(tmp_path)
    logs.append(KEY, "i", ["x" * (2 * 8192 + 5)])
    assert [len(text) for text in texts(logs.open(LogQuery(KEY)).lines())] == [8192, 8192, 5]


def test_a_full_file_becomes_the_one_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(function_logs, "FILE_BYTES_MAXIMUM", 1000)
    logs = FunctionLogs(tmp_path)
    for number in range(100):
        logs.append(KEY, "i", [f"line {number}"])
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(sizes) == {f"{KEY}.ndjson", f"{KEY}.ndjson.1"}
    assert max(sizes.values()) < 1000 + 200
    kept = texts(logs.open(LogQuery(KEY)).lines())
    assert kept == [f"line {number}" for number in range(100 - len(kept), 100)]
    assert len(kept) >= 9


def test_a_torn_line_of_a_crash_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / f"{KEY}.ndjson").write_bytes(b'{"name": "chat", "text": "to')
    assert FunctionLogs(tmp_path).open(LogQuery(KEY)).lines() == []


@pytest.mark.parametrize("key", ["", "chat", "../../etc/passwd", "a/b.ns", "chat.ns/..", ".."])
def test_a_key_that_is_no_function_never_becomes_a_path(key: str, tmp_path: Path) -> None:
    with pytest.raises(BadRequest):
        FunctionLogs(tmp_path).append(key, "i", ["x"])
    assert list(tmp_path.iterdir()) == []


def test_a_follower_gets_what_was_not_read_and_nothing_twice(tmp_path: Path) -> None:
    async def follow() -> tuple[list[str], list[str]]:
        logs, query = FunctionLogs(tmp_path), LogQuery(KEY, instance="i")
        logs.append(KEY, "i", ["before"])
        follower, reading = logs.follow(query), logs.open(query)
        logs.append(KEY, "i", ["after"])
        logs.append(KEY, "other", ["not asked for"])
        seen = texts(reading.lines())
        seen_later = texts(await follower.read(1))
        assert await follower.read(0.01) == []
        logs.unfollow(query, follower)
        return seen, seen_later

    assert asyncio.run(follow()) == (["before"], ["after"])


def test_a_slow_follower_loses_the_oldest_lines_and_is_told(tmp_path: Path) -> None:
    async def follow() -> list[str]:
        logs, query = FunctionLogs(tmp_path), LogQuery(KEY)
        follower = logs.follow(query)
        logs.append(KEY, "i", [f"line {n}" for n in range(1003)])
        return texts(await follower.read(1))

    lines = asyncio.run(follow())
    assert lines[0].startswith("3 lines were dropped")
    assert (lines[1], lines[-1], len(lines)) == ("line 3", "line 1002", 1001)


def test_the_splitter_joins_pieces_and_bounds_a_line_without_end() -> None:
    splitter = LineSplitter()
    assert splitter.feed(b"one\ntw") == ["one"]
    assert splitter.feed(b"o\r\n\xff") == ["two"]
    assert splitter.end() == ["\\xff"]
    assert splitter.feed(b"x" * 9000) == ["x" * 9000]
    assert splitter.end() == []


def test_what_a_function_wrote_can_be_forgotten(tmp_path: Path) -> None:
    logs = FunctionLogs(tmp_path / "logs")
    for key in ("gone.ns", "kept.ns"):
        logs.append(key, "i-1", ["line"])
    (tmp_path / "logs" / "gone.ns.ndjson.1").write_text("older")
    assert logs.functions() == {"gone.ns", "kept.ns"}
    logs.remove("gone.ns")
    logs.remove("gone.ns")
    assert logs.functions() == {"kept.ns"}
    assert len(list((tmp_path / "logs").iterdir())) == 1
