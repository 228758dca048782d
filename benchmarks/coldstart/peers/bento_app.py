"""BentoML: a service that streams text; `bentoml serve bento_app:Model`."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import bentoml


@bentoml.service(workers=1, traffic={"timeout": 120})
class Model:
    def __init__(self) -> None:
        from generation import Chat

        self._chat = Chat(os.environ["BENCHMARK_FOLDER"])

    @bentoml.api(route="/generate")
    def generate(
        self, messages: list[dict[str, Any]], max_tokens: int
    ) -> Generator[str, None, None]:
        yield from self._chat.stream(messages, max_tokens)
