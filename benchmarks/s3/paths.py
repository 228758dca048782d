"""Ways from an S3 server into a load's memory, side by side.

    pip install -e '.[dev,bench]' && PYTHONPATH=tests python benchmarks/s3/paths.py [MIB] [ROUNDS]

Each path reads one object as the loader does, in ranges of 16 MiB over 8 threads into memory that
has been touched before. Rounds are interleaved. The limit of the same run is a bare socket that
sends as many bytes from a process of its own, without HTTP and without storage.
"""

from __future__ import annotations

import http.client
import importlib.util
import os
import secrets
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import boto3
from botocore.config import Config

from harness.s3 import BUCKET, client, running
from stoker.deploy.s3server import S3Server
from stoker.runtime.checkpoint.settings import CheckpointSettings
from stoker.runtime.checkpoint.source import open_source

RANGE_BYTES = 16 << 20
THREADS = 8
ReadRange = Callable[[int, memoryview], None]


def boto3_readinto(server: S3Server) -> ReadRange:
    """`StreamingBody.readinto`, which copies twice inside urllib3."""
    s3 = boto3.client(
        "s3",
        endpoint_url=server.endpoint_url,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name="us-east-1",
        config=Config(max_pool_connections=16),
    )

    def read(offset: int, into: memoryview) -> None:
        last = offset + len(into) - 1
        body = s3.get_object(Bucket=BUCKET, Key="m/object", Range=f"bytes={offset}-{last}")["Body"]
        position = 0
        while position < len(into):
            position += body.readinto(into[position : position + (1 << 20)])
        body.close()

    return read


def http_client_readinto(server: S3Server) -> ReadRange:
    """`http.client.HTTPResponse.readinto` of a presigned URL: the kernel copies, nothing else."""
    s3 = client(server)
    parts = urlsplit(server.endpoint_url)
    kept = threading.local()

    def read(offset: int, into: memoryview) -> None:
        span = f"bytes={offset}-{offset + len(into) - 1}"
        parameters = {"Bucket": BUCKET, "Key": "m/object", "Range": span}
        url = urlsplit(s3.generate_presigned_url("get_object", Params=parameters))
        if not hasattr(kept, "connection"):
            kept.connection = http.client.HTTPConnection(parts.netloc, timeout=10)
        kept.connection.request("GET", f"{url.path}?{url.query}", headers={"Range": span})
        answer = kept.connection.getresponse()
        assert answer.status == 206
        position = 0
        while position < len(into):
            position += answer.readinto(into[position : position + (256 << 10)])

    return read


def obstore(server: S3Server) -> ReadRange:
    from obstore.store import S3Store

    store = S3Store(
        BUCKET,
        endpoint=server.endpoint_url,
        access_key_id=server.access_key,
        secret_access_key=server.secret_key,
        region="us-east-1",
        client_options={"allow_http": True},
    )

    def read(offset: int, into: memoryview) -> None:
        import obstore as functions

        into[:] = memoryview(functions.get_range(store, "m/object", start=offset, length=len(into)))

    return read


def stoker_source(server: S3Server) -> ReadRange:
    os.environ |= server.environment
    source = open_source(f"s3://{BUCKET}/m", CheckpointSettings(server.endpoint_url))
    return lambda offset, into: source.read("object", offset, into, None)


def bare_socket() -> ReadRange:
    """A child that answers every connection with a range's worth of bytes."""
    listener = socket.create_server(("127.0.0.1", 0))
    if os.fork() == 0:
        payload = bytes(RANGE_BYTES)
        parent = os.getppid()
        listener.settimeout(1)
        while os.getppid() == parent:
            try:
                near, _ = listener.accept()
            except TimeoutError:
                continue
            near.settimeout(None)
            threading.Thread(target=lambda end=near: (end.sendall(payload), end.close())).start()
        os._exit(0)
    address = listener.getsockname()

    def read(_offset: int, into: memoryview) -> None:
        with socket.create_connection(address) as far:
            position = 0
            while position < len(into):
                position += far.recv_into(into[position:])

    return read


def seconds_of(read: ReadRange, into: memoryview, pool: ThreadPoolExecutor) -> tuple[float, float]:
    """Wall seconds and this process' CPU seconds of one object."""
    starts = range(0, len(into), RANGE_BYTES)
    begun, cpu = time.perf_counter(), time.process_time()
    for done in [pool.submit(read, at, into[at : at + RANGE_BYTES]) for at in starts]:
        done.result()
    return time.perf_counter() - begun, time.process_time() - cpu


def main(mebibytes: int, rounds: int) -> None:
    payload = secrets.token_bytes(mebibytes << 20)
    into = memoryview(bytearray(len(payload)))
    limit = bare_socket()
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as server:
        client(server).put_object(Bucket=BUCKET, Key="m/object", Body=payload)
        paths = {
            "boto3 readinto": boto3_readinto(server),
            "http.client readinto": http_client_readinto(server),
            "stoker S3Source": stoker_source(server),
        }
        if importlib.util.find_spec("obstore"):
            paths["obstore"] = obstore(server)
        paths["bare socket (limit)"] = limit
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in paths}
        with ThreadPoolExecutor(THREADS) as pool:
            for number in range(rounds + 1):
                for name, read in paths.items():
                    measured = seconds_of(read, into, pool)
                    if "limit" not in name and into != payload:
                        raise SystemExit(f"{name} read other bytes than were put")
                    if number:  # the first round warms caches and connections
                        found[name].append(measured)
    base = statistics.median(wall for wall, _ in found["boto3 readinto"])
    for name, measured in found.items():
        walls = [wall for wall, _ in measured]
        median, cpu = statistics.median(walls), statistics.median(c for _, c in measured)
        raw = " ".join(f"{wall:.3f}" for wall in walls)
        rate = mebibytes / median
        print(
            f"{name:22} {median:.3f} s  {rate:6.0f} MiB/s  {base / median:4.2f} x boto3  "
            f"client CPU {cpu:.3f} s  rounds {raw}"
        )


if __name__ == "__main__":
    arguments = [int(argument) for argument in sys.argv[1:]]
    main(*(arguments + [256, 5][len(arguments) :]))
