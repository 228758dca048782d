"""Tensors in JSON and as bytes, there and back."""

from __future__ import annotations

import base64
import json
import struct
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.gateway.oip_tensors import (
    DATATYPES,
    HEADER_LENGTH,
    InferRequest,
    Tensor,
    infer_answer,
    output_tensors,
    parse_infer,
)
from stoker.placement.errors import BadRequest, FunctionError

EVERYTHING = InferRequest({"inputs": [], "parameters": {"binary_data_output": True}}, ())


def tensor(**fields: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": "INT32", "shape": [2], "data": [1, 2]} | fields


def body(*inputs: dict[str, Any], **fields: Any) -> bytes:
    return json.dumps({"inputs": list(inputs), **fields}).encode()


def binary(
    datatype: str, shape: list[int], raw: bytes, size: int | None = None
) -> tuple[bytes, str]:
    """A request with one binary input, and its header's length."""
    given_ = {"name": "x", "datatype": datatype, "shape": shape}
    given_["parameters"] = {"binary_data_size": len(raw) if size is None else size, "kept": 1}
    head = json.dumps({"inputs": [given_]}).encode()
    return head + raw, str(len(head))


@pytest.mark.parametrize(
    ("datatype", "raw", "data"),
    [
        ("BOOL", b"\1\0", [True, False]),
        ("UINT8", b"\1\xff", [1, 255]),
        ("INT16", struct.pack("<2h", -2, 300), [-2, 300]),
        ("INT64", struct.pack("<2q", -1, 2**62), [-1, 2**62]),
        ("UINT64", struct.pack("<2Q", 0, 2**64 - 1), [0, 2**64 - 1]),
        ("FP16", struct.pack("<2e", 0.5, -2.0), [0.5, -2.0]),
        ("BF16", b"\x80\x3f\x00\xc0", [1.0, -2.0]),
        ("FP32", struct.pack("<2f", 0.25, 3.0), [0.25, 3.0]),
        ("FP64", struct.pack("<2d", 0.1, 1e300), [0.1, 1e300]),
        ("BYTES", b"\3\0\0\0abc\2\0\0\0\xc3\xa9", ["abc", "é"]),
    ],
)
def test_binary_inputs_become_json_and_outputs_bytes_again(
    datatype: str, raw: bytes, data: list[Any]
) -> None:
    asked = parse_infer(*binary(datatype, [2], raw))

    (found,) = asked.fields["inputs"]
    assert found["data"] == data
    assert found["parameters"] == {"kept": 1}
    outputs = output_tensors([{**found, "name": "y"}])
    headers, answer = infer_answer({"model_name": "m"}, outputs, EVERYTHING)
    length = int(dict(headers)[HEADER_LENGTH])
    assert json.loads(answer[:length])["outputs"] == [
        {
            "name": "y",
            "datatype": datatype,
            "shape": [2],
            "parameters": {"binary_data_size": len(raw)},
        }
    ]
    assert answer[length:] == raw


def test_bytes_that_are_no_text_go_as_base64_and_say_so() -> None:
    (found,) = parse_infer(*binary("BYTES", [1], b"\2\0\0\0\xff\xd8")).fields["inputs"]

    assert base64.b64decode(found["data"][0]) == b"\xff\xd8"
    assert found["parameters"]["content_type"] == "base64"


def test_a_json_request_reaches_the_function_as_it_came() -> None:
    sent = {
        "id": "42",
        "parameters": {"p": 1},
        "inputs": [tensor(shape=[2, 1], data=[[1], [2]]), tensor(name="y", shape=[0], data=[])],
        "outputs": [{"name": "z", "parameters": {"binary_data": True}}],
    }

    asked = parse_infer(json.dumps(sent).encode(), "")

    assert asked.fields == sent
    assert asked.request_id == "42"
    assert [list(t.data) for t in asked.inputs] == [[1, 2], []]
    assert (asked.is_binary("z"), asked.is_binary("other")) == (True, False)


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"[]",
        body(),
        b'{"inputs": 1}',
        b'{"inputs": ["x"]}',
        body(tensor(name=1)),
        body(tensor(datatype="FP8")),
        body(tensor(shape=[-1])),
        body(tensor(shape=[True])),
        body(tensor(shape="2")),
        body(tensor(shape=[1] * 33, data=[1])),
        body(tensor(shape=[10**12, 10**12])),
        body(tensor(shape=[3])),
        body(tensor(data=[1, "2"])),
        body(tensor(data=[1, 2.5])),
        body(tensor(data=[[1], 2])),
        body(tensor(data=None)),
        body(tensor(datatype="BYTES", data=["a", 1])),
        body(tensor(), id=7),
        body(tensor(), id="x" * 1025),
        body(tensor(), outputs=["x"]),
        body(tensor(), outputs={}),
        body(*[tensor()] * 257),
    ],
)
def test_a_request_that_is_none_is_refused(wrong: bytes) -> None:
    with pytest.raises(BadRequest):
        parse_infer(wrong, "")


