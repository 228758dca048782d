"""The audit log's file: whole lines, bounded, and from several writers at once."""

from __future__ import annotations

import json
import threading
from pathlib import Path

from stoker.gateway.audit import FILES_KEPT, AuditLog


def test_full_files_are_moved_and_the_oldest_goes(tmp_path: Path) -> None:
    path = tmp_path / "audit" / "gateway.jsonl"
    log = AuditLog(path, file_bytes_maximum=1000)
    for number in range(200):
        log.note({"number": number, "path": "x" * 1000})
    files = sorted(path.parent.iterdir())
    assert len(files) == FILES_KEPT
    assert all(file.stat().st_size <= 1000 + 400 for file in files)
    numbers = [
        json.loads(line)["number"] for file in files for line in file.read_text().splitlines()
    ]
    assert max(numbers) == 199
    assert len(numbers) == len(set(numbers))


def test_writers_at_once_write_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "gateway.jsonl"
    logs = [AuditLog(path) for _ in range(2)]

    def write(number: int) -> None:
        for _ in range(50):
            logs[number % 2].note({"writer": number})

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(line["writer"] for line in lines) == sorted(list(range(4)) * 50)


def test_what_cannot_be_written_fails_no_request(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    AuditLog(tmp_path / "file" / "gateway.jsonl").note({"a": 1})
