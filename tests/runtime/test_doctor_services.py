"""The store and S3, with a real S3 server."""

import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from harness import s3
from stoker.deploy.s3server import S3Server
from stoker.placement.stores import open_store
from stoker.runtime.doctor_check import Check
from stoker.runtime.doctor_services import check_clock, check_s3, check_store


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3.running(tmp_path_factory.mktemp("s3")) as running:
        yield running


def ask(
    monkeypatch: pytest.MonkeyPatch, server: S3Server, secret_key: str, now: float | None = None
) -> tuple[Check, ...]:
    environment = {
        "STOKER_S3_ENDPOINT_URL": server.endpoint_url,
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": secret_key,
        # One client is kept for one settings object.
        "STOKER_S3_REGION": f"region-of-{len(secret_key)}",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return check_s3(environment, (lambda: now) if now else time.time)


def test_accepted_credentials_and_a_right_clock_are_good(
    monkeypatch: pytest.MonkeyPatch, server: S3Server
) -> None:
    checks = ask(monkeypatch, server, server.secret_key)

    assert [(check.name, check.state) for check in checks] == [("S3", "ok"), ("S3 clock", "ok")]
    assert "lists 1 buckets" in checks[0].found


def test_refused_credentials_fail_and_show_no_secret(
    monkeypatch: pytest.MonkeyPatch, server: S3Server
) -> None:
    checks = ask(monkeypatch, server, "not-the-secret")

    assert checks[0].state == "fail"
    assert "AWS_ACCESS_KEY_ID" in checks[0].remedy
    assert "not-the-secret" not in str(checks)


def test_a_clock_that_is_six_minutes_off_fails(
    monkeypatch: pytest.MonkeyPatch, server: S3Server
) -> None:
    checks = ask(monkeypatch, server, server.secret_key, time.time() + 360)

    assert checks[1].state == "fail"
    assert "ahead of" in checks[1].found


def test_an_endpoint_where_nobody_listens_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")

    (check,) = check_s3({"STOKER_S3_ENDPOINT_URL": "http://127.0.0.1:1"})
    assert check.state == "fail"
    assert "STOKER_S3_ENDPOINT_URL" in check.remedy


class _Forbidding(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        body = b"<Error><Code>AccessDenied</Code><Message>no list</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def test_credentials_that_may_not_list_buckets_are_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with HTTPServer(("127.0.0.1", 0), _Forbidding) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            access, clock = check_s3({"STOKER_S3_ENDPOINT_URL": url})
        finally:
            server.shutdown()
            thread.join()

    assert access.state == "warn"
    assert "stoker model ls" in access.remedy
    assert clock.state == "ok"


def test_no_settings_ask_nobody() -> None:
    (check,) = check_s3({})

    assert (check.state, "No S3 is configured" in check.found) == ("ok", True)


def test_an_endpoint_that_is_no_url_fails() -> None:
    (check,) = check_s3({"STOKER_S3_ENDPOINT_URL": "minio:9000"})

    assert check.state == "fail"


@pytest.mark.parametrize(
    ("offset_seconds", "expected"), [(0, "ok"), (-299, "ok"), (-301, "fail"), (301, "fail")]
)
def test_a_clock_may_be_five_minutes_off(offset_seconds: int, expected: str) -> None:
    assert check_clock(formatdate(1e9, usegmt=True), 1e9 + offset_seconds).state == expected


def test_a_date_that_is_none_is_told() -> None:
    assert check_clock("yesterday", 1e9).state == "warn"


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    check = check_store(f"sqlite://{tmp_path}/state/store.sqlite", tmp_path / "token")

    assert check.state == "ok"
    assert "will be made" in check.found
    assert list(tmp_path.iterdir()) == []


def test_a_sound_store_is_good_and_stays_as_it_was(tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path}/store.sqlite"
    store = open_store(url, "token")
    store.put("/a", b"value")
    store.close()
    before = sorted(path.name for path in tmp_path.iterdir())

    assert check_store(url, tmp_path / "token").state == "ok"
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("content", [b"no database at all" * 100, b""])
def test_a_damaged_store_fails(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "store.sqlite").write_bytes(content)

    check = check_store(f"sqlite://{tmp_path}/store.sqlite", tmp_path / "token")
    assert check.state == "fail"
    assert "move the file away" in check.remedy


def test_a_url_of_no_store_fails() -> None:
    assert check_store("redis://127.0.0.1/0", Path("token")).state == "fail"
