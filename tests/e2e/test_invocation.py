"""The main job on real input: deployed, called, streamed, shared, scaled to zero, started again."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from harness import web
from harness.stack import Stack, wait_until

BUCKET = "models"
STAGES = ["queue", "place", "fetch", "load", "init", "prefill"]
QUESTION = "What is the capital of France? Answer in one sentence."


def client_of(stack: Stack) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{stack.url}/v1", api_key=stack.password, max_retries=0)


def test_the_openai_client_streams_the_answer_of_a_function_at_zero(
    stack: Stack, chat: str
) -> None:
    with client_of(stack) as client:
        chunks = list(
            client.chat.completions.create(
                model=chat,
                messages=[{"role": "user", "content": QUESTION}],
                temperature=0,
                max_tokens=24,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert "Paris" in text
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0


def test_plain_text_in_gives_the_same_plain_text_out_every_time(stack: Stack, chat: str) -> None:
    answers = {stack.run("invoke", chat, "--data", QUESTION).stdout for _ in range(2)}
    assert len(answers) == 1
    assert "Paris" in answers.pop()


def test_tokens_leave_one_by_one_and_not_in_one_piece(stack: Stack, chat: str) -> None:
    stack.chat(chat, "Hello", max_tokens=1)
    body = {
        "model": chat,
        "stream": True,
        "max_tokens": 24,
        "messages": [{"role": "user", "content": "Tell me a long story about a river."}],
    }
    connection, path = web.connect(f"{stack.url}/v1/chat/completions")
    connection.request("POST", path, json.dumps(body), web.bearer(stack.password))
    arrivals = [time.monotonic() for _ in web.events(connection.getresponse())]
    connection.close()
    gaps = [b - a for a, b in itertools.pairwise(arrivals)]
    assert sum(gap > 0.001 for gap in gaps) > len(gaps) / 2


def test_each_response_says_where_its_time_went(stack: Stack, chat: str) -> None:
    stack.chat(chat, "Hello", max_tokens=1)
    warm = stack.chat(chat, "Hello", max_tokens=1)
    assert list(warm.stages) == STAGES
    assert (warm.stages["fetch"], warm.stages["load"], warm.stages["init"]) == (0, 0, 0)
    assert warm.stages["prefill"] > 0
    stack.scale_to_zero(chat)
    cold = stack.chat(chat, "Hello", max_tokens=1)
    assert cold.stages["init"] > 0


def test_why_tells_what_was_predicted_for_a_start_and_what_it_took(stack: Stack, chat: str) -> None:
    stack.scale_to_zero(chat)
    body = {"model": chat, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
    headers = {**web.bearer(stack.password), "X-Call-Id": "why-this-call"}
    cold = web.call("POST", f"{stack.url}/v1/chat/completions", body, headers)
    instance = cold.headers["x-served-by"]
    wait_until(lambda: "took" in stack.run("why", "why-this-call").stdout, "the start is compared")
    told = json.loads(stack.run("why", "why-this-call", "--json").stdout)
    assert (told["instance_id"], told["policy"], told["rejected"]) == (instance, "stoker", [])
    assert told["actual_seconds"] > 0
    assert {stage["stage"] for stage in told["stages"]} >= {"process"}
    assert stack.run("why", instance).stdout == stack.run("why", "why-this-call").stdout
    assert stack.run("why", "no-such-call", check=False).returncode == 1


def test_greedy_output_equals_plain_generate_token_for_token_in_fp32(
    stack: Stack, models: Path
) -> None:
    model = models / "smollm2-135m-instruct"
    annotations = {"stoker/model": f"file://{model}", "stoker/dtype": "float32"}
    assert stack.deploy("chat-fp32", annotations).status == 202
    code = (
        "import sys, torch\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "torch.set_num_threads(2)\n"
        "t = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "m = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)\n"
        "p = t.apply_chat_template([{'role': 'user', 'content': sys.argv[2]}],"
        " add_generation_prompt=True, return_tensors='pt', return_dict=True)\n"
        "o = m.generate(**p, do_sample=False, max_new_tokens=48)\n"
        "print(t.decode(o[0, p['input_ids'].shape[1]:], skip_special_tokens=True))\n"
    )
    prompt = "Write two sentences about the sea."
    plain = subprocess.run(
        [sys.executable, "-c", code, str(model), prompt],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout.removesuffix("\n")
    answer = stack.chat("chat-fp32", prompt, temperature=0, max_tokens=48)
    assert answer.json()["choices"][0]["message"]["content"] == plain
    stack.remove("chat-fp32")


def test_a_seed_draws_the_same_tokens_again(stack: Stack, chat: str) -> None:
    answers = {
        stack.chat(chat, "Name an animal.", temperature=1.0, seed=7, max_tokens=16).json()[
            "choices"
        ][0]["message"]["content"]
        for _ in range(3)
    }
    assert len(answers) == 1


def test_an_embedding_function_puts_related_sentences_closer(stack: Stack) -> None:
    annotations = {"stoker/model": f"s3://{BUCKET}/all-minilm-l6-v2", "stoker/task": "embed"}
    assert stack.deploy("embed", annotations).status == 202
    with client_of(stack) as client:
        vectors = [
            item.embedding
            for item in client.embeddings.create(
                model="embed",
                input=["A cat sits on the mat.", "A kitten rests on a rug.", "Bonds fell today."],
            ).data
        ]

    def dot(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    assert dot(vectors[0], vectors[0]) == pytest.approx(1.0, abs=1e-3)
    assert dot(vectors[0], vectors[1]) > dot(vectors[0], vectors[2]) + 0.2


def test_a_handler_function_is_built_deployed_and_called(stack: Stack) -> None:
    root = Path(__file__).resolve().parents[2]
    stack.run("deploy", "-f", str(root / "functions" / "echo" / "stack.yaml"))
    assert "hello there" in stack.run("invoke", "echo", "--data", "hello there").stdout


@pytest.mark.parametrize(
    ("folder", "name", "path", "answer"),
    [
        ("functions-framework", "greet", "/?name=Ada", b"Hello Ada, by POST"),
        ("knative", "count", "/a/b", b"1 POST /a/b"),
        ("classic", "upper", "/", b"THE BODY"),
    ],
)
def test_functions_of_other_frameworks_are_built_deployed_and_called(
    stack: Stack, folder: str, name: str, path: str, answer: bytes
) -> None:
    root = Path(__file__).resolve().parents[2]
    stack.run("deploy", "-f", str(root / "functions" / folder / "stack.yaml"))
    got = web.call("POST", f"{stack.url}/function/{name}{path}", b"the body", {})
    assert (got.status, got.body) == (200, answer)
    stack.remove(name)


def test_the_images_of_openfaas_own_tools_run_without_a_build(stack: Stack) -> None:
    alpine = {"image": "functions/alpine:latest", "envProcess": "env", "envVars": {"OWN": "1"}}
    redirector = {"image": "theaxer/redirector:latest", "envVars": {"destination": "http://x/"}}
    for name, fields in (("environment", alpine), ("redirector", redirector)):
        assert stack.deploy(name, {}, **fields).status == 202
    listed = web.call("GET", f"{stack.url}/function/environment?q=1", None, {})
    sent_on = web.call("POST", f"{stack.url}/function/redirector", b"", {})
    log = stack.run("logs", "environment").stdout
    assert {"OWN=1", "Http_Query=q=1", "Http_Method=GET"} <= set(listed.body.decode().splitlines())
    assert (sent_on.status, sent_on.headers["location"]) == (302, "http://x/")
    assert "Forking fprocess." in log
    assert f"Wrote {len(listed.body)} Bytes - Duration: " in log
    for name in ("environment", "redirector"):
        stack.remove(name)


def test_two_hundred_concurrent_calls_to_a_cold_function_cause_one_load(stack: Stack) -> None:
    annotations = {"stoker/model": f"s3://{BUCKET}/all-minilm-l6-v2", "stoker/task": "embed"}
    assert stack.deploy("crowd", annotations).status == 202
    seen: set[str] = set()

    def embed(number: int) -> int:
        answer = web.call(
            "POST",
            f"{stack.url}/v1/embeddings",
            {"model": "crowd", "input": f"sentence {number}"},
            web.bearer(stack.password),
        )
        seen.add(answer.headers.get("x-served-by", ""))
        return answer.status

    with ThreadPoolExecutor(200) as pool:
        statuses = list(pool.map(embed, range(200)))
    assert statuses == [200] * 200
    assert len(seen) == 1
    stack.remove("crowd")


def test_an_idle_function_goes_to_zero_and_the_next_call_starts_it(stack: Stack) -> None:
    annotations = {
        "stoker/model": f"s3://{BUCKET}/all-minilm-l6-v2",
        "stoker/task": "embed",
        "stoker/idle-ttl": "1s",
    }
    assert stack.deploy("brief", annotations).status == 202
    url, headers = f"{stack.url}/v1/embeddings", web.bearer(stack.password)
    body = {"model": "brief", "input": "one"}
    assert web.call("POST", url, body, headers).status == 200
    wait_until(lambda: not stack.instances("brief"), "the idle function is at zero", 20)
    again = web.call("POST", url, body, headers)
    assert again.status == 200
    assert again.stages["init"] > 0
    assert again.stages["fetch"] == 0
    stack.remove("brief")


def test_two_workers_of_one_model_hold_its_weights_once(stack: Stack) -> None:
    annotations = {
        "stoker/model": f"s3://{BUCKET}/smollm2-135m-instruct",
        "com.openfaas.scale.max": "2",
        "com.openfaas.scale.target": "1",
    }
    assert stack.deploy("pair", annotations).status == 202
    stack.chat("pair", "Hi", max_tokens=1)

    def long() -> None:
        stack.chat("pair", "Tell me a long story.", max_tokens=60, temperature=0)

    threads = [threading.Thread(target=long) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    serving = [i for i in stack.instances("pair") if i["state"] == "serving"]
    assert len(serving) == 2
    shared = [pool_pages(int(i["pid"])) for i in serving]
    weight_bytes = 250_000_000
    assert all(resident > weight_bytes for resident, _ in shared)
    assert sum(proportional for _, proportional in shared) < 1.3 * max(r for r, _ in shared)
    stack.remove("pair")


def pool_pages(pid: int) -> tuple[int, int]:
    """Bytes of the DRAM pool mapped by a process: resident, and its proportional share."""
    resident = proportional = 0
    inside = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0] and ":" not in line.split(" ")[0]:
            inside = "memfd:stoker-pool" in line
        elif inside and line.startswith("Rss:"):
            resident += int(line.split()[1]) * 1024
        elif inside and line.startswith("Pss:"):
            proportional += int(line.split()[1]) * 1024
    return resident, proportional


def test_a_client_that_leaves_frees_its_slot_within_a_second(stack: Stack) -> None:
    annotations = {
        "stoker/model": f"s3://{BUCKET}/smollm2-135m-instruct",
        "com.openfaas.scale.max": "1",
        "com.openfaas.scale.target": "1",
    }
    assert stack.deploy("single", annotations).status == 202
    stack.chat("single", "Hi", max_tokens=1)
    body = {
        "model": "single",
        "stream": True,
        "max_tokens": 1000,
        "temperature": 0,
        "messages": [{"role": "user", "content": "Count from one to one thousand."}],
    }
    connection, path = web.connect(f"{stack.url}/v1/chat/completions")
    connection.request("POST", path, json.dumps(body), web.bearer(stack.password))
    response = connection.getresponse()
    next(web.events(response))
    response.close()
    connection.close()
    left = time.monotonic()
    assert stack.chat("single", "Hi", max_tokens=1).status == 200
    assert time.monotonic() - left < 1.5
    stack.remove("single")
