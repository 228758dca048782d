"""The Open Inference Protocol by KServe's own client, which sends tensors as bytes by default."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from harness import web
from harness.stack import Stack, wait_until

ROOT = Path(__file__).resolve().parents[1]
KSERVE = Path(sys.prefix) / "kserve"
DOUBLE = """
import json

def handle(event, context):
    given = json.loads(event.body)["inputs"][0]
    rows = [2 * value for value in given["data"]]
    return {"statusCode": 200, "body": {"outputs": [{**given, "name": "doubled", "data": rows}]}}
"""


def test_the_kserve_client_infers_in_bytes_and_in_json(stack: Stack, tmp_path: Path) -> None:
    annotations = {"stoker/model": "s3://models/all-minilm-l6-v2", "stoker/task": "embed"}
    assert stack.deploy("sentences", annotations).status == 202
    stack.deploy_code(tmp_path, "double", DOUBLE)
    ran = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", str(ROOT / "harness" / "kserve_calls.py")),
            *(stack.url, stack.password, "sentences", "double"),
        ],
        env=os.environ | {"PYTHONPATH": str(KSERVE)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout.splitlines()[-1])

    assert (told["live"], told["ready"], told["model_ready"]) == (True, True, True)
    assert told["nobody_ready"] is False
    for kind in ("embed_True", "embed_False"):
        answer = told[kind]
        assert (answer["id"], answer["model"]) == ("the-id", "sentences")
        assert answer["outputs"] == ["embedding"]
        cat, kitten, market = np.array(answer["vectors"])
        assert cat @ cat > 0.999
        assert cat @ kitten > cat @ market + 0.2
    np.testing.assert_allclose(told["embed_True"]["vectors"], told["embed_False"]["vectors"])
    assert told["doubled"] == [[3.0, 5.0]]
    assert told["error"][0] == 404
    assert "nobody" in told["error"][1]
    stack.remove("double")
    stack.remove("sentences")


def test_a_loaded_model_has_an_instance_and_an_unloaded_one_has_none(stack: Stack) -> None:
    annotations = {"stoker/model": "s3://models/all-minilm-l6-v2", "stoker/task": "embed"}
    assert stack.deploy("kept", annotations).status == 202
    url, headers = f"{stack.url}/v2/repository/models/kept", web.bearer(stack.password)
    loaded = web.call("POST", f"{url}/load", {}, headers)
    assert (loaded.status, loaded.json()) == (200, {"name": "kept", "load": True})
    wait_until(lambda: len(stack.instances("kept")) == 1, "kept has an instance")
    unloaded = web.call("POST", f"{url}/unload", {}, headers)
    assert (unloaded.status, unloaded.json()) == (200, {"name": "kept", "unload": True})
    wait_until(lambda: not stack.instances("kept"), "kept has no instance")
    stack.remove("kept")
