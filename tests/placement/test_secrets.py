"""Secrets in the store: readable with the cluster's token, in their own place, and no other way."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest

from stoker.placement.errors import StartFailed
from stoker.placement.records import encode
from stoker.placement.secrets import Seal, SecretRecord

VALUE = b"\x00canary\xff"


def test_a_secret_reads_back_with_the_same_token() -> None:
    record = Seal("token").close("dev", "key", VALUE)
    assert Seal("token").open(record) == VALUE


def test_a_sealed_secret_shows_nothing_of_its_value_and_no_two_are_alike() -> None:
    seal = Seal("token")
    first, second = (encode(seal.close("dev", "key", VALUE)) for _ in range(2))
    for record in (first, second):
        assert VALUE not in record
        assert base64.b64encode(VALUE) not in record
    assert first != second


@pytest.mark.parametrize(
    "moved",
    [
        lambda r: replace(r, namespace="prod"),
        lambda r: replace(r, name="other"),
        lambda r: replace(r, sealed=r.sealed[:-4] + "AAAA"),
        lambda r: replace(r, sealed="no base64"),
        lambda r: replace(r, sealed=""),
    ],
)
def test_a_secret_of_another_place_or_token_is_refused_without_its_value(
    moved: object,
) -> None:
    assert callable(moved)
    record: SecretRecord = moved(Seal("token").close("dev", "key", VALUE))
    with pytest.raises(StartFailed, match="sealed with this cluster's token") as refused:
        Seal("token").open(record)
    assert "canary" not in str(refused.value)


def test_another_token_does_not_open_it() -> None:
    with pytest.raises(StartFailed):
        Seal("another").open(Seal("token").close("dev", "key", VALUE))
