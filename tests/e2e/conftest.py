"""One S3 server, one packed real model, one running Stoker for all end-to-end tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from harness.stack import Stack
from stoker.deploy.s3server import S3Server

ROOT = Path(__file__).resolve().parents[2]
BUCKET = "models"


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        client(server).create_bucket(Bucket=BUCKET)
        yield server


def client(server: S3Server) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=server.endpoint_url,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name="us-east-1",
    )


@pytest.fixture(scope="session")
def variables(s3: S3Server) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": s3.endpoint_url,
        "AWS_ACCESS_KEY_ID": s3.access_key,
        "AWS_SECRET_ACCESS_KEY": s3.secret_key,
        "AWS_DEFAULT_REGION": "us-east-1",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "STOKER_BUNDLES": f"s3://{BUCKET}/bundles",
        # What func-python needs, for functions that ask for it.
        "PIP_FIND_LINKS": str(Path(sys.prefix) / "func-python-wheels"),
        "STOKER_DOMAIN": "fn.example.com",
        "FUNC_GREETING": "Hello",
    }


@pytest.fixture(scope="session")
def models() -> Path:
    """The folder with the real models, converted once and cached."""
    ran = subprocess.run(
        [sys.executable, str(ROOT / "functions" / "fetch_models.py")],
        capture_output=True,
        text=True,
        check=True,
    )
    return Path(ran.stdout.strip().splitlines()[-1]).parent


@pytest.fixture(scope="session")
def stack(
    tmp_path_factory: pytest.TempPathFactory, variables: dict[str, str], models: Path
) -> Iterator[Stack]:
    running = Stack(tmp_path_factory.mktemp("stoker") / "state", variables).start()
    for model in ("smollm2-135m-instruct", "all-minilm-l6-v2"):
        running.run("model", "pack", str(models / model), "--out", f"s3://{BUCKET}/{model}")
    yield running
    running.stop()


@pytest.fixture(scope="session")
def chat(stack: Stack) -> str:
    """A deployed chat function on the real model, packed, in S3."""
    annotations = {"stoker/model": f"s3://{BUCKET}/smollm2-135m-instruct", "stoker/task": "chat"}
    assert stack.deploy("chat", annotations).status == 202
    return "chat"
