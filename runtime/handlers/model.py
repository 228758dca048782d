"""The handlers of model functions: the OpenAI routes, and plain text for everybody else.

POST /v1/chat/completions, /v1/completions, /v1/embeddings   as OpenAI
POST any other path, JSON with messages, prompt or input     as the matching route
POST any other path, anything else                           UTF-8 text in, text out
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Protocol

import orjson

from stoker.placement.errors import BadRequest, StokerError
from stoker.placement.records import Task
from stoker.runtime.engine.context import tokens_left
from stoker.runtime.engine.protocol import Engine, FinishReason, SamplingParams
from stoker.runtime.engine.stop import Detokenizer, StopMatcher
from stoker.runtime.handlers import openai_answers
from stoker.runtime.handlers.http import Request, Response, json_response
from stoker.runtime.handlers.openai_answers import Answer, Usage
from stoker.runtime.handlers.openai_types import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    GenerationOptions,
    Prompt,
    chat_request,
    completion_request,
    embedding_request,
    parse_body,
)

_ROUTES = {
    "/v1/chat/completions": "messages",
    "/v1/completions": "prompt",
    "/v1/embeddings": "input",
}
_EVENT_STREAM = (("content-type", "text/event-stream"), ("cache-control", "no-cache"))
_PLAIN_TEXT = (("content-type", "text/plain; charset=utf-8"),)


class Codec(Protocol):
    """What the handlers need of a tokenizer."""

    @property
    def can_chat(self) -> bool: ...
    @property
    def vocabulary_size(self) -> int: ...
    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...
    def decode(self, tokens: Sequence[int]) -> str: ...
    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]: ...


class Embeds(Protocol):
    """What the handlers need of an embedder."""

    async def embed(self, texts: Sequence[Sequence[int]]) -> list[list[float]]: ...


class Generation:
    """One running request: iterate `pieces` for its text; the rest is set as it goes."""

    def __init__(
        self, engine: Engine, codec: Codec, prompt: Sequence[int], options: GenerationOptions
    ) -> None:
        left = tokens_left(len(prompt), engine.context_tokens)
        self.prompt_tokens = len(prompt)
        self.completion_tokens = 0
        self.prefill: tuple[float, float] | None = None
        self.finish_reason: FinishReason = "length"
        self._prompt = prompt
        self._engine = engine
        self._detokenizer = Detokenizer(codec.decode)
        self._stop = StopMatcher(options.stop)
        self._params = SamplingParams(
            max_tokens=min(options.max_tokens or left, left),
            temperature=options.temperature,
            top_p=options.top_p,
            seed=options.seed,
        )

    @property
    def usage(self) -> Usage:
        return Usage(self.prompt_tokens, self.completion_tokens)

    async def pieces(self) -> AsyncGenerator[str, None]:
        """The text as it comes, one piece per token, possibly empty. Closing it cancels."""
        started = time.monotonic()
        stream = self._engine.submit(self._prompt, self._params)
        try:
            async for token in stream:
                if not self.completion_tokens:
                    self.prefill = (started, time.monotonic())
                self.completion_tokens += 1
                text, stopped = self._stop.push(self._detokenizer.push(token))
                yield text
                if stopped:
                    self.finish_reason = "stop"
                    return
            text, stopped = self._stop.push(self._detokenizer.flush())
            yield text if stopped else text + self._stop.flush()
            self.finish_reason = "stop" if stopped else stream.finish_reason or "stop"
        finally:
            stream.cancel()

    async def whole(self) -> str:
        async with aclosing(self.pieces()) as pieces:
            return "".join([piece async for piece in pieces])


class GenerationHandler:
    """Serves chat and completions with one engine."""

    def __init__(self, engine: Engine, codec: Codec, task: Task) -> None:
        self._engine = engine
        self._codec = codec
        self._chats = task == "chat"

    async def __call__(self, request: Request) -> Response:
        route, body = _route(request)
        if route == "messages":
            return await self._chat(chat_request(body))
        if route == "prompt":
            return await self._complete(completion_request(body))
        if route == "input":
            raise _not_served("embeddings", "a text generation model", "stoker/task: embed")
        return await self._text(body["text"])

    async def _chat(self, request: ChatRequest) -> Response:
        tokens = self._codec.encode_chat(request.messages)
        generation = Generation(self._engine, self._codec, tokens, request.options)
        answer = Answer.new("chat", request.model)
        if request.options.stream:
            return await _stream(answer, generation, request.options.include_usage)
        return await _whole(answer, [generation])

    async def _complete(self, request: CompletionRequest) -> Response:
        options = request.options
        generations = [
            Generation(self._engine, self._codec, self._tokens(prompt), options)
            for prompt in request.prompts
        ]
        answer = Answer.new("completion", request.model)
        if options.stream:
            return await _stream(answer, generations[0], options.include_usage)
        return await _whole(answer, generations)

    async def _text(self, text: str) -> Response:
        """Plain text: a user's message to a chat model, a prompt to another."""
        name = "messages" if self._chats and self._codec.can_chat else "prompt"
        # It has no way to name parameters, so the answer is the likeliest one, always the same.
        plain = {"prompt": text, "max_tokens": 2**31, "temperature": 0}
        options = completion_request(plain).options
        if name == "messages":
            tokens = self._codec.encode_chat([{"role": "user", "content": text}])
        else:
            tokens = self._codec.encode(text)
        generation = Generation(self._engine, self._codec, tokens, options)
        answer = await generation.whole()
        return Response(200, _PLAIN_TEXT, answer.encode(), generation.prefill)

    def _tokens(self, prompt: Prompt) -> list[int]:
        return _encode(self._codec, prompt, "prompt")


