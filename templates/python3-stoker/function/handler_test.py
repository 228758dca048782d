"""Run it with pytest in this folder."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from handler import handle


class Model:
    def generate(self, prompt: str, **options: Any) -> str:
        return f"{prompt} ({options['max_tokens']} tokens at most)"


EVENT = SimpleNamespace(body=b"Hello", headers={}, method="POST", query={}, path="/")


def test_without_a_model_it_says_what_came() -> None:
    answer = handle(EVENT, SimpleNamespace(hostname="here", model=None))
    assert answer == {"statusCode": 200, "body": "Hello from here: 5 bytes came by POST.\n"}


def test_with_a_model_it_answers() -> None:
    answer = handle(EVENT, SimpleNamespace(hostname="here", model=Model()))
    assert answer["body"] == "Hello (100 tokens at most)"
