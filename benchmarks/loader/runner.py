"""Runs one case: a fresh process that is ready, a machine that is settled, and then "go"."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cases import FIO, HUGE, Case
from conditions import fio, settle, shared_huge_pages

READY_SECONDS_MAXIMUM = 180.0
LOAD_SECONDS_MAXIMUM = 900.0
CHILD = Path(__file__).with_name("child.py")


class Failed(Exception):
    """A loader did not load; the sentence says why."""


@dataclass
class Runner:
    """`environments` gives the variables of the conditions whose source is an S3 server."""

    folder: Path
    expected: str
    prime_bytes: int
    idle_seconds: float
    environments: dict[str, Mapping[str, str]] = field(default_factory=dict)

    def measure(self, case: Case) -> dict[str, Any]:
        """One sample. Raises Failed."""
        if case.loader in FIO:
            try:
                return fio(case.loader, self.folder / case.file_name)
            except OSError as error:
                raise Failed(str(error)) from error
        with (
            tempfile.TemporaryDirectory(dir=self.folder, prefix="run-") as scratch,
            shared_huge_pages("never" if case.small_pages else "advise"),
        ):
            sample = self._measure_child(case, Path(scratch))
        if sample.pop("fingerprint") != self.expected:
            raise Failed("It loaded other bytes than were written.")
        return sample

    def _measure_child(self, case: Case, scratch: Path) -> dict[str, Any]:
        read = self.folder / case.file_name
        s3 = case.condition.startswith("s3")
        target = f"s3://models/m/{case.file_name}" if s3 else str(read)
        variables = {
            **os.environ,
            **(HUGE if case.huge else {}),
            **self.environments.get(case.condition, {}),
            "BENCHMARK_FILE_BYTES": str(read.stat().st_size),
        }
        errors = scratch / "stderr"
        with (
            errors.open("wb") as log,
            subprocess.Popen(
                [sys.executable, str(CHILD), case.loader, target],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=variables,
                cwd=scratch,
            ) as process,
        ):
            try:
                if _line(process, READY_SECONDS_MAXIMUM) != b"ready\n":
                    raise Failed(_reason(errors))
                files = list(self.folder.glob("model.*"))
                settle(case.condition, files, read, self.prime_bytes, self.idle_seconds)
                assert process.stdin is not None
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.write(b"go\n")
                    process.stdin.flush()
                answer = _line(process, LOAD_SECONDS_MAXIMUM)
            finally:
                process.kill()
        if not answer:
            raise Failed(_reason(errors))
        sample: dict[str, Any] = json.loads(answer)
        return sample


def _line(process: subprocess.Popen[bytes], timeout_seconds: float) -> bytes:
    """The process's next line; empty when it has ended. Raises Failed when it is late."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        if not selector.select(timeout_seconds):
            raise Failed(f"It said nothing for {timeout_seconds:.0f} s.")
    return process.stdout.readline()


def _reason(errors: Path) -> str:
    lines = [line for line in errors.read_text(errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-2:])[-500:] or "It ended without a word."
