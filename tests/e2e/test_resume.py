"""kill -9 of the process that writes an answer: its client gets the rest of it all the same."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import pytest

from harness import web
from harness.stack import Stack

BUCKET = "models"


@pytest.fixture(scope="module")
def exact(stack: Stack) -> str:
    """In 32 bits, a prompt computed at once is what it is token by token."""
    annotations = {
        "stoker/model": f"s3://{BUCKET}/smollm2-135m-instruct",
        "stoker/task": "chat",
        "stoker/dtype": "float32",
    }
    assert stack.deploy("exact", annotations).status == 202
    return "exact"


def _stream(stack: Stack, function: str, fields: dict[str, Any], kill_after: int) -> list[Any]:
    """The events of a chat; after so many, the instance's process is killed."""
    body = {
        "model": function,
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": "Tell me a story about a lighthouse."}],
    } | fields
    connection, path = web.connect(f"{stack.url}/v1/chat/completions")
    connection.request("POST", path, json.dumps(body), web.bearer(stack.password))
    events: list[Any] = []
    for event in web.events(connection.getresponse()):
        if event == "[DONE]":
            connection.close()
            return events
        events.append(json.loads(event))
        if len(events) == kill_after:
            (instance,) = (i for i in stack.instances(function) if i["in_flight"])
            os.kill(int(instance["pid"]), signal.SIGKILL)
    raise AssertionError(f"The stream ended with {events[-1]} and without [DONE].")


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0, "max_tokens": 16},
        {"temperature": 1.0, "top_p": 0.9, "seed": 11, "max_tokens": 16, "logprobs": True},
    ],
    ids=["greedy", "drawn"],
)
def test_an_answer_goes_on_after_kill_9_of_its_process_token_for_token(
    stack: Stack, exact: str, fields: dict[str, Any]
) -> None:
    undisturbed = _stream(stack, exact, fields, kill_after=-1)
    events = _stream(stack, exact, fields, kill_after=6)
    assert len({event["id"] for event in events}) == 1
    assert [_told(event) for event in events] == [_told(event) for event in undisturbed]


def _told(event: dict[str, Any]) -> Any:
    if not event["choices"]:
        return event["usage"]
    (choice,) = event["choices"]
    return choice["delta"], choice["finish_reason"]
