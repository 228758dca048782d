"""LitServe: its OpenAI specification over one worker.

python lit_app.py FOLDER PORT
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import litserve
from generation import Chat


class Model(litserve.LitAPI):
    def setup(self, device: str) -> None:  # noqa: ARG002 (LitServe names it)
        self._chat = Chat(sys.argv[1])

    def predict(self, request: Any) -> Iterator[str]:
        messages = [{"role": m.role, "content": m.content} for m in request.messages]
        yield from self._chat.stream(messages, request.max_tokens)


if __name__ == "__main__":
    api = Model(spec=litserve.OpenAISpec())
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False)
