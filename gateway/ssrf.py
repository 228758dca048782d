"""The one gate for URLs that somebody outside chose: callbacks now, other sources later.

    text ── check ──> Destination ── addresses ──> checked addresses ── post ──> one of these
             no I/O: scheme, userinfo,   resolved once,      the socket is made for a checked
             port, how the host is       every one checked   address; nothing is resolved again
             written

Nothing is followed, cached or added: no redirects, cookies, proxies or credentials. What is not
public is refused, unless the operator named it.
"""

from __future__ import annotations

import asyncio
import io
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from multidict import CIMultiDict
from yarl import URL

from stoker.placement.errors import BadRequest, DestinationForbidden, Unavailable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

URL_CHARACTERS_MAXIMUM = 2048
RESOLVE_SECONDS = 5.0
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 60.0
PORTS_DEFAULT = {"http": 80, "https": 443}
# Where something else than HTTP listens and might take a request for its own protocol.
_PORTS_REFUSED = frozenset(
    (
        *(1719, 1720, 1723, 2049, 2181, 2375, 2379, 2380, 3306, 3659, 4045, 4190, 5060, 5061, 5432),
        *(6000, 6379, 6443, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 9042, 10080, 10250),
        *(11211, 27017),
    )
)
_REFUSED_IPV4 = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
        *("172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16"),
        *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        "168.63.129.16/32",  # public to look at, the host of a virtual machine in truth
    )
)
_PUBLIC_IPV6 = ipaddress.IPv6Network("2000::/3")
_REFUSED_IPV6 = tuple(
    ipaddress.IPv6Network(text) for text in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)
# Networks without IPv4 reach it through these: the last four bytes are the address.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER_LIKE = re.compile(r"[0-9]+|0x[0-9a-f]*")
_NOT_ADDED = frozenset({"Accept", "Accept-Encoding", "Content-Type", "User-Agent"})


@dataclass(frozen=True, slots=True)
class Destination:
    """A URL whose form was checked. `literal` is the host where that is an address."""

    url: URL
    host: str
    port: int
    literal: Address | None


@dataclass(frozen=True, slots=True)
class PrivateDestinations:
    """What the operator allows although it is not public: hosts and networks, each with a port."""

    hosts: frozenset[tuple[str, int | None]] = frozenset()
    networks: tuple[tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, int | None], ...] = ()

    @staticmethod
    def parse(text: str) -> PrivateDestinations:
        """`10.1.0.0/16, hooks.corp:8443, [fd00::1]:80`; BadRequest for anything else."""
        hosts, networks = [], []
        for entry in (part.strip().lower() for part in text.split(",") if part.strip()):
            named, port = _named_port(entry)
            try:
                networks.append((ipaddress.ip_network(named.strip("[]")), port))
            except ValueError:
                if not _is_host_name(named):
                    _refuse_entry(entry)
                hosts.append((named, port))
        return PrivateDestinations(frozenset(hosts), tuple(networks))

    def names(self, host: str, port: int) -> bool:
        return (host, port) in self.hosts or (host, None) in self.hosts

    def holds(self, address: Address, port: int) -> bool:
        return any(address in network and at in (None, port) for network, at in self.networks)


def is_public(address: Address) -> bool:
    """Whether `address` is one of the open Internet, and of no machine or network of ours."""
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _REFUSED_IPV4)
    if address in _NAT64:
        return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return address in _PUBLIC_IPV6 and not any(address in network for network in _REFUSED_IPV6)


