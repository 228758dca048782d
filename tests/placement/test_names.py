import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.placement.errors import BadRequest
from stoker.placement.names import (
    split_function_name,
    valid_digest,
    valid_function_name,
    valid_namespace,
    valid_node_id,
    valid_secret_name,
)


@pytest.mark.parametrize("name", ["a", "chat", "Chat_2", "a-b", "0", "x" * 63])
def test_a_function_name_is_returned_as_it_is(name: str) -> None:
    assert valid_function_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "-a", "a-", "a.b", "a/b", "..", "a\n", "é", "x" * 64, None, 5, ["a"]]
)
def test_what_is_no_function_name_is_refused_with_what_was_found(name: object) -> None:
    with pytest.raises(BadRequest, match="found"):
        valid_function_name(name)


@pytest.mark.parametrize("name", ["", "Team", "a_b", "a.b", "../etc", "ns\n"])
def test_what_is_no_namespace_is_refused(name: str) -> None:
    with pytest.raises(BadRequest, match="a namespace"):
        valid_namespace(name)


@pytest.mark.parametrize("name", [".", "..", "../x", ".hidden", "a/b", "a\0", ""])
def test_a_secret_or_node_name_that_leads_elsewhere_is_refused(name: str) -> None:
    for valid in (valid_secret_name, valid_node_id):
        with pytest.raises(BadRequest):
            valid(name)


def test_a_secret_may_be_called_like_a_file() -> None:
    assert valid_secret_name("tls.crt") == "tls.crt"


@pytest.mark.parametrize("digest", ["", "a" * 63, "A" * 64, "g" * 64, "a" * 64 + "\n", None])
def test_what_is_no_digest_is_refused(digest: object) -> None:
    with pytest.raises(BadRequest, match="64 small hex digits"):
        valid_digest(digest)


def test_the_namespace_follows_the_last_dot() -> None:
    assert split_function_name("chat.ns") == ("chat", "ns")


def test_without_a_dot_the_namespace_is_the_default_one() -> None:
    assert split_function_name("chat") == ("chat", "openfaas-fn")


@pytest.mark.parametrize("text", ["", ".", ".openfaas-fn", "chat.", "a.b.c", "chat/ns"])
def test_a_malformed_function_key_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        split_function_name(text)


@given(st.text())
def test_an_accepted_name_is_one_safe_path_segment(text: str) -> None:
    try:
        name, namespace = split_function_name(text)
    except BadRequest:
        return
    for part in (name, namespace):
        assert part not in ("", ".", "..")
        assert not set(part) & set("/\\\0\n ")
