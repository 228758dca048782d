"""Ray Serve: one replica that streams text.

python ray_app.py FOLDER PORT
"""

from __future__ import annotations

import sys
import tempfile
import threading

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import StreamingResponse


@serve.deployment(ray_actor_options={"num_cpus": 1})
class Model:
    def __init__(self, folder: str) -> None:
        from generation import Chat

        self._chat = Chat(folder)

    async def __call__(self, request: Request) -> StreamingResponse:
        body = await request.json()
        pieces = self._chat.stream(body["messages"], body["max_tokens"])
        return StreamingResponse(pieces, media_type="text/plain")


def main() -> None:
    folder, port = sys.argv[1], int(sys.argv[2])
    ray.init(
        include_dashboard=False,
        object_store_memory=100 << 20,
        _temp_dir=tempfile.mkdtemp(prefix="ray-"),
        runtime_env={"env_vars": {"PYTHONPATH": sys.path[0]}},
    )
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(Model.bind(folder), route_prefix="/")
    threading.Event().wait()


if __name__ == "__main__":
    main()