class EmbeddingHandler:
    """Serves /v1/embeddings; plain text gives the vector as a JSON list."""

    def __init__(self, embedder: Embeds, codec: Codec) -> None:
        self._embedder = embedder
        self._codec = codec

    async def __call__(self, request: Request) -> Response:
        route, body = _route(request)
        if route in ("messages", "prompt"):
            raise _not_served("completions", "an embedding model", "stoker/task: chat")
        if route == "input":
            return await self._embed(embedding_request(body))
        vectors = await self._embedder.embed([self._codec.encode(body["text"])])
        return json_response(orjson.dumps(vectors[0]))

    async def _embed(self, request: EmbeddingRequest) -> Response:
        texts = [_encode(self._codec, text, "input") for text in request.inputs]
        started = time.monotonic()
        vectors = await self._embedder.embed(texts)
        count = sum(len(tokens) for tokens in texts)
        payload = openai_answers.embeddings(request.model, vectors, request.encoding, count)
        prefill = (started, time.monotonic())
        return Response(200, (("content-type", "application/json"),), payload, prefill)


def _route(request: Request) -> tuple[str, dict[str, Any]]:
    """The parameter that tells the route (`text`: none of them), and the body."""
    if request.method != "POST":
        raise BadRequest(
            f"Expected POST {request.path}, found {request.method}.", "Send the prompt by POST."
        )
    route = _ROUTES.get(request.path.rstrip("/"))
    if route is not None:
        return route, parse_body(request.body)
    if request.header("content-type").startswith("application/json"):
        body = parse_body(request.body)
        names = [name for name in _ROUTES.values() if name in body]
        if len(names) != 1:
            raise BadRequest(
                "Expected messages, prompt or input in the JSON body, found "
                f"{', '.join(names) or 'none of them'}.",
                "Send plain text, or a body as OpenAI's.",
            )
        return names[0], body
    try:
        text = request.body.decode()
    except UnicodeDecodeError as error:
        raise BadRequest(
            f"Expected UTF-8 text as the body, found: {error}.", "Send UTF-8."
        ) from error
    if not text.strip():
        raise BadRequest("Expected a prompt as the body, found none.", "Send some text.")
    return "text", {"text": text}


def _encode(codec: Codec, prompt: Prompt, name: str) -> list[int]:
    tokens = codec.encode(prompt) if isinstance(prompt, str) else list(prompt)
    largest = max(tokens, default=0)
    if not tokens or largest >= codec.vocabulary_size:
        found = f"token {largest}" if tokens else "an empty text"
        raise BadRequest(
            f"Expected at least one token below {codec.vocabulary_size} in {name}, found {found}.",
            "Send text of this model's vocabulary.",
            param=name,
        )
    return tokens


def _not_served(what: str, model: str, remedy: str) -> BadRequest:
    return BadRequest(
        f"Expected a function that serves {what}, found {model}.",
        f"Deploy a model for it with {remedy}.",
    )


async def _whole(answer: Answer, generations: Sequence[Generation]) -> Response:
    tasks = [asyncio.ensure_future(generation.whole()) for generation in generations]
    try:
        texts = [(await t, g.finish_reason) for t, g in zip(tasks, generations, strict=True)]
    finally:
        for task in tasks:
            task.cancel()
    usage = Usage(
        sum(g.prompt_tokens for g in generations), sum(g.completion_tokens for g in generations)
    )
    return Response(
        200,
        (("content-type", "application/json"),),
        answer.whole(texts, usage),
        generations[0].prefill,
    )


async def _stream(answer: Answer, generation: Generation, include_usage: bool) -> Response:
    """Waits for the first token, so that an error before it is still an HTTP status."""
    pieces = generation.pieces()
    try:
        first = await anext(pieces, "")
    except BaseException:
        await pieces.aclose()
        raise
    events = _events(answer, generation, first, pieces, include_usage)
    return Response(200, _EVENT_STREAM, events, generation.prefill)


async def _events(
    answer: Answer,
    generation: Generation,
    first: str,
    pieces: AsyncGenerator[str, None],
    include_usage: bool,
) -> AsyncGenerator[bytes, None]:
    async with aclosing(pieces):
        head = answer.role_chunk() if answer.kind == "chat" else b""
        if first:
            head += answer.text_chunk(first)
        if head:
            yield head
        try:
            async for piece in pieces:
                if piece:
                    yield answer.text_chunk(piece)
        except StokerError as error:
            yield openai_answers.error_event(error)
            return
        yield answer.last_chunk(generation.finish_reason)
        if include_usage:
            yield answer.usage_chunk(generation.usage)
        yield openai_answers.DONE
