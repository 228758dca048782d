"""Ray Serve: one replica of a null function.

python ray_app.py PORT
"""

from __future__ import annotations

import sys
import tempfile
import threading

import ray
from ray import serve
from starlette.requests import Request


@serve.deployment(ray_actor_options={"num_cpus": 1}, max_ongoing_requests=64)
class Null:
    async def __call__(self, request: Request) -> dict[str, str]:  # noqa: ARG002
        return {}


def main() -> None:
    ray.init(
        include_dashboard=False,
        object_store_memory=100 << 20,
        _temp_dir=tempfile.mkdtemp(prefix="ray-"),
    )
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Null.bind(), route_prefix="/")
    threading.Event().wait()


if __name__ == "__main__":
    main()
