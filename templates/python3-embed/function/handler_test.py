"""Run it with pytest in this folder."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from handler import handle

VECTORS = {"fruit": [1.0, 0.0], "an apple": [0.8, 0.6], "a car": [0.0, 1.0]}


class Model:
    """Stands in for context.model."""

    def embed(self, texts: list[str]) -> list[list[float]]:
        return [VECTORS[text] for text in texts]


def ask(body: Any) -> dict[str, Any]:
    event = SimpleNamespace(body=json.dumps(body).encode())
    return handle(event, SimpleNamespace(model=Model()))


def test_the_text_with_the_nearest_vector_is_found() -> None:
    answer = ask({"question": "fruit", "texts": ["a car", "an apple"]})
    assert answer["body"] == {"nearest": "an apple", "scores": [0.0, 0.8]}


@pytest.mark.parametrize("body", [{}, [], {"question": "x", "texts": []}, {"texts": ["x"]}])
def test_anything_else_is_a_bad_request(body: Any) -> None:
    assert ask(body)["statusCode"] == 400