@pytest.mark.parametrize(
    "wrong",
    [
        (b"{}", "3"),
        (b"{}", "-1"),
        (b"{}", "x"),
        binary("INT32", [2], b"\0" * 4),
        binary("INT32", [2], b"\0" * 8, size=12),
        binary("INT32", [1], b"\0" * 8, size=4),
        binary("INT32", [2], b"\0" * 8, size=-8),
        binary("BYTES", [1], b"\5\0\0\0abc"),
        binary("BYTES", [2], b"\1\0\0\0a"),
        binary("BYTES", [1], b"\1\0"),
        binary("BYTES", [1], b"\xff\xff\xff\xffa"),
    ],
)
def test_bytes_that_do_not_fit_their_description_are_refused(wrong: tuple[bytes, str]) -> None:
    with pytest.raises(BadRequest):
        parse_infer(*wrong)


def test_huge_numbers_are_refused_at_once() -> None:
    began = time.thread_time()
    for wrong in (tensor(shape=[2**63] * 32), tensor(shape=[10**9], data=[])):
        with pytest.raises(BadRequest):
            parse_infer(body(wrong), "")
    assert time.thread_time() - began < 0.01


@pytest.mark.parametrize(
    "outputs", [None, [], {}, ["x"], [tensor(shape=[9])], [tensor(data=["a", "b"])]]
)
def test_what_a_function_returns_instead_of_outputs_is_its_fault(outputs: Any) -> None:
    with pytest.raises(FunctionError, match="Expected outputs"):
        output_tensors(outputs)


def test_an_element_that_its_datatype_cannot_hold_is_the_functions_fault() -> None:
    with pytest.raises(FunctionError, match="UINT8"):
        infer_answer({}, [Tensor("y", "UINT8", (1,), [256])], EVERYTHING)


def test_json_outputs_of_bytes_are_flat_lists() -> None:
    rows = Tensor("embedding", "FP32", (2, 2), struct.pack("<4f", 1, 2, 3, 4))

    headers, answer = infer_answer({"id": "1"}, [rows], InferRequest({"inputs": []}, ()))

    assert headers == [(b"content-type", b"application/json")]
    assert json.loads(answer) == {
        "id": "1",
        "outputs": [
            {"name": "embedding", "datatype": "FP32", "shape": [2, 2], "data": [1, 2, 3, 4]}
        ],
    }


@given(st.binary(max_size=200), st.sampled_from(["", "0", "7", "20", "200"]))
def test_no_body_is_more_than_refused(payload: bytes, length: str) -> None:
    with pytest.raises(BadRequest):
        parse_infer(payload, length)


@given(st.sampled_from(DATATYPES), st.lists(st.integers(0, 4), max_size=4), st.binary(max_size=64))
def test_any_bytes_are_a_tensor_or_are_refused(datatype: str, shape: list[int], raw: bytes) -> None:
    try:
        asked = parse_infer(*binary(datatype, shape, raw))
    except BadRequest:
        return
    assert json.dumps(asked.fields["inputs"][0]["data"])
