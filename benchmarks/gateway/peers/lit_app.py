"""LitServe: a null function in one worker.

python lit_app.py PORT
"""

from __future__ import annotations

import sys
from typing import Any

import litserve


class Null(litserve.LitAPI):
    def setup(self, device: str) -> None: ...

    def predict(self, request: Any) -> Any:  # noqa: ARG002 (LitServe names it)
        return {}


if __name__ == "__main__":
    server = litserve.LitServer(Null(), accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, num_api_servers=1
    )
