"""URLs from outside, against a listener that must never see a connection."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from stoker.gateway.ssrf import Guard, PrivateDestinations, is_public
from stoker.placement.errors import BadRequest, DestinationForbidden, Unavailable

PUBLIC = "93.184.215.14"


class Listener:
    """Answers every request with `response` and keeps what it was sent."""

    def __init__(self, host: str, port: int = 0, response: bytes = b"") -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.requests: list[bytes] = []
        self.connections = 0
        self._response = response or b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n"
        self._listening = socket.create_server((host, port), family=family)
        self.port: int = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            with connection, contextlib.suppress(OSError):
                self.requests.append(connection.recv(65536))
                connection.sendall(self._response)

    def close(self) -> None:
        # Closing alone does not wake a thread that is in accept().
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(5)


@pytest.fixture(scope="module")
def sentinel() -> Iterator[Listener]:
    listener = Listener("127.0.0.1")
    yield listener
    listener.close()


NAMES: dict[str, Sequence[str]] = {
    "loopback.test": ["127.0.0.1"],
    "mixed.test": [PUBLIC, "127.0.0.1"],
    "mixed-six.test": ["2606:2800:21f:cb07:6820:80da:af6b:8b2c", "::1"],
    "mapped.test": ["::ffff:127.0.0.1"],
    "nat.test": ["64:ff9b::7f00:1"],
    "metadata.google.internal": ["169.254.169.254"],
    "ula.test": ["fd00:ec2::254"],
    "site-local.test": ["fec0::1"],
    "scoped.test": ["fe80::1%lo"],
    "0x7f000001.test": ["127.0.0.1"],
}


async def resolve(host: str, port: int) -> Sequence[str]:
    return NAMES[host]


FORMS = [
    # As it is, and by its other names.
    *("http://127.0.0.1:{port}/", "https://127.0.0.1:{port}/", "http://127.0.0.2:{port}/"),
    *("http://127.255.255.254:{port}/", "http://0.0.0.0:{port}/", "http://0.1.2.3:{port}/"),
    *("http://[::1]:{port}/", "http://[::]:{port}/", "http://[0:0:0:0:0:0:0:1]:{port}/"),
    # Numbers that systems read as addresses.
    *("http://2130706433:{port}/", "http://0x7f000001:{port}/", "http://017700000001:{port}/"),
    *("http://127.1:{port}/", "http://127.0.1:{port}/", "http://0177.0.0.1:{port}/"),
    *("http://0x7f.0.0.1:{port}/", "http://127.0.0.0x1:{port}/", "http://127.000.000.001:{port}/"),
    *("http://127.0.0.1.:{port}/", "http://0:{port}/", "http://1.1.1.1.1:{port}/"),
    # IPv4 inside IPv6.
    *("http://[::ffff:127.0.0.1]:{port}/", "http://[::ffff:7f00:1]:{port}/"),
    *("http://[::127.0.0.1]:{port}/", "http://[64:ff9b::127.0.0.1]:{port}/"),
    *("http://[64:ff9b::a00:1]:{port}/", "http://[2002:7f00:1::]:{port}/"),
    *("http://[2001:0:7f00:1::]:{port}/", "http://[64:ff9b:1::7f00:1]:{port}/"),
    # Private and special networks.
    *("http://10.0.0.1/", "http://172.16.0.1/", "http://172.31.255.255/", "http://192.168.1.1/"),
    *("http://169.254.169.254/latest/meta-data/", "http://100.100.100.200/", "http://192.0.0.192/"),
    *(
        "http://168.63.129.16/",
        "http://198.18.0.1/",
        "http://224.0.0.1/",
        "http://255.255.255.255/",
    ),
    *(
        "http://[fd00:ec2::254]/",
        "http://[fe80::1]/",
        "http://[fe80::1%25lo]/",
        "http://[ff02::1]/",
    ),
    *("http://[2001:db8::1]/", "http://[fec0::1]/", "http://[100::1]/"),
    # Names that lead there.
    *("http://localhost:{port}/", "http://localhost.:{port}/", "http://LOCALHOST:{port}/"),
    *("http://loopback.test:{port}/", "http://mixed.test:{port}/", "http://mapped.test:{port}/"),
    *("http://mixed-six.test:{port}/", "http://nat.test:{port}/", "http://scoped.test:{port}/"),
    *("http://metadata.google.internal/", "http://ula.test/", "http://site-local.test/"),
    "http://0x7f000001.test:{port}/",
    # Two readings of one text.
    *("http://user@127.0.0.1:{port}/", "http://93.184.215.14@127.0.0.1:{port}/"),
    *("http://user:secret@93.184.215.14:{port}/", "http://93.184.215.14:80@127.0.0.1:{port}/"),
    *("http://93.184.215.14\\@127.0.0.1:{port}/", "http://127.0.0.1:{port}\\@93.184.215.14/"),
    *("http://127.0.0.1:{port}#@93.184.215.14/", "http://127.0.0.1%2f@93.184.215.14/"),
    *("http:///127.0.0.1:{port}/", "http:/127.0.0.1:{port}/", "http:127.0.0.1:{port}/"),
    *("http://127.0.0.1:{port}\r\nHost: x/", "http://127.0.0.1\t:{port}/", " http://127.0.0.1/"),
    *("http://①②⑦.⓪.⓪.①:{port}/", "http://127。0。0。1:{port}/", "http://127%2e0%2e0%2e1:{port}/"),
    *("http://[::1/", "http://::1/", "http://[127.0.0.1]:{port}/", "http://93.184.215.14:/"),
    *(
        "http://93.184.215.14:99999/",
        "http://93.184.215.14:-1/",
        "http://-.example/",
        "http://a..b/",
    ),
    # Schemes and ports of something else.
    *("file:///etc/passwd", "ftp://93.184.215.14/", "gopher://127.0.0.1:{port}/", "//127.0.0.1/"),
    *(
        "unix:///run/docker.sock",
        "data:text/plain,x",
        "javascript:alert(1)",
        "",
        "127.0.0.1:{port}",
    ),
    *("http://93.184.215.14:22/", "http://93.184.215.14:25/", "http://93.184.215.14:6379/"),
    *("http://93.184.215.14:2375/", "http://93.184.215.14:11211/", "http://93.184.215.14:0/"),
    "http://93.184.215.14/" + "a" * 3000,
]


def send(guard: Guard, url: str) -> int:
    return asyncio.run(guard.post(guard.check(url), [("x-a", "b")], b"body"))


def test_there_are_at_least_forty_forms() -> None:
    assert len(set(FORMS)) >= 40


@pytest.mark.parametrize("form", FORMS)
def test_what_is_not_public_is_refused_and_never_reached(form: str, sentinel: Listener) -> None:
    names = None if "localhost" in form.lower() else resolve
    with pytest.raises(DestinationForbidden) as refused:
        send(Guard(PrivateDestinations(), names), form.replace("{port}", str(sentinel.port)))

    assert sentinel.connections == 0
    assert "secret" not in str(refused.value)
    assert "\r" not in str(refused.value)


def test_a_destination_that_the_operator_named_is_reached_once_and_gets_what_was_sent() -> None:
    listener = Listener("127.0.0.1")
    try:
        guard = Guard(PrivateDestinations.parse(f"127.0.0.0/8:{listener.port}"))
        status = send(guard, f"http://127.0.0.1:{listener.port}/a%2Fb?c=d%20e#fragment")
        with pytest.raises(DestinationForbidden):
            guard.check(f"http://127.0.0.1:{listener.port + 1}/")
    finally:
        listener.close()

    assert (status, listener.connections) == (204, 1)
    head, _, body = listener.requests[0].partition(b"\r\n\r\n")
    first, *headers = head.decode().split("\r\n")
    assert first == "POST /a%2Fb?c=d%20e HTTP/1.1"
    assert {h.partition(":")[0].lower() for h in headers} <= {
        *("host", "x-a", "content-length", "connection")
    }
    assert f"Host: 127.0.0.1:{listener.port}" in headers
    assert body in (b"body", b"")  # it may come with the next packet


def test_a_name_is_resolved_once_and_the_answer_that_was_checked_is_used() -> None:
    """The second answer leads to the sentinel, as that of a rebinding name server does."""
    sentinel = Listener("127.0.0.1")
    allowed = Listener("127.0.0.2", sentinel.port)
    answers = [["127.0.0.2"], ["127.0.0.1"], ["127.0.0.1"]]

    async def rebinding(host: str, port: int) -> Sequence[str]:
        return answers.pop(0)

    try:
        guard = Guard(PrivateDestinations.parse("127.0.0.2"), rebinding)
        assert send(guard, f"http://rebinding.test:{allowed.port}/") == 204
        with pytest.raises(DestinationForbidden):
            send(guard, f"http://rebinding.test:{allowed.port}/")
    finally:
        allowed.close()
        sentinel.close()

    assert (allowed.connections, sentinel.connections, len(answers)) == (1, 0, 1)
    assert f"Host: rebinding.test:{allowed.port}".encode() in allowed.requests[0]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_told_and_not_followed(status: int) -> None:
    sentinel = Listener("127.0.0.1")
    location = f"Location: http://127.0.0.1:{sentinel.port}/\r\n"
    redirect = f"HTTP/1.1 {status} X\r\n{location}Content-Length: 0\r\n\r\n".encode()
    allowed = Listener("127.0.0.2", response=redirect)
    try:
        guard = Guard(PrivateDestinations.parse("127.0.0.2"))
        assert send(guard, f"http://127.0.0.2:{allowed.port}/") == status
    finally:
        allowed.close()
        sentinel.close()

    assert (allowed.connections, sentinel.connections) == (1, 0)


def test_neither_a_proxy_nor_credentials_of_the_environment_are_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    proxy, allowed = Listener("127.0.0.1"), Listener("127.0.0.2")
    (tmp_path / "netrc").write_text("machine 127.0.0.2 login me password canary\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
    try:
        guard = Guard(PrivateDestinations.parse("127.0.0.2"))
        assert send(guard, f"http://127.0.0.2:{allowed.port}/") == 204
    finally:
        allowed.close()
        proxy.close()

    assert (allowed.connections, proxy.connections) == (1, 0)
    assert b"uthorization" not in allowed.requests[0]


def test_who_does_not_answer_or_has_no_address_is_unavailable() -> None:
    async def nowhere(host: str, port: int) -> Sequence[str]:
        raise socket.gaierror(-2, "Name or service not known")

    async def nothing(host: str, port: int) -> Sequence[str]:
        return []

    closed = socket.create_server(("127.0.0.1", 0))
    port = closed.getsockname()[1]
    closed.close()
    with pytest.raises(Unavailable, match=r"nobody\.test"):
        send(Guard(PrivateDestinations(), nowhere), "http://nobody.test/")
    with pytest.raises(Unavailable, match="found none"):
        send(Guard(PrivateDestinations(), nothing), "http://nobody.test/")
    with pytest.raises(Unavailable, match=rf"127\.0\.0\.1:{port}"):
        send(Guard(PrivateDestinations.parse("127.0.0.1")), f"http://127.0.0.1:{port}/")


@pytest.mark.parametrize(
    "url",
    [
        *(
            "http://93.184.215.14/",
            "https://example.com/a?b",
            "http://example.com:8080/",
            "HTTP://A.B/",
        ),
        "http://[2606:4700::1111]:8443/",
        "http://xn--nxasmq6b.example./",
        "http://[64:ff9b::102:304]/",
    ],
)
def test_a_public_url_passes(url: str) -> None:
    assert Guard(PrivateDestinations()).check(url).host


def test_addresses_on_the_borders_of_the_special_networks_are_told_apart() -> None:
    private = "10.255.255.255 100.64.0.0 100.127.255.255 172.31.0.0 192.88.99.1 240.0.0.1 2002::1"
    public = "9.255.255.255 11.0.0.0 100.63.0.0 100.128.0.0 172.32.0.0 223.255.255.255 2a00::1"
    for text in private.split():
        assert not is_public(ipaddress.ip_address(text)), text
    for text in public.split():
        assert is_public(ipaddress.ip_address(text)), text


def test_the_operator_names_hosts_addresses_and_networks_with_and_without_ports() -> None:
    named = PrivateDestinations.parse("hooks.corp:25, 10.1.0.0/16 ,[fd00::1]:8443,db.corp,fd00::2")
    guard = Guard(named, resolve)

    assert guard.check("http://hooks.corp:25/").port == 25
    assert guard.check("http://10.1.2.3/").port == 80
    assert guard.check("https://[fd00::1]:8443/").host == "fd00::1"
    assert guard.check("http://[fd00::2]:9000/").host == "fd00::2"
    assert named.names("db.corp", 8080)
    assert not named.names("hooks.corp", 80)
    for url in ("http://10.2.0.1/", "https://[fd00::1]/", "http://hooks.corp:24/"):
        with pytest.raises(DestinationForbidden):
            guard.check(url)


@pytest.mark.parametrize("text", ["10.0.0.0/33", "http://a/", "a:b", "a:0", "a:70000", "a b", "-"])
def test_a_setting_that_names_no_destination_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="STOKER_PRIVATE_DESTINATIONS"):
        PrivateDestinations.parse(text)