class Guard:
    def __init__(self, private: PrivateDestinations, resolve: Resolve | None = None) -> None:
        self._private = private
        self._resolve = resolve or _system_addresses

    def check(self, text: str) -> Destination:
        """The destination that `text` names; DestinationForbidden. No I/O."""
        if len(text) > URL_CHARACTERS_MAXIMUM or not text.isascii() or not text.isprintable():
            _forbid("a URL of at most 2048 printable ASCII characters", text)
        try:
            parts = urlsplit(text)
            scheme, stated = parts.scheme, parts.port
        except ValueError:
            _forbid("a URL", text)
        if scheme not in PORTS_DEFAULT:
            _forbid("http:// or https://", text)
        if "@" in parts.netloc or "\\" in text or " " in text:
            _forbid("a URL without user, password, spaces and backslashes", text)
        if stated is None and parts.netloc.endswith(":"):
            _forbid("a port after the colon", text)
        host, literal = _host(parts.netloc, parts.hostname or "", text)
        port = PORTS_DEFAULT[scheme] if stated is None else stated
        # Made anew from the pieces that were checked: no second parser sees the text.
        url = URL.build(
            scheme=scheme,
            host=f"[{host}]" if ":" in host else host,
            port=port,
            path=parts.path or "/",
            query_string=parts.query,
            encoded=True,
        )
        found = Destination(url, host, port, literal)
        if not self._port_allowed(found):
            _forbid("port 80, 443, or one from 1024 on where HTTP is usual", text)
        if literal is not None:
            self._check_address(found, literal)
        return found

    async def addresses(self, destination: Destination) -> tuple[Address, ...]:
        """Every address of the destination; DestinationForbidden if one is, Unavailable."""
        if destination.literal is not None:
            return (destination.literal,)
        try:
            async with asyncio.timeout(RESOLVE_SECONDS):
                texts = await self._resolve(destination.host, destination.port)
            found = tuple(ipaddress.ip_address(text) for text in texts)
        except (OSError, ValueError) as error:
            raise Unavailable(
                f"Expected {destination.host} to have an address, found: "
                f"{error or type(error).__name__}.",
                "Correct the host, or try again later.",
            ) from error
        if not found:
            raise Unavailable(f"Expected {destination.host} to have an address, found none.")
        for address in found:
            self._check_address(destination, address)
        return found

    async def post(
        self, destination: Destination, headers: Sequence[tuple[str, str]], body: bytes
    ) -> int:
        """Send once to a checked address; the status of the answer, redirects included.

        DestinationForbidden, or Unavailable when no answer comes.
        """
        checked = await self.addresses(destination)
        connector = aiohttp.TCPConnector(
            resolver=_Pinned(checked),
            use_dns_cache=False,
            force_close=True,
            socket_factory=lambda info: _socket_to(info, checked),
        )
        try:
            async with (
                aiohttp.ClientSession(
                    connector=connector,
                    timeout=aiohttp.ClientTimeout(ANSWER_SECONDS, sock_connect=CONNECT_SECONDS),
                    cookie_jar=aiohttp.DummyCookieJar(),
                    auto_decompress=False,
                    trust_env=False,
                ) as session,
                session.post(
                    destination.url,
                    headers=CIMultiDict(headers),
                    data=io.BytesIO(body),
                    skip_auto_headers=_NOT_ADDED,
                    allow_redirects=False,
                ) as response,
            ):
                return response.status
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Unavailable(
                f"Expected an answer from {destination.host}:{destination.port}, found: "
                f"{error or type(error).__name__}.",
                "See whether it listens and answers in time.",
            ) from error

    def _port_allowed(self, destination: Destination) -> bool:
        host, port, literal = destination.host, destination.port, destination.literal
        usual = port in (80, 443) or (port >= 1024 and port not in _PORTS_REFUSED)
        named = (host, port) in self._private.hosts or (
            literal is not None
            and any(literal in net and at == port for net, at in self._private.networks)
        )
        return usual or named

    def _check_address(self, destination: Destination, address: Address) -> None:
        allowed = (
            is_public(address)
            or self._private.names(destination.host, destination.port)
            or self._private.holds(address, destination.port)
        )
        if not allowed:
            raise DestinationForbidden(
                f"Expected a public address behind {destination.host}, found {address}.",
                "Use a public URL, or have the operator add it to STOKER_PRIVATE_DESTINATIONS.",
            )


class _Pinned(AbstractResolver):
    """Knows the checked addresses alone, whatever is asked."""

    def __init__(self, addresses: Sequence[Address]) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        _ = family
        return [
            {
                "hostname": host,
                "host": str(address),
                "port": port,
                "family": socket.AF_INET if address.version == 4 else socket.AF_INET6,
                "proto": 0,
                "flags": socket.AI_NUMERICHOST,
            }
            for address in self._addresses
        ]

    async def close(self) -> None:
        return


def _socket_to(info: Any, checked: Sequence[Address]) -> socket.socket:
    """A socket for one of the checked addresses; whatever else led here goes no further."""
    family, kind, protocol, _, address = info
    if ipaddress.ip_address(address[0]) not in checked:
        raise OSError(f"{address[0]} was not checked")
    return socket.socket(family=family, type=kind, proto=protocol)


async def _system_addresses(host: str, port: int) -> list[str]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


def _host(netloc: str, hostname: str, text: str) -> tuple[str, Address | None]:
    """The host and, where it is written as an address, that address."""
    host = hostname.lower().removesuffix(".")
    try:
        if netloc.startswith("["):
            if "%" in host:
                _forbid("an address without a zone", text)
            return host, ipaddress.IPv6Address(host)
        if _NUMBER_LIKE.fullmatch(host.rpartition(".")[2]):
            return host, ipaddress.IPv4Address(host)
    except ValueError:
        # Such as 2130706433, 0x7f.1 or 0177.0.0.1, which systems read in different ways.
        _forbid("an address in its usual form", text)
    if not _is_host_name(host):
        _forbid("a host name", text)
    return host, None


def _is_host_name(host: str) -> bool:
    return len(host) <= 253 and all(_LABEL.fullmatch(label) for label in host.split("."))


def _named_port(entry: str) -> tuple[str, int | None]:
    """`host:port` in its two parts; the colons of an address without brackets are its own."""
    named, colon, digits = entry.rpartition(":")
    if not colon or entry.endswith("]") or (":" in named and not named.endswith("]")):
        return entry, None
    if not digits.isdigit() or not 0 < int(digits) < 65536:
        _refuse_entry(entry)
    return named, int(digits)


def _refuse_entry(entry: str) -> NoReturn:
    raise BadRequest(
        "Expected hosts, addresses or networks, each with :port or without, in "
        f"STOKER_PRIVATE_DESTINATIONS, found {entry!r:.100}.",
        "Correct STOKER_PRIVATE_DESTINATIONS.",
    )


def _forbid(expected: str, found: str) -> NoReturn:
    # A password may stand in front of the host; nothing of that is told.
    shown = found if "@" not in found else "one with @"
    raise DestinationForbidden(f"Expected {expected}, found {shown!r:.100}.", "Correct the URL.")
