"""Run it with pytest in this folder."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from handler import INSTRUCTIONS, handle


class Model:
    """Stands in for context.model."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def stream(self, prompt: Any, **options: Any) -> Iterator[str]:
        self.asked.append((prompt, options))
        yield from ("It is ", "Paris.")


def ask(body: bytes, model: Model) -> dict[str, Any]:
    return handle(SimpleNamespace(body=body), SimpleNamespace(model=model))


def test_a_question_is_asked_with_the_instructions_and_streamed() -> None:
    model = Model()
    answer = ask(b"What is the capital of France?\n", model)
    assert list(answer["body"]) == ["It is ", "Paris."]
    ((messages, options),) = model.asked
    assert [message["content"] for message in messages] == [
        INSTRUCTIONS,
        "What is the capital of France?",
    ]
    assert options == {"max_tokens": 200, "temperature": 0}


def test_no_question_is_a_bad_request() -> None:
    assert ask(b" \n", Model())["statusCode"] == 400
