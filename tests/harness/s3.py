"""A running S3 server with one bucket, and the client that fills it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3

from stoker.deploy.s3server import S3Server

BUCKET = "models"


@contextmanager
def running(directory: Path) -> Iterator[S3Server]:
    with S3Server(directory) as server:
        client(server).create_bucket(Bucket=BUCKET)
        yield server


def client(server: S3Server, secret_key: str | None = None) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=server.endpoint_url,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=secret_key or server.secret_key,
        region_name="us-east-1",
    )


def upload(server: S3Server, folder: Path, prefix: str) -> str:
    """Put every file of `folder` below `prefix`; the model's URI."""
    for path in folder.rglob("*"):
        if path.is_file():
            key = f"{prefix}/{path.relative_to(folder)}"
            client(server).upload_file(str(path), BUCKET, key)
    return f"s3://{BUCKET}/{prefix}"
