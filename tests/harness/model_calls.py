"""Handlers of model functions called without HTTP, with a tokenizer of bytes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from harness import tiny_model
from stoker.runtime.engine.tokenizer import TextCodec
from stoker.runtime.handlers.http import Handler, Request, Response

CODEC = TextCodec(tiny_model.byte_tokenizer(), tiny_model.CHAT_TEMPLATE, {"eos_token": "<end>"})
JSON_TYPE = (("content-type", "application/json"),)


def post(path: str, body: dict[str, Any] | bytes) -> Request:
    if isinstance(body, bytes):
        return Request("POST", path, "", (), body)
    return Request("POST", path, "", JSON_TYPE, json.dumps(body).encode())


async def read(response: Response) -> bytes:
    if isinstance(response.body, bytes):
        return response.body
    return b"".join([piece async for piece in response.body])


def call(handler: Handler, request: Request) -> tuple[Response, bytes]:
    async def scenario() -> tuple[Response, bytes]:
        response = await handler(request)
        return response, await read(response)

    return asyncio.run(scenario())


def events(payload: bytes) -> list[Any]:
    lines = payload.decode().split("\n\n")
    assert lines.pop() == ""
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def chat(**fields: Any) -> Request:
    body = {"model": "m", "messages": [{"role": "user", "content": "hé llo"}], **fields}
    return post("/v1/chat/completions", body)
