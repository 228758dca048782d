"""Tensors of the Open Inference Protocol: in JSON, or as little-endian bytes behind it.

    {"inputs": [{…, "parameters": {"binary_data_size": 8}}, …]}aaaaaaaabbbb
    <-------------- Inference-Header-Content-Length ---------->a: 8   b: 4

An element of BYTES is its length in four bytes, then the bytes. Pure: no I/O.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import orjson

from stoker.gateway.json_body import json_object
from stoker.placement.errors import BadRequest, FunctionError

TENSORS_MAXIMUM = 256
DIMENSIONS_MAXIMUM = 32
ELEMENTS_MAXIMUM = 2**31
ID_CHARACTERS_MAXIMUM = 1024
HEADER_LENGTH = b"inference-header-content-length"

_FORMATS: Mapping[str, str] = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}
DATATYPES = (*_FORMATS, "BF16", "BYTES")


@dataclass(frozen=True, slots=True)
class Tensor:
    """`data` are its elements, flat, or their bytes as they go behind the JSON."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Sequence[Any] | bytes


@dataclass(frozen=True, slots=True)
class InferRequest:
    """An infer request as JSON alone: `fields` has what was binary as `data` of its input."""

    fields: Mapping[str, Any]
    inputs: tuple[Tensor, ...]

    @property
    def request_id(self) -> str | None:
        return self.fields.get("id")

    @property
    def wanted(self) -> tuple[str, ...]:
        """Names of the outputs asked for; none means all."""
        return tuple(output["name"] for output in self.fields.get("outputs") or ())

    def is_binary(self, name: str) -> bool:
        """Whether the client wants that output as bytes."""
        chosen = bool(_parameters(self.fields).get("binary_data_output"))
        for output in self.fields.get("outputs") or ():
            if output["name"] == name:
                chosen = bool(_parameters(output).get("binary_data", chosen))
        return chosen


def parse_infer(body: bytes, header_length: str) -> InferRequest:
    """The request in `body`, of which `header_length` bytes are JSON if it says so; BadRequest."""
    length = len(body)
    if header_length:
        length = int(header_length) if header_length.isdecimal() else -1
        if not 0 <= length <= len(body):
            raise _wrong(
                f"Inference-Header-Content-Length to be at most {len(body)}, the body's bytes",
                header_length,
            )
    fields = json_object(body[:length])
    _check(fields)
    rest = memoryview(body)[length:]
    inputs, tensors = [], []
    for given in fields["inputs"]:
        size = _parameters(given).get("binary_data_size")
        if size is None:
            tensor = _from_json(given)
            inputs.append(given)
        else:
            if type(size) is not int or not 0 <= size <= len(rest):
                raise _wrong(f"binary_data_size of {given['name']!r:.80} to be in the body", size)
            tensor = _from_bytes(given, rest[:size])
            rest = rest[size:]
            inputs.append(_with_data(given, tensor))
        tensors.append(tensor)
    if rest:
        raise _wrong("every byte behind the JSON to be of an input", f"{len(rest)} more")
    return InferRequest({**fields, "inputs": inputs}, tuple(tensors))


