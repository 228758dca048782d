"""Bad input gets one clear error, at the edge, and nothing is half done."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from harness import web
from harness.stack import Stack
from stoker.deploy.s3server import S3Server

BUCKET = "models"
LACKING = """
provider:
  name: openfaas
functions:
  lacking:
    lang: python3-stoker
    handler: ./lacking
    image: lacking:latest
"""


def test_an_unknown_function_is_404(stack: Stack) -> None:
    assert web.call("POST", f"{stack.url}/function/nobody", b"x").status == 404
    answer = stack.chat("nobody", "Hi")
    assert (answer.status, answer.json()["error"]["code"]) == (404, "model_not_found")


def test_bad_json_is_400_with_the_position(stack: Stack, chat: str) -> None:
    headers = web.bearer(stack.password) | {"Content-Type": "application/json"}
    body = b'{"model": "chat",\n "messages": [}'
    answer = web.call("POST", f"{stack.url}/v1/chat/completions", body, headers)
    assert answer.status == 400
    assert "line 2 column 15" in answer.json()["error"]["message"]


def test_an_unknown_annotation_is_400_with_a_suggestion(stack: Stack) -> None:
    answer = stack.deploy("typo", {"stoker/modle": "s3://models/x"})
    assert answer.status == 400
    assert "stoker/model" in answer.body.decode()


@pytest.mark.parametrize(
    ("uri", "status", "named"),
    [
        ("s3://no-such-bucket/x", 400, "no-such-bucket"),
        (f"s3://{BUCKET}/no/such/key", 400, "no/such/key"),
        ("file:///no/such/folder", 400, "/no/such/folder"),
        ("http://127.0.0.1/x", 400, "http"),
    ],
)
def test_a_missing_checkpoint_is_refused_at_deploy_with_the_cause(
    stack: Stack, uri: str, status: int, named: str
) -> None:
    answer = stack.deploy("absent", {"stoker/model": uri})
    assert answer.status == status
    assert named in answer.body.decode()
    assert stack.system("GET", "/system/function/absent").status == 404


def test_wrong_credentials_are_refused_at_deploy_with_the_cause(
    tmp_path: Path, variables: dict[str, str], stack: Stack
) -> None:
    wrong = variables | {"AWS_SECRET_ACCESS_KEY": "wrong-secret-canary"}
    other = Stack(tmp_path / "state", wrong, ("--dram-bytes", "64MiB")).start()
    try:
        answer = other.deploy("chat", {"stoker/model": f"s3://{BUCKET}/smollm2-135m-instruct"})
        assert answer.status == 403
        assert "credentials" in answer.body.decode()
        assert "wrong-secret-canary" not in answer.body.decode()
    finally:
        other.stop()


def test_a_function_that_its_limit_cannot_hold_is_refused_before_it_loads(
    stack: Stack, chat: str
) -> None:
    annotations = {"stoker/model": f"s3://{BUCKET}/smollm2-135m-instruct"}
    assert stack.deploy("tight", annotations, limits={"memory": "64Mi"}).status == 202

    answer = stack.chat("tight", "Hi")

    error = answer.json()["error"]
    assert (answer.status, error["code"]) == (503, "memory_short")
    assert f"at most {64 << 20} bytes" in error["message"]
    assert "stoker/max-context" in error["message"]
    stack.remove("tight")


def test_a_pickle_checkpoint_is_refused(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    answer = stack.deploy("pickled", {"stoker/model": f"file://{tmp_path}"})
    assert answer.status == 400
    assert "pytorch_model.bin" in answer.body.decode()
    assert "safetensors" in answer.body.decode()


def test_a_corrupt_chunk_is_refused_with_file_offset_and_both_digests(
    stack: Stack, s3: S3Server, models: Path, tmp_path: Path
) -> None:
    # Its own content first: a node rightly serves known content from its own verified copy.
    own, packed = tmp_path / "own", tmp_path / "packed"
    shutil.copytree(models / "all-minilm-l6-v2", own)
    content = bytearray((own / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (own / "model.safetensors").write_bytes(content)
    stack.run("model", "pack", str(own), "--out", str(packed))
    weights = bytearray((packed / "model.safetensors").read_bytes())
    weights[40_000_000] ^= 1
    (packed / "model.safetensors").write_bytes(weights)
    stack.run("model", "push", str(packed), f"s3://{BUCKET}/flipped")
    annotations = {"stoker/model": f"s3://{BUCKET}/flipped", "stoker/task": "embed"}
    assert stack.deploy("flipped", annotations).status == 202
    body = {"model": "flipped", "input": "x"}
    answer = web.call("POST", f"{stack.url}/v1/embeddings", body, web.bearer(stack.password))
    assert answer.status == 502
    error = answer.json()["error"]
    assert error["code"] == "chunk_corrupt"
    chunk = 16 * 1024 * 1024
    assert "model.safetensors" in error["message"]
    assert str(40_000_000 // chunk * chunk) in error["message"]
    digests = [word.strip(".,;") for word in error["message"].split()]
    assert len({word for word in digests if len(word) == 32}) == 2
    stack.remove("flipped")


def test_a_prompt_over_the_context_is_400_with_both_counts(stack: Stack, chat: str) -> None:
    answer = stack.chat(chat, "word " * 9000, max_tokens=4)
    error = answer.json()["error"]
    assert (answer.status, error["code"]) == (400, "context_length_exceeded")
    assert "8192" in error["message"]
    assert "90" in error["message"]


def test_a_body_over_the_limit_is_413(stack: Stack, chat: str) -> None:
    size = 64 * 1024 * 1024 + 1
    answer = web.call("POST", f"{stack.url}/function/{chat}", b"x" * size)
    assert answer.status == 413
    assert str(size - 1) in answer.body.decode()


def test_the_control_routes_want_the_password(stack: Stack) -> None:
    for path in ("/system/functions", "/system/info", "/system/instances", "/system/nodes"):
        answer = web.call("GET", stack.url + path)
        assert answer.status == 401
        assert answer.headers["www-authenticate"] == 'Basic realm="Restricted"'
    assert web.call("GET", f"{stack.url}/v1/models").status == 401


def test_an_unpacked_checkpoint_that_changed_after_deploy_is_refused(
    stack: Stack, models: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(models / "all-minilm-l6-v2", folder)
    annotations = {"stoker/model": f"file://{folder}", "stoker/task": "embed"}
    assert stack.deploy("moved", annotations).status == 202
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    body = {"model": "moved", "input": "x"}
    answer = web.call("POST", f"{stack.url}/v1/embeddings", body, web.bearer(stack.password))
    assert (answer.status, answer.json()["error"]["code"]) == (409, "checkpoint_changed")
    stack.remove("moved")


def test_a_package_that_pip_does_not_find_is_told_to_the_caller_with_pips_line(
    stack: Stack, tmp_path: Path
) -> None:
    (tmp_path / "lacking").mkdir()
    (tmp_path / "lacking" / "handler.py").write_text("def handle(event, context): ...\n")
    (tmp_path / "lacking" / "requirements.txt").write_text("no-such-package-of-anyone\n")
    (tmp_path / "stack.yaml").write_text(LACKING)
    stack.run("deploy", "-f", str(tmp_path / "stack.yaml"))

    accept = {"Accept": "application/json"}
    answer = web.call("POST", f"{stack.url}/function/lacking", b"", accept)

    line = "ERROR: No matching distribution found for no-such-package-of-anyone"
    assert (answer.status, answer.json()["error"]["code"]) == (502, "start_failed")
    assert line in answer.json()["error"]["cause"]
    assert line in stack.run("logs", "lacking").stdout
    stack.remove("lacking")


def test_the_command_line_says_cause_and_remedy(stack: Stack) -> None:
    ran = stack.run("invoke", "nobody", "--data", "x", check=False)
    assert ran.returncode == 1
    assert ran.stderr.startswith("error: ")
    assert "remedy: " in ran.stderr
    assert "Traceback" not in ran.stderr
