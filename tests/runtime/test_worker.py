"""A worker end to end: a fork of a real zygote, weights in a real pool, real HTTP."""

from __future__ import annotations

import http.client
import json
import os
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import tiny_model
from harness.workers import TOKEN, ParkedProcess, WorkerProcess, ZygoteProcess, resident, worker
from stoker.native import Pool
from stoker.placement.errors import ChunkCorrupt
from stoker.placement.records import FunctionRecord, Scaling

CHAT = FunctionRecord("chat", "ns", "image", task="chat", scaling=Scaling(concurrency=2))
CUSTOM = FunctionRecord(
    "shout", "ns", "image", scaling=Scaling(concurrency=2), environment={"GREETING": "hello"}
)
BODY = {"messages": [{"role": "user", "content": "hi"}], "temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def pool() -> Pool:
    return Pool(64 << 20)


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.write_llama(tmp_path_factory.mktemp("models") / "llama")


def _stages(headers: dict[str, str]) -> dict[str, float]:
    pairs = (stage.split(";dur=") for stage in headers["server-timing"].split(", "))
    return {name: float(value) for name, value in pairs}


def _code(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "handler.py").write_text(text)
    return folder


def test_a_chat_waits_for_the_weights_and_then_equals_plain_generate(
    zygote: ZygoteProcess, pool: Pool, llama_folder: Path, tmp_path: Path
) -> None:
    checkpoint = resident(llama_folder, pool, tmp_path)
    with worker(zygote, CHAT, tmp_path / "work", checkpoint=checkpoint) as running:
        loader = threading.Timer(0.5, checkpoint.read)
        loader.start()
        cold_status, cold, cold_headers = running.call("/v1/chat/completions", BODY)
        warm_status, warm, warm_headers = running.call("/v1/chat/completions", BODY)
        serving = running.status()
        loader.join()

    alphabet = tiny_model.byte_tokenizer()
    prompt = alphabet.encode("[user]hi[assistant]").ids
    tokens = tiny_model.llama().generate(
        torch.tensor([prompt]), max_new_tokens=12, do_sample=False, pad_token_id=0
    )[0, len(prompt) :]
    expected = alphabet.decode(tokens.tolist()).rstrip("\ufffd")
    assert (cold_status, warm_status, serving.event) == (200, 200, "serving")
    assert json.loads(cold)["choices"][0]["message"]["content"] == expected
    assert json.loads(warm)["choices"][0]["message"]["content"] == expected
    cold_stages, warm_stages = _stages(cold_headers), _stages(warm_headers)
    assert list(cold_stages) == ["fetch", "load", "init", "prefill"]
    assert cold_stages["load"] >= 200.0
    assert [warm_stages[stage] for stage in ("fetch", "load", "init")] == [0.0, 0.0, 0.0]
    assert warm_stages["prefill"] > 0.0
    pool.release(checkpoint.start.chunks)


def test_the_next_start_is_made_from_a_template_and_answers_alike(
    zygote: ZygoteProcess, pool: Pool, llama_folder: Path, tmp_path: Path
) -> None:
    function = replace(CHAT, max_context=128)
    answers, templates = [], []
    for attempt in range(4):
        # Chunks at other places each time: a template knows none of them.
        checkpoint = resident(llama_folder, pool, tmp_path)
        with worker(zygote, function, tmp_path / str(len(answers)), checkpoint=checkpoint) as made:
            checkpoint.read()
            answers.append(made.call("/v1/chat/completions", BODY)[1])
            templates.append(made.status().from_template)
        if attempt == 0:
            ParkedProcess(zygote, function, tmp_path / "parked", checkpoint=checkpoint).end()
        hold = pool.allocate(1)
        pool.release(checkpoint.start.chunks)
        pool.release(hold)
    assert templates == [False, True, True, True]
    texts = {json.loads(answer)["choices"][0]["message"]["content"] for answer in answers}
    assert len(texts) == 1


def test_a_failed_load_answers_every_request_with_its_error(
    zygote: ZygoteProcess, pool: Pool, llama_folder: Path, tmp_path: Path
) -> None:
    checkpoint = resident(llama_folder, pool, tmp_path)
    with worker(zygote, CHAT, tmp_path / "work", checkpoint=checkpoint) as running:
        error = ChunkCorrupt("Chunk 0 is wrong.", "Deploy again.", chunk=0)
        checkpoint.progress.fail(json.dumps(error.to_wire()))
        status = running.status()
        answers = [running.call("/", b"hi") for _ in range(2)]

    assert (status.event, status.error) == ("failed", error.to_wire())
    for code, body, _ in answers:
        assert code == 502
        assert json.loads(body) == {"error": error.to_wire()}
    pool.release(checkpoint.start.chunks)


def test_a_client_that_leaves_frees_its_slot(
    zygote: ZygoteProcess, pool: Pool, llama_folder: Path, tmp_path: Path
) -> None:
    checkpoint = resident(llama_folder, pool, tmp_path)
    checkpoint.read()
    body = BODY | {"stream": True, "max_tokens": 200, "temperature": 1.0, "seed": 3}
    one_slot = FunctionRecord("chat", "ns", "image", task="chat", scaling=Scaling(concurrency=1))
    with worker(zygote, one_slot, tmp_path / "work", checkpoint=checkpoint) as running:
        left = running.open("/v1/chat/completions", body)
        left.readline()
        left.close()
        began = time.monotonic()
        status, _, _ = running.call("/v1/chat/completions", BODY)
        seconds = time.monotonic() - began

    assert status == 200
    assert seconds < 1.0
    pool.release(checkpoint.start.chunks)


def test_an_embedding_function_answers_normalised_vectors(
    zygote: ZygoteProcess, pool: Pool, tmp_path: Path
) -> None:
    checkpoint = resident(tiny_model.write_bert(tmp_path / "bert"), pool, tmp_path)
    checkpoint.read()
    function = FunctionRecord("embed", "ns", "image", task="embed", dtype="float32")
    texts = ["a much longer text than the other", "short"]
    with worker(zygote, function, tmp_path / "work", checkpoint=checkpoint) as running:
        status, body, _ = running.call("/v1/embeddings", {"input": texts})
        _, alone, _ = running.call("/v1/embeddings", {"input": texts[1]})
        refused, error, _ = running.call("/v1/embeddings", {"input": "x" * 65})

    vectors = torch.tensor([item["embedding"] for item in json.loads(body)["data"]])
    assert status == 200
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(
        vectors[1], torch.tensor(json.loads(alone)["data"][0]["embedding"]), atol=1e-5, rtol=1e-4
    )
    assert refused == 400
    assert json.loads(error)["error"]["code"] == "context_length_exceeded"
    pool.release(checkpoint.start.chunks)


def test_user_code_runs_in_its_own_environment_and_may_fail_and_go_on(
    zygote: ZygoteProcess, tmp_path: Path
) -> None:
    code = _code(
        tmp_path / "code",
        "import os, sys\n"
        "def handle(event, context):\n"
        "    if event.body == b'fail':\n"
        "        raise ValueError('private')\n"
        "    if event.body == b'status':\n"
        "        return open('/proc/self/status').read()\n"
        "    print('working')\n"
        "    return {'body': {'env': dict(os.environ), 'sid': os.getsid(0) == os.getpid(),\n"
        "        'cwd': os.getcwd(), 'fds': len(os.listdir('/proc/self/fd'))}}\n",
    )
    with worker(zygote, CUSTOM, tmp_path / "work", code_dir=code) as running:
        _, body, headers = running.call("/", b"go")
        failed, error, _ = running.call("/", b"fail")
        after, process, _ = running.call("/", b"status")
        log = running.log()

    found: dict[str, Any] = json.loads(body)
    assert found["env"]["GREETING"] == "hello"
    assert found["env"]["TMPDIR"] == str(tmp_path / "work" / "tmp")
    assert not [name for name in found["env"] if name.startswith(("AWS_", "STOKER_"))]
    assert found["sid"]
    assert found["cwd"] == str(code)
    assert failed == 500
    assert json.loads(error)["error"]["code"] == "function_error"
    assert b"private" not in error
    assert after == 200
    assert b"NoNewPrivs:\t1" in process
    assert "working" in log
    assert "ValueError: private" in log
    assert _stages(headers)["prefill"] == 0.0


def test_without_the_instances_token_nothing_is_served(
    zygote: ZygoteProcess, tmp_path: Path
) -> None:
    code = _code(tmp_path / "code", "def handle(event, context):\n    return 'served'\n")
    with worker(zygote, CUSTOM, tmp_path / "work", code_dir=code) as running:
        refused, body, _ = running.call("/", b"", headers={"X-Stoker-Token": TOKEN[:-1]})
        served, _, _ = running.call("/", b"")

    assert (refused, served) == (401, 200)
    assert json.loads(body)["error"]["code"] == "unauthorized"


def test_too_many_requests_are_refused_with_a_time_to_come_back(
    zygote: ZygoteProcess, tmp_path: Path
) -> None:
    code = _code(
        tmp_path / "code",
        "import time\ndef handle(event, context):\n    time.sleep(1.0)\n    return 'done'\n",
    )
    answers: list[tuple[int, dict[str, str]]] = []

    def call(running: WorkerProcess) -> None:
        status, _, headers = running.call("/", b"")
        answers.append((status, headers))

    with worker(zygote, CUSTOM, tmp_path / "work", code_dir=code) as running:
        running.status()
        assert running.call("/", b"")[0] == 200
        threads = [threading.Thread(target=call, args=(running,)) for _ in range(7)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert sorted(status for status, _ in answers) == [200] * 6 + [429]
    # Two at a time, a second each: the four who wait will have run in two seconds and a bit.
    assert [h["retry-after"] for status, h in answers if status == 429] == ["3"]


def test_sigterm_lets_running_requests_finish(zygote: ZygoteProcess, tmp_path: Path) -> None:
    code = _code(
        tmp_path / "code",
        "import time\ndef handle(event, context):\n"
        "    yield 'begun '\n    time.sleep(0.6)\n    yield 'done'\n",
    )
    running = WorkerProcess(zygote, CUSTOM, tmp_path / "work", code_dir=code)
    response = running.open("/", b"")
    os.kill(running.pid, 15)
    text = response.read()
    event = zygote.event()

    assert text == b"begun done"
    assert (event.event, event.pid, event.status) == ("exited", running.pid, 0)
    with pytest.raises(ConnectionError):
        socket.create_connection(("127.0.0.1", running.port))


def test_a_stream_that_fails_in_the_middle_is_cut_and_not_ended(
    zygote: ZygoteProcess, tmp_path: Path
) -> None:
    code = _code(
        tmp_path / "code",
        "def handle(event, context):\n"
        "    yield 'begun'\n"
        "    if event.method == 'POST':\n"
        "        raise ValueError('private')\n",
    )
    with worker(zygote, CUSTOM, tmp_path / "work", code_dir=code) as running:
        with running.open("/", b"") as response:
            assert response.status == 200
            with pytest.raises(http.client.IncompleteRead) as caught:
                response.read()
        assert caught.value.partial == b"begun"
        assert running.call("/", b"", method="GET")[0] == 200


def test_a_request_meant_for_another_instance_is_not_taken(
    zygote: ZygoteProcess, tmp_path: Path
) -> None:
    code = _code(tmp_path / "code", "def handle(event, context):\n    return 'mine'\n")
    with worker(zygote, CUSTOM, tmp_path / "work", code_dir=code, instance_id="1-7") as running:
        other, _, headers = running.call("/", headers={"X-Stoker-Instance": "1-6"})
        own, body, _ = running.call("/", headers={"X-Stoker-Instance": "1-7"})

    assert (other, headers["x-stoker-misdirected"]) == (421, "1")
    assert (own, body) == (200, b"mine")
