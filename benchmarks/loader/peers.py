"""What others load checkpoints with, as their documentation says to.

`PEERS[name](target)` imports everything and returns the call to measure.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import torch

Tensors = Mapping[str, torch.Tensor]
Load = Callable[[], Tensors]


def torch_load(target: str) -> Load:
    path = Path(target).with_suffix(".pt")
    return lambda: torch.load(path, weights_only=True)


def torch_load_mmap(target: str) -> Load:
    path = Path(target).with_suffix(".pt")
    return lambda: torch.load(path, weights_only=True, mmap=True)


def safetensors(target: str) -> Load:
    from safetensors.torch import load_file

    return lambda: load_file(target)


def fastsafetensors(target: str) -> Load:
    from fastsafetensors import fastsafe_open

    def load() -> Tensors:
        with fastsafe_open(target, nogds=True, device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    return load


def runai(target: str) -> Load:
    """A file, or an object of S3."""
    from runai_model_streamer import SafetensorsStreamer

    def load() -> Tensors:
        with SafetensorsStreamer() as streamer:
            streamer.stream_file(target)
            return dict(streamer.get_tensors())

    return load


def tensorizer(target: str) -> Load:
    from tensorizer import TensorDeserializer

    path = Path(target).with_suffix(".tensors")

    def load() -> Tensors:
        deserializer = TensorDeserializer(str(path), device="cpu")
        return {name: tensor.data for name, tensor in deserializer.items()}

    return load


def tensorizer_s3(target: str) -> Load:
    from tensorizer import TensorDeserializer, stream_io

    uri = target.removesuffix("safetensors") + "tensors"

    def load() -> Tensors:
        stream = stream_io.open_stream(
            uri,
            s3_access_key_id=os.environ["AWS_ACCESS_KEY_ID"],
            s3_secret_access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
            s3_endpoint=os.environ["AWS_ENDPOINT_URL"],
        )
        deserializer = TensorDeserializer(stream, device="cpu")
        return {name: tensor.data for name, tensor in deserializer.items()}

    return load


def download_safetensors(target: str) -> Load:
    """The usual way: the object to a file with boto3, then safetensors."""
    import boto3
    from safetensors.torch import load_file

    parts = urlsplit(target)
    path = Path("downloaded.safetensors")
    client = boto3.client("s3")

    def load() -> Tensors:
        client.download_file(parts.netloc, parts.path.lstrip("/"), str(path))
        tensors: Tensors = load_file(path)
        return tensors

    return load


PEERS: dict[str, Callable[[str], Load]] = {
    "torch_load": torch_load,
    "torch_load_mmap": torch_load_mmap,
    "safetensors": safetensors,
    "fastsafetensors": fastsafetensors,
    "runai": runai,
    "tensorizer": tensorizer,
    "tensorizer_s3": tensorizer_s3,
    "download_safetensors": download_safetensors,
}
