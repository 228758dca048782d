"""`context.model`: the function's own model, called from its code.

    handle (a thread) ── generate, stream, embed ──> event loop ──> the model's handler ──> engine

It speaks to the handler that serves model functions, in the form of OpenAI's routes: the same
options, the same checks, and one batch with what other requests ask for at the time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import orjson

from stoker.placement.errors import BadRequest, DeadlineExceeded, FunctionError
from stoker.runtime.handlers.http import Handler, Request, Response

ANSWER_SECONDS_MAXIMUM = 600.0
# Of an answer for which the function does not say how long it may be.
TOKENS_DEFAULT = 256
_JSON = (("content-type", "application/json"),)
_T = TypeVar("_T")

Prompt = str | Sequence[Mapping[str, str]]


class ContextModel:
    """Called by synchronous code, in any thread but the event loop's.

    `chats` says that the model has a chat template. Options are those of OpenAI's routes
    (max_tokens, temperature, top_p, seed, stop, …). BadRequest for what the model or a route does
    not take, DeadlineExceeded after ANSWER_SECONDS_MAXIMUM without a word.
    """

    def __init__(self, handler: Handler, name: str, *, chats: bool) -> None:
        self._handler = handler
        self._name = name
        self._chats = chats
        self._loop: asyncio.AbstractEventLoop | None = None

    async def attach(self) -> None:
        """Serve from now on; called in the event loop."""
        self._loop = asyncio.get_running_loop()

    def generate(self, prompt: Prompt, **options: Any) -> str:
        """The answer to a text, or to a conversation of messages with role and content."""
        path, body = self._asked(prompt, options)
        choice = self._whole(path, body)["choices"][0]
        return str(choice["message"]["content"] if "message" in choice else choice["text"])

    def stream(self, prompt: Prompt, **options: Any) -> Iterator[str]:
        """The same answer piece by piece, as the model makes it; closing it ends the work."""
        path, body = self._asked(prompt, {**options, "stream": True})
        response = self._run(lambda: self._call(path, body))
        pieces = response.body
        if isinstance(pieces, bytes):
            raise FunctionError(f"Expected a stream of the model, found {pieces[:80]!r}.")
        try:
            pending = b""
            while (piece := self._run(lambda: _next(pieces))) is not None:
                *events, pending = (pending + piece).split(b"\n\n")
                for event in events:
                    if text := _text_of(event):
                        yield text
        finally:
            self._run(pieces.aclose)

    def embed(self, texts: str | Sequence[str]) -> list[list[float]]:
        """One vector for each text."""
        inputs = [texts] if isinstance(texts, str) else list(texts)
        answer = self._whole("/v1/embeddings", {"model": self._name, "input": inputs})
        return [entry["embedding"] for entry in answer["data"]]

    def _asked(self, prompt: Prompt, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        body = {"max_tokens": TOKENS_DEFAULT, **options, "model": self._name}
        if isinstance(prompt, str) and not self._chats:
            return "/v1/completions", {**body, "prompt": prompt}
        conversation = isinstance(prompt, str)
        messages = [{"role": "user", "content": prompt}] if conversation else list(prompt)
        return "/v1/chat/completions", {**body, "messages": messages}

    def _whole(self, path: str, body: Mapping[str, Any]) -> Any:
        response = self._run(lambda: self._call(path, body))
        assert isinstance(response.body, bytes)  # only a stream has pieces
        return orjson.loads(response.body)

    async def _call(self, path: str, body: Mapping[str, Any]) -> Response:
        try:
            payload = orjson.dumps(body)
        except TypeError as error:
            raise BadRequest(
                f"Expected what JSON can say for the model, found: {error}."
            ) from error
        return await self._handler(Request("POST", path, "", _JSON, payload))

    def _run(self, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        loop = self._loop
        if loop is None:
            raise FunctionError(
                "Expected context.model to be called by handle, found a call before it.",
                "Call it when a request comes.",
            )
        if _running_loop() is loop:
            raise FunctionError(
                "Expected context.model to be called in a thread, found the event loop.",
                "Write `def handle`, or `await asyncio.to_thread(context.model.generate, …)`.",
            )
        future = asyncio.run_coroutine_threadsafe(work(), loop)
        try:
            return future.result(ANSWER_SECONDS_MAXIMUM)
        except TimeoutError as error:
            future.cancel()
            raise DeadlineExceeded(
                f"The model gave no answer within {ANSWER_SECONDS_MAXIMUM:g} s.",
                "Ask for fewer tokens.",
            ) from error


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


async def _next(pieces: AsyncGenerator[bytes, None]) -> bytes | None:
    return await anext(pieces, None)


def _text_of(event: bytes) -> str:
    """The text that an event of a stream adds; FunctionError for one that ends it early."""
    data = event.removeprefix(b"data:").strip()
    if not event.startswith(b"data:") or data == b"[DONE]":
        return ""
    fields = orjson.loads(data)
    if "error" in fields:
        raise FunctionError(f"The model's stream ended with: {fields['error'].get('message')}")
    choices = fields.get("choices") or [{}]
    return str(choices[0].get("delta", {}).get("content") or choices[0].get("text") or "")
