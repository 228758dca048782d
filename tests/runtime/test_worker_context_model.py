"""Functions with code and a model: `context.model` in a real worker, on a real tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness import tiny_model
from harness.functions import write_files
from harness.workers import Resident, ZygoteProcess, resident, worker
from stoker.native import Pool
from stoker.placement.records import FunctionRecord, Scaling

ASKS = FunctionRecord(
    "asks", "ns", "image", code_digest="0" * 64, scaling=Scaling(concurrency=2), max_context=128
)
HANDLER = """
import asyncio
import itertools

def handle(event, context):
    model, said = context.model, event.body.decode()
    if event.path == "/stream":
        return model.stream(said, max_tokens=8, temperature=0)
    if event.path == "/closed":
        pieces = model.stream(said, max_tokens=100, temperature=0)
        first = list(itertools.islice(pieces, 1))
        pieces.close()
        return {"body": {"pieces": len(first)}}
    if event.path == "/wrong":
        return model.generate(said, temperature=99)
    if event.path == "/loop":
        return in_loop(model)
    if event.path == "/embed":
        return {"body": {"vectors": model.embed([said, "b"])}}
    return model.generate(said, max_tokens=8, temperature=0)

async def in_loop(model):
    try:
        model.generate("x")
    except Exception as error:
        return f"{error} {await asyncio.to_thread(model.generate, 'hi', max_tokens=8)}"
"""


@pytest.fixture(scope="module")
def pool() -> Pool:
    return Pool(64 << 20)


def test_a_handler_generates_and_streams_with_its_model_and_sees_its_errors(
    zygote: ZygoteProcess, pool: Pool, tmp_path: Path
) -> None:
    checkpoint = resident(tiny_model.write_llama(tmp_path / "llama"), pool, tmp_path)
    checkpoint.read()
    code = write_files(tmp_path / "code", {"handler.py": HANDLER})
    with worker(zygote, ASKS, tmp_path / "work", checkpoint=checkpoint, code_dir=code) as running:
        answers = {
            path: running.call(path, b"hi")[:2]
            for path in ("/", "/stream", "/closed", "/wrong", "/loop")
        }
        serving = running.status()
    assert serving.event == "serving"
    status, text = answers["/"]
    assert (status, len(text) > 0) == (200, True)
    assert answers["/stream"] == (200, text)
    assert answers["/closed"] == (200, b'{"pieces":1}')
    status, error = answers["/wrong"]
    assert (status, json.loads(error)["error"]["code"]) == (400, "bad_request")
    assert answers["/loop"][0] == 200
    assert answers["/loop"][1].startswith(b"Expected context.model to be called in a thread")
    pool.release(checkpoint.start.chunks)


def test_a_handler_embeds_with_a_model_that_embeds(
    zygote: ZygoteProcess, pool: Pool, tmp_path: Path
) -> None:
    checkpoint: Resident = resident(tiny_model.write_bert(tmp_path / "bert"), pool, tmp_path)
    checkpoint.read()
    code = write_files(tmp_path / "code", {"handler.py": HANDLER})
    with worker(zygote, ASKS, tmp_path / "work", checkpoint=checkpoint, code_dir=code) as running:
        status, body, _ = running.call("/embed", b"a")
    first, second = json.loads(body)["vectors"]
    assert (status, len(first)) == (200, len(second))
    assert first != second
    pool.release(checkpoint.start.chunks)
