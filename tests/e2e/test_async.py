"""An asynchronous call of a real model function that is at zero, by the command line."""

from __future__ import annotations

import json

from harness.stack import Stack, wait_until


def test_a_call_of_a_function_at_zero_is_queued_started_and_answered(
    stack: Stack, chat: str
) -> None:
    stack.scale_to_zero(chat)
    messages = [{"role": "user", "content": "Hello"}]
    body = json.dumps({"messages": messages, "max_tokens": 4, "temperature": 0})

    call_id = stack.run("invoke", chat, "--data", body, "--async").stdout.strip()

    state = f"/system/async/{call_id}"
    wait_until(lambda: stack.system("GET", state).json()["state"] == "done", "it is done", 60)
    job = json.loads(stack.run("jobs", "show", call_id, "--json").stdout)
    assert (job["status"], job["runs"], job["function"]) == (200, 1, f"{chat}.openfaas-fn")
    answer = json.loads(stack.run("jobs", "result", call_id).stdout)
    assert answer["usage"]["completion_tokens"] == 4
    at_once = json.loads(stack.run("invoke", chat, "--data", body).stdout)
    assert answer["choices"] == at_once["choices"]
    # Placement knew it by the same id as any other call.
    assert chat in stack.run("why", call_id).stdout
