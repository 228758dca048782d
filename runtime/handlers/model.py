"""The handlers of model functions: the OpenAI routes, and plain text for everybody else.

POST /v1/chat/completions, /v1/completions, /v1/embeddings   as OpenAI
POST any other path, JSON with messages, prompt or input     as the matching route
POST any other path, anything else                           UTF-8 text in, text out
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import orjson

from stoker.placement.errors import BadRequest
from stoker.placement.openai_requests import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    GenerationOptions,
    Prompt,
    chat_request,
    completion_request,
    embedding_request,
    parse_body,
    wrong_dimensions,
)
from stoker.placement.records import Task
from stoker.placement.resumable import RESUMABLE_HEADER, RESUME_HEADER, StreamLog, opened
from stoker.runtime.engine.protocol import Engine
from stoker.runtime.handlers import openai_answers
from stoker.runtime.handlers.event_stream import stream, usage_of
from stoker.runtime.handlers.generation import Codec, Generation
from stoker.runtime.handlers.http import Request, Response, json_response
from stoker.runtime.handlers.openai_answers import Answer, Kind

_ROUTES = {
    "/v1/chat/completions": "messages",
    "/v1/completions": "prompt",
    "/v1/embeddings": "input",
}
_PLAIN_TEXT = (("content-type", "text/plain; charset=utf-8"),)


class Embeds(Protocol):
    """What the handlers need of an embedder."""

    async def embed(self, texts: Sequence[Sequence[int]]) -> list[list[float]]: ...


class GenerationHandler:
    """Serves chat and completions with one engine."""

    def __init__(self, engine: Engine, codec: Codec, task: Task) -> None:
        self._engine = engine
        self._codec = codec
        self._chats = task == "chat"

    async def __call__(self, request: Request) -> Response:
        log: StreamLog | None = None
        if request.header(RESUME_HEADER):
            log, original = opened(request.body)
            request = replace(request, body=original)
        elif request.header(RESUMABLE_HEADER):
            log = StreamLog()
        route, body = _route(request)
        if route == "messages":
            return await self._chat(chat_request(body), log)
        if route == "prompt":
            return await self._complete(completion_request(body), log)
        if route == "input":
            raise _not_served("embeddings", "a text generation model", "stoker/task: embed")
        return await self._text(body["text"])

    async def _chat(self, request: ChatRequest, log: StreamLog | None) -> Response:
        tokens = self._codec.encode_chat(request.messages)
        options = _with_seed(request.options, log)
        generations = self._generations(tokens, options, log)
        return await _answer("chat", request.model, generations, options, log)

    async def _complete(self, request: CompletionRequest, log: StreamLog | None) -> Response:
        options = _with_seed(request.options, log)
        generations: list[Generation] = []
        for prompt in request.prompts:
            tokens = self._tokens(prompt)
            echo = ""
            if request.echo:
                echo = prompt if isinstance(prompt, str) else self._codec.decode(prompt)
            generations += self._generations(tokens, options, log, echo, len(generations))
        return await _answer("completion", request.model, generations, options, log)

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
        return Response(200, _PLAIN_TEXT, answer.text.encode(), generation.prefill)

    def _generations(
        self,
        tokens: Sequence[int],
        options: GenerationOptions,
        log: StreamLog | None,
        echo: str = "",
        first: int = 0,
    ) -> list[Generation]:
        """The answers to one prompt; `first` is the number of the first one in the stream."""
        largest = max((token for token, _ in options.logit_bias), default=0)
        if largest >= self._codec.vocabulary_size:
            raise BadRequest(
                f"Expected tokens below {self._codec.vocabulary_size} in logit_bias, "
                f"found {largest}.",
                "Send tokens of this model's vocabulary.",
                param="logit_bias",
            )
        return [
            Generation(
                self._engine,
                self._codec,
                tokens,
                options,
                choice=choice,
                echo=echo,
                told=log.of(first + choice) if log else None,
            )
            for choice in range(options.choice_count)
        ]

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
        if request.dimensions not in (None, len(vectors[0])):
            raise wrong_dimensions(len(vectors[0]), request.dimensions or 0)
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


def _with_seed(options: GenerationOptions, log: StreamLog | None) -> GenerationOptions:
    """What goes on elsewhere draws with the seed that it began with."""
    return replace(options, seed=log.seed) if log is not None and log.begun else options


async def _answer(
    kind: Kind,
    model: str,
    generations: Sequence[Generation],
    options: GenerationOptions,
    log: StreamLog | None,
) -> Response:
    if log is not None and log.prepares:
        await asyncio.gather(*(generation.prepare() for generation in generations))
        return Response(204)
    answer = Answer.new(kind, model, scored=options.top_logprobs is not None)
    if not options.stream:
        return await _whole(answer, generations)
    if log is not None and log.begun:
        answer = replace(answer, answer_id=log.answer_id, created=log.created)
    return await stream(answer, generations, options, log)


async def _whole(answer: Answer, generations: Sequence[Generation]) -> Response:
    tasks = [asyncio.ensure_future(generation.whole()) for generation in generations]
    try:
        pieces = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    answers = [(piece, g.finish_reason) for piece, g in zip(pieces, generations, strict=True)]
    return Response(
        200,
        (("content-type", "application/json"),),
        answer.whole(answers, usage_of(generations)),
        generations[0].prefill,
    )
