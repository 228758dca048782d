from __future__ import annotations

import socket

import pytest

from stoker.placement.errors import StartFailed
from stoker.runtime.spare_sockets import SpareSockets, address_of, listen


def connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=5)


def test_a_client_may_connect_before_anybody_accepts() -> None:
    spares = SpareSockets("127.0.0.1")
    spares.fill(2)
    first, second = spares.addresses
    with connect(first), connect(second):
        assert first != second
    spares.close()


def test_a_claimed_socket_is_no_longer_announced_and_is_replaced_by_filling() -> None:
    spares = SpareSockets("127.0.0.1")
    spares.fill(2)
    address = spares.addresses[0]
    claimed = spares.claim(address)
    assert claimed is not None
    assert address_of(claimed) == address
    assert address not in spares.addresses
    assert spares.claim(address) is None
    spares.fill(2)
    assert len(spares.addresses) == 2
    claimed.close()
    spares.close()


def test_filling_to_fewer_closes_nothing_that_was_announced() -> None:
    spares = SpareSockets("127.0.0.1")
    spares.fill(3)
    before = spares.addresses
    spares.fill(1)
    assert spares.addresses == before
    spares.close()


def test_closing_resets_who_waits_in_the_backlog() -> None:
    spares = SpareSockets("127.0.0.1")
    spares.fill(1)
    address = spares.addresses[0]
    with connect(address) as waiting:
        spares.close()
        with pytest.raises(ConnectionError):
            waiting.recv(1)
    with pytest.raises(ConnectionRefusedError):
        connect(address)


def test_a_port_in_use_is_refused_with_its_address() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartFailed, match=f"127.0.0.1:{port}.*in use"):
            listen("127.0.0.1", port)
