"""What each source does with its own faults."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from harness import s3 as s3_harness
from stoker.deploy.s3server import S3Server
from stoker.placement.errors import (
    BadSpec,
    CheckpointForbidden,
    CheckpointMissing,
    SourceUnavailable,
)
from stoker.runtime.checkpoint import source_access
from stoker.runtime.checkpoint.settings import CheckpointSettings
from stoker.runtime.checkpoint.source import open_source


@pytest.mark.parametrize(
    "uri",
    [
        "http://host/model",
        "s3://key:secret@bucket/model",
        "s3://Bad_Bucket!/model",
        "s3://bucket/a/../b",
        "s3://bucket/a?versionId=1",
        "file://host/path",
        "file:relative",
        "file:///a/%2e%2e/b",
        "/plain/path",
        "s3://bucket/\x00",
        "s3://[bucket/x",
        "",
    ],
)
def test_an_odd_uri_is_refused(uri: str) -> None:
    with pytest.raises(BadSpec):
        open_source(uri)


def test_credentials_in_a_uri_are_not_repeated() -> None:
    with pytest.raises(BadSpec) as caught:
        open_source("s3://key:hunter2@bucket/model")

    assert "hunter2" not in str(caught.value)


def test_our_endpoint_setting_goes_before_amazons() -> None:
    environ = {"AWS_ENDPOINT_URL": "http://a:1", "STOKER_S3_ENDPOINT_URL": "http://b:2"}

    assert CheckpointSettings.from_environment(environ).s3_endpoint_url == "http://b:2"
    assert CheckpointSettings.from_environment({}).s3_endpoint_url is None


@pytest.mark.parametrize("endpoint", ["ftp://a", "nonsense", "http://u:p@host"])
def test_a_bad_endpoint_is_refused_without_repeating_its_password(endpoint: str) -> None:
    with pytest.raises(BadSpec) as caught:
        CheckpointSettings.from_environment({"STOKER_S3_ENDPOINT_URL": endpoint})

    assert "u:p" not in str(caught.value)


def test_a_folder_that_is_absent_or_closed_says_which(tmp_path: Path) -> None:
    with pytest.raises(CheckpointMissing, match="nowhere"):
        open_source((tmp_path / "nowhere").as_uri()).list()


def test_an_absent_bucket_is_named(s3_environment: S3Server) -> None:
    settings = CheckpointSettings(s3_environment.endpoint_url)

    with pytest.raises(CheckpointMissing, match=r"s3://no-such-bucket/model.*bucket does not"):
        open_source("s3://no-such-bucket/model", settings).list()
    with pytest.raises(CheckpointMissing, match="no object"):
        open_source(f"s3://{s3_harness.BUCKET}/nothing-here", settings).list()


@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_a_wrong_key_is_forbidden(
    s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "wrong")
    # Another region makes another client, which reads the key anew.
    settings = CheckpointSettings(s3_environment.endpoint_url, f"us-{variable[4:7].lower()}-1")

    with pytest.raises(CheckpointForbidden, match="Expected access to s3://models/x"):
        open_source(f"s3://{s3_harness.BUCKET}/x", settings).list()


def test_an_endpoint_that_is_down_is_unavailable_after_three_tries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(source_access, "BACKOFF_SECONDS", 0.001)
    _some_keys(monkeypatch)
    with socket.socket() as unbound:
        unbound.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unbound.getsockname()[1]}"

    with pytest.raises(SourceUnavailable, match="Could not connect") as caught:
        open_source("s3://bucket/model", CheckpointSettings(endpoint)).list()

    assert caught.value.retry_after_seconds is not None


class _Flaky(BaseHTTPRequestHandler):
    """Breaks the first `faults` answers off in the middle, then serves the rest of the range."""

    payload = bytes(range(256)) * 8192  # 2 MiB
    faults = 0
    ranges: list[str]

    def do_GET(self) -> None:
        kind = type(self)
        kind.ranges.append(self.headers["Range"])
        first, last = (int(n) for n in self.headers["Range"].removeprefix("bytes=").split("-"))
        body = self.payload[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(self.payload)}")
        self.send_header("ETag", '"x"')
        self.end_headers()
        broken = kind.faults > 0
        kind.faults -= 1
        self.wfile.write(body[: len(body) // 2] if broken else body)
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        return


@contextmanager
def flaky(faults: int) -> Iterator[tuple[str, type[_Flaky]]]:
    handler = type("Flaky", (_Flaky,), {"faults": faults, "ranges": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", handler
        finally:
            server.shutdown()
            thread.join()


def test_a_broken_range_goes_on_where_it_broke(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_access, "BACKOFF_SECONDS", 0.001)
    _some_keys(monkeypatch)
    buffer = bytearray(len(_Flaky.payload))

    with flaky(faults=2) as (endpoint, handler):
        source = open_source("s3://bucket/model", CheckpointSettings(endpoint))
        source.read("model.safetensors", 0, memoryview(buffer), None)

    assert bytes(buffer) == _Flaky.payload
    starts = [int(r.removeprefix("bytes=").split("-")[0]) for r in handler.ranges]
    assert starts == sorted(set(starts))
    assert len(starts) == 3


def test_a_range_that_always_breaks_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_access, "BACKOFF_SECONDS", 0.001)
    _some_keys(monkeypatch)

    with flaky(faults=9) as (endpoint, handler):
        source = open_source("s3://bucket/model", CheckpointSettings(endpoint))
        with pytest.raises(SourceUnavailable):
            source.read("model.safetensors", 0, memoryview(bytearray(1 << 20)), None)

    assert len(handler.ranges) == 3


def _some_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
