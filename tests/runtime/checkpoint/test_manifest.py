from __future__ import annotations

import dataclasses
import hashlib
import re
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

import stoker.native
from stoker.placement.errors import CheckpointError
from stoker.runtime.checkpoint import manifest as manifests
from stoker.runtime.checkpoint.layout import encode_layout
from stoker.runtime.checkpoint.manifest import (
    CHUNK_BYTES,
    FileEntry,
    Manifest,
    TensorEntry,
    WeightFile,
)

DIGEST = "0123456789abcdef" * 2


def packed(**changes: Any) -> Manifest:
    manifest = Manifest(
        packed=True,
        files=(FileEntry("config.json", 2, "ab" * 32),),
        weights=(
            WeightFile("model.safetensors", CHUNK_BYTES + 5000, (DIGEST, DIGEST)),
            WeightFile("more.safetensors", 5000, (DIGEST,)),
        ),
        tensors=(
            TensorEntry("b", "F32", (10, 10), 0, 4096, 4496, 0, 1),
            TensorEntry("__stoker_filler_1__", "U8", (48,), 0, 4496, 4544),
            TensorEntry("a", "BF16", (2,), 1, 4096, 4100),
        ),
    )
    return dataclasses.replace(manifest, **changes)


def test_chunks_are_as_large_as_the_native_ones() -> None:
    assert stoker.native.CHUNK_BYTES == CHUNK_BYTES


def test_a_manifest_survives_encoding() -> None:
    manifest = packed(engine={"note": [1, 2]})

    decoded = manifests.decode(manifests.encode(manifest))

    assert decoded == manifest
    assert decoded.digest == hashlib.sha256(manifests.encode(manifest)).hexdigest()


def test_a_file_starts_at_a_chunk_boundary_of_the_virtual_space() -> None:
    manifest = packed()

    assert manifest.file_bases == (0, 2 * CHUNK_BYTES)
    assert manifest.byte_count == 2 * CHUNK_BYTES + 5000
    assert [(c.ordinal, c.file, c.file_offset, c.bytes) for c in manifest.chunks] == [
        (0, 0, 0, CHUNK_BYTES),
        (1, 0, CHUNK_BYTES, 5000),
        (2, 1, 0, 5000),
    ]


def test_the_layout_gives_virtual_offsets_and_leaves_fillers_out() -> None:
    assert orjson.loads(encode_layout(packed())) == {
        "tensors": [
            ["b", "F32", [10, 10], 4096, 400],
            ["a", "BF16", [2], 2 * CHUNK_BYTES + 4096, 4],
        ],
        "byte_count": 2 * CHUNK_BYTES + 5000,
    }


@pytest.mark.parametrize(
    "name",
    ["", "/etc/passwd", "../up", "a/../b", "a\\b", "a\0b", "a//b", "./a", "x" * 256, 7, None],
)
def test_a_file_name_that_could_leave_the_folder_is_refused(name: Any) -> None:
    with pytest.raises(CheckpointError, match="relative file name"):
        manifests.check_name(name)


TENSOR = {"name": "b", "dtype": "F32", "shape": [10, 10], "file": 0, "begin": 4096, "end": 4496}


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (("format",), 2, "format 1"),
        (("packed",), 3, "boolean"),
        (("files", 0, "name"), "../x", "relative file name"),
        (("files", 0, "name"), "run.py", "data files only"),
        (("files", 0, "bytes"), 1 << 40, "at most"),
        (("files", 0, "sha256"), None, "digest of config.json"),
        (("weights",), [], "weight files"),
        (("weights", 0, "bytes"), 17, "1 chunk digests"),
        (("weights", 0, "bytes"), -1, "at least 8 bytes"),
        (("weights", 0, "chunks", 0), "zz", "digest of model.safetensors"),
        (("weights", 1, "name"), "model.safetensors", "a file name twice"),
        (("tensors", 0, "end"), 4500, "as 400 bytes"),
        (("tensors", 0, "begin"), -4, "as 400 bytes"),
        (("tensors", 0, "file"), 2, "weight file of b"),
        (("tensors", 0, "dtype"), "PICKLE", "known dtype"),
        (("tensors", 0, "shape"), [1 << 60], "a shape"),
        (("tensors", 2), TENSOR, "tensor name twice"),
        (("tensors", 2), TENSOR | {"name": "c", "begin": 4400, "end": 4800}, "after the tensor"),
        (("tensors", 0, "layer"), "one", "numbers of b"),
        (("tensors", 0, "extra"), 1, "fields"),
    ],
)
def test_a_manifest_that_does_not_hold_together_is_refused(
    path: tuple[Any, ...], value: Any, sentence: str
) -> None:
    fields = orjson.loads(manifests.encode(packed()))
    target = fields
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value

    with pytest.raises(CheckpointError, match=re.escape(sentence)):
        manifests.decode(orjson.dumps(fields))


@given(st.binary(max_size=200) | st.recursive(st.none() | st.integers() | st.text(), st.lists))
def test_no_garbage_is_taken_for_a_manifest(garbage: Any) -> None:
    payload = garbage if isinstance(garbage, bytes) else str(garbage).encode()

    with pytest.raises(CheckpointError):
        manifests.decode(payload)


def test_an_unpacked_manifest_pins_versions_instead_of_digests() -> None:
    weight = WeightFile("model.safetensors", 100, (None,), "etag")
    manifest = Manifest(False, (FileEntry("config.json", 2, None, "etag"),), (weight,), ())

    assert manifests.decode(manifests.encode(manifest)) == manifest
    unpinned = dataclasses.replace(
        manifest, weights=(WeightFile("model.safetensors", 100, (None,)),)
    )
    with pytest.raises(CheckpointError, match="a version"):
        manifests.decode(manifests.encode(unpinned))