def infer_answer(
    fields: Mapping[str, Any], outputs: Sequence[Tensor], asked: InferRequest
) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Headers and body of the answer with these outputs; FunctionError if they are none."""
    told, raw = [], []
    for tensor in outputs:
        row: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.shape),
        }
        if asked.is_binary(tensor.name):
            data = tensor.data if isinstance(tensor.data, bytes) else _packed(tensor)
            row["parameters"] = {"binary_data_size": len(data)}
            raw.append(data)
        else:
            data_ = tensor.data
            row["data"] = _unpacked(tensor, data_) if isinstance(data_, bytes) else data_
        told.append(row)
    head = orjson.dumps({**fields, "outputs": told})
    if not raw:
        return [(b"content-type", b"application/json")], head
    headers = [
        (b"content-type", b"application/octet-stream"),
        (HEADER_LENGTH, str(len(head)).encode()),
    ]
    return headers, head + b"".join(raw)


def output_tensors(outputs: Any) -> list[Tensor]:
    """The outputs that a function returned as JSON; FunctionError."""
    try:
        _check_tensors(outputs)
        return [_from_json(output) for output in outputs]
    except BadRequest as error:
        raise FunctionError(
            f"Expected outputs of the Open Inference Protocol from the function. {error.cause}",
            'Return {"outputs": [{"name", "shape", "datatype", "data"}]}.',
        ) from error


def _check(fields: Mapping[str, Any]) -> None:
    request_id = fields.get("id")
    if request_id is not None and not (
        isinstance(request_id, str) and len(request_id) <= ID_CHARACTERS_MAXIMUM
    ):
        raise _wrong(f"a string of at most {ID_CHARACTERS_MAXIMUM} characters as id", request_id)
    _check_tensors(fields.get("inputs"))
    outputs = fields.get("outputs")
    if outputs is None:
        return
    if not isinstance(outputs, list) or len(outputs) > TENSORS_MAXIMUM:
        raise _wrong(f"a list of at most {TENSORS_MAXIMUM} as outputs", outputs)
    for output in outputs:
        if not isinstance(output, dict) or not isinstance(output.get("name"), str):
            raise _wrong("an object with a name in outputs", output)


def _check_tensors(tensors: Any) -> None:
    if not isinstance(tensors, list) or not 0 < len(tensors) <= TENSORS_MAXIMUM:
        raise _wrong(f"a list of 1 to {TENSORS_MAXIMUM} tensors", tensors)
    for tensor in tensors:
        if not isinstance(tensor, dict) or not isinstance(tensor.get("name"), str):
            raise _wrong("a tensor to be an object with a name", tensor)
        name: str = tensor["name"]
        shape: Any = tensor.get("shape")
        is_list = isinstance(shape, list) and len(shape) <= DIMENSIONS_MAXIMUM
        if not is_list or not all(type(size) is int and size >= 0 for size in shape):
            raise _wrong(f"a list of sizes as shape of {name!r:.80}", shape)
        if math.prod(shape) > ELEMENTS_MAXIMUM:
            raise _wrong(f"at most {ELEMENTS_MAXIMUM} elements in {name!r:.80}", shape)
        if tensor.get("datatype") not in DATATYPES:
            expected = f"one of {', '.join(DATATYPES)} as datatype of {name!r:.80}"
            raise _wrong(expected, tensor.get("datatype"))


def _from_json(given: Mapping[str, Any]) -> Tensor:
    """A tensor whose elements are in the JSON, flat or nested as its shape."""
    name, datatype, data = given["name"], given["datatype"], given.get("data")
    shape = tuple(given["shape"])
    for _ in range(DIMENSIONS_MAXIMUM):
        if not isinstance(data, list) or set(map(type, data)) != {list}:
            break
        data = list(chain.from_iterable(data))
    if not isinstance(data, list) or len(data) != math.prod(shape):
        found = f"{len(data)} of them" if isinstance(data, list) else data
        raise _wrong(f"{math.prod(shape)} elements as data of {name!r:.80}", found)
    if not set(map(type, data)) <= _types_of(datatype):
        wrong = next(item for item in data if type(item) not in _types_of(datatype))
        raise _wrong(f"elements of {datatype} in {name!r:.80}", wrong)
    return Tensor(name, datatype, shape, data)


def _types_of(datatype: str) -> set[type]:
    if datatype == "BYTES":
        return {str}
    if datatype == "BOOL":
        return {bool}
    return {int, float} if datatype in ("BF16", "FP16", "FP32", "FP64") else {int}


def _from_bytes(given: Mapping[str, Any], raw: memoryview) -> Tensor:
    name, datatype, shape = given["name"], given["datatype"], tuple(given["shape"])
    tensor = Tensor(name, datatype, shape, bytes(raw))
    count, found = math.prod(shape), len(raw)
    if datatype != "BYTES" and found != count * _item_bytes(datatype):
        expected = f"{count * _item_bytes(datatype)} bytes for {name!r:.80}"
        raise _wrong(expected, found)
    data = _unpacked(tensor, bytes(raw))
    if len(data) != count:
        raise _wrong(f"{count} elements in {name!r:.80}", len(data))
    return Tensor(name, datatype, shape, data)


def _item_bytes(datatype: str) -> int:
    return 2 if datatype == "BF16" else struct.calcsize(f"<{_FORMATS[datatype]}")


def _unpacked(tensor: Tensor, raw: bytes) -> Sequence[Any]:
    """Elements of bytes; those of BYTES stay bytes."""
    if tensor.datatype == "BYTES":
        return _byte_strings(tensor.name, raw)
    if tensor.datatype == "BF16":
        # The upper half of a float32.
        wide = bytearray(2 * len(raw))
        wide[2::4], wide[3::4] = raw[0::2], raw[1::2]
        return struct.unpack(f"<{len(raw) // 2}f", wide)
    form = _FORMATS[tensor.datatype]
    return struct.unpack(f"<{len(raw) // struct.calcsize(f'<{form}')}{form}", raw)


def _byte_strings(name: str, raw: bytes) -> list[bytes]:
    found, begin = [], 0
    while begin < len(raw):
        size = int.from_bytes(raw[begin : begin + 4], "little")
        end = begin + 4 + size
        if begin + 4 > len(raw) or end > len(raw):
            raise _wrong(f"BYTES of {name!r:.80} to end with the tensor", f"{size} at {begin}")
        found.append(raw[begin + 4 : end])
        begin = end
    return found


def _packed(tensor: Tensor) -> bytes:
    """Elements as bytes; FunctionError for one that the datatype cannot hold."""
    if tensor.datatype == "BYTES":
        parts = [item.encode() for item in tensor.data if isinstance(item, str)]
        return b"".join(len(part).to_bytes(4, "little") + part for part in parts)
    form = "f" if tensor.datatype == "BF16" else _FORMATS[tensor.datatype]
    try:
        raw = struct.pack(f"<{len(tensor.data)}{form}", *tensor.data)
    except (struct.error, OverflowError) as error:
        raise FunctionError(
            f"Expected elements of {tensor.datatype} in {tensor.name!r:.80}, found: {error}.",
            "Return another datatype.",
        ) from error
    if tensor.datatype != "BF16":
        return raw
    narrow = bytearray(len(raw) // 2)
    narrow[0::2], narrow[1::2] = raw[2::4], raw[3::4]
    return bytes(narrow)


def _with_data(given: Mapping[str, Any], tensor: Tensor) -> dict[str, Any]:
    """The input with its elements in the JSON. Bytes that are no UTF-8 go as base64, and say so."""
    parameters = {k: v for k, v in _parameters(given).items() if k != "binary_data_size"}
    data = list(tensor.data)
    if tensor.datatype == "BYTES":
        try:
            data = [item.decode() for item in data]
        except UnicodeDecodeError:
            data = [base64.b64encode(item).decode() for item in data]
            parameters["content_type"] = "base64"
    told = {k: v for k, v in given.items() if k != "parameters"} | {"data": data}
    return told | ({"parameters": parameters} if parameters else {})


def _parameters(holder: Mapping[str, Any]) -> Mapping[str, Any]:
    found = holder.get("parameters")
    return found if isinstance(found, dict) else {}


def _wrong(expected: str, found: Any) -> BadRequest:
    return BadRequest(f"Expected {expected}, found {found!r:.80}.", "Correct the request's body.")
