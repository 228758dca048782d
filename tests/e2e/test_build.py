"""Code without Docker: the wire sequence of `faas-cli up --remote-builder`, from new to invoked."""

from __future__ import annotations

import hashlib
import hmac
import io
import json
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path

from harness import web
from harness.stack import Stack, wait_until

ROOT = Path(__file__).resolve().parents[2]
BUCKET = "models"
# What the stock templates put beside a handler: their own server, which is not what runs here.
BESIDE = {
    "context/Dockerfile": "FROM python:3.12-alpine\n",
    "context/template.yml": "language: python3\nfprocess: python index.py\n",
    "context/requirements.txt": "flask\nwaitress\n",
    "context/function/__init__.py": "",
    "context/function/requirements.txt": "",
}
HTTP_INDEX = (
    "from flask import Flask, request\nfrom waitress import serve\n"
    "from function import handler\napp = Flask(__name__)\n"
    "serve(app, host='0.0.0.0', port=5000)\n"
)
HTTP_HANDLER = (
    "def handle(event, context):\n"
    "    return {'statusCode': 201, 'body': {'said': event.body.decode(), 'by': event.method},\n"
    "            'headers': {'X-Path': event.path}}\n"
)
FLASK_HANDLER = (
    "from flask import request\n"
    "def handle(req):\n"
    "    return req.upper(), 202, {'X-Query': request.args['q']}\n"
)


def signed(stack: Stack, image: str, files: Mapping[str, str]) -> tuple[bytes, dict[str, str]]:
    """The body and the headers of POST /build, as the client sends them."""
    tar = io.BytesIO()
    config = json.dumps({"image": image, "buildArgs": {}, "platforms": ["linux/amd64"]})
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name, text in {"com.openfaas.docker.config": config, **files}.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    payload = tar.getvalue()
    digest = hmac.new(stack.password.encode(), payload, hashlib.sha256).hexdigest()
    return payload, {
        "Content-Type": "application/octet-stream",
        "Accept": "application/x-ndjson",
        "X-Build-Signature": f"sha256={digest}",
    }


def up(stack: Stack, name: str, files: Mapping[str, str], **fields: object) -> None:
    """Build, then PUT, and POST since it is not there."""
    payload, headers = signed(stack, f"{name}:latest", {**BESIDE, **files})
    built = web.call("POST", f"{stack.url}/build", payload, headers)
    lines = [json.loads(line) for line in built.body.splitlines()]
    assert (built.status, lines[-1]["status"]) == (200, "success"), lines
    body = {"service": name, "image": f"{name}:latest", "envProcess": "python index.py", **fields}
    assert stack.system("PUT", "/system/functions", body).status == 404
    assert stack.system("POST", "/system/functions", body).status == 202


def test_the_stock_http_layout_goes_from_new_to_invoked(stack: Stack) -> None:
    files = {"context/index.py": HTTP_INDEX, "context/function/handler.py": HTTP_HANDLER}
    # The template sets these for its own server.
    up(
        stack,
        "stock-http",
        files,
        envVars={"mode": "http", "upstream_url": "http://127.0.0.1:5000"},
    )
    answer = web.call("POST", f"{stack.url}/function/stock-http/a/b", b"hello")
    assert (answer.status, answer.headers["x-path"]) == (201, "/a/b")
    assert answer.json() == {"said": "hello", "by": "POST"}


def test_the_stock_flask_layout_goes_from_new_to_invoked(stack: Stack) -> None:
    up(stack, "stock-flask", {"context/function/handler.py": FLASK_HANDLER})
    answer = web.call("POST", f"{stack.url}/function/stock-flask?q=1", b"hello")
    assert (answer.status, answer.body, answer.headers["x-query"]) == (202, b"HELLO", "1")


def test_a_build_that_nobody_signed_or_that_was_changed_is_refused(stack: Stack) -> None:
    payload, headers = signed(stack, "forged:1", {"context/function/handler.py": HTTP_HANDLER})
    changed = web.call("POST", f"{stack.url}/build", payload + b"\0", headers)
    unsigned = web.call("POST", f"{stack.url}/build", payload)
    assert (changed.status, unsigned.status) == (401, 401)


def new_from_template(folder: Path, language: str, name: str, model: str) -> Path:
    """What `faas-cli template pull` and `faas-cli new` leave; the stack file's path."""
    shutil.copytree(ROOT / "template" / language, folder / "template" / language)
    shutil.copytree(folder / "template" / language / "function", folder / name)
    function = {
        "lang": language,
        "handler": f"./{name}",
        "image": f"{name}:latest",
        "annotations": {"stoker/model": model, "stoker/task": "custom"},
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps({"provider": {"name": "openfaas"}, "functions": {name: function}}))
    return path


def test_a_function_from_the_llm_template_streams_its_own_models_answer(
    stack: Stack, tmp_path: Path
) -> None:
    model = f"s3://{BUCKET}/smollm2-135m-instruct"
    stack.run("deploy", "-f", str(new_from_template(tmp_path, "python3-llm", "asks", model)))
    answer = stack.call("asks", b"What is the capital of France?")
    assert answer.status == 200
    assert "Paris" in answer.body.decode()
    assert stack.call("asks", b" ").status == 400
    listed = web.call("GET", f"{stack.url}/v1/models", None, web.bearer(stack.password)).json()
    assert "asks" not in [entry["id"] for entry in listed["data"]]
    stack.remove("asks")


def test_a_function_from_the_embed_template_finds_the_nearest_text(
    stack: Stack, tmp_path: Path
) -> None:
    model = f"s3://{BUCKET}/all-minilm-l6-v2"
    stack.run("deploy", "-f", str(new_from_template(tmp_path, "python3-embed", "finds", model)))
    asked = {"question": "a fruit", "texts": ["a motor car", "a ripe apple", "tax law"]}
    answer = stack.call("finds", json.dumps(asked).encode())
    assert (answer.status, answer.json()["nearest"]) == (200, "a ripe apple")
    stack.remove("finds")


def test_bundles_in_a_bucket_reach_the_node_whatever_their_size(stack: Stack) -> None:
    data = hashlib.shake_256(b"x").hexdigest(1_500_000)
    files = {
        "context/function/data": data,
        "context/function/handler.py": "import pathlib\n"
        "def handle(event, context):\n"
        "    return str(len(pathlib.Path('data').read_text()))\n",
    }
    up(stack, "large", files)
    wait_until(lambda: stack.call("large").status == 200, "the function answers")
    assert stack.call("large").body == b"3000000"
    assert not (stack.state / "bundles").exists()
    stack.remove("large")
