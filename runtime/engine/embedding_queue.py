"""Texts of many requests in one forward pass: what comes while one runs goes into the next.

requests   a ─┐     b c d ─┐
forward       [a]          [b c d]      nobody waits for company, only for the pass that runs
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

PASS_TOKENS_MAXIMUM = 8_192
"""Tokens taken at once; a request with more goes on behind those who came meanwhile."""


class Embeds(Protocol):
    """`check` raises ContextOverflow for a text too long; `embed` blocks."""

    def check(self, texts: Sequence[Sequence[int]]) -> None: ...

    def embed(self, texts: Sequence[Sequence[int]]) -> list[list[float]]: ...


@dataclass(eq=False)
class _Asked:
    texts: Sequence[Sequence[int]]
    answer: asyncio.Future[list[list[float]]]
    vectors: list[list[float]] = field(default_factory=list)
    taken: int = 0


class EmbeddingQueue:
    """Used in one event loop; the forward passes run one after the other in a thread."""

    def __init__(self, embedder: Embeds) -> None:
        self._embedder = embedder
        self._asked: deque[_Asked] = deque()
        self._running: asyncio.Task[None] | None = None

    async def embed(self, texts: Sequence[Sequence[int]]) -> list[list[float]]:
        """One vector per text, in the order given; ContextOverflow for a text too long."""
        self._embedder.check(texts)
        asked = _Asked(texts, asyncio.get_running_loop().create_future())
        self._asked.append(asked)
        if self._running is None:
            self._running = asyncio.ensure_future(self._run())
        return await asked.answer

    async def _run(self) -> None:
        try:
            while parts := self._take():
                await self._compute(parts)
                self._asked.extend(asked for asked, _ in parts if asked.taken < len(asked.texts))
        finally:
            self._running = None

    def _take(self) -> list[tuple[_Asked, Sequence[Sequence[int]]]]:
        """Texts for the next pass, first come first served; whoever has left is passed over."""
        parts: list[tuple[_Asked, Sequence[Sequence[int]]]] = []
        tokens = 0
        while self._asked and tokens < PASS_TOKENS_MAXIMUM:
            asked = self._asked.popleft()
            if asked.answer.done():
                continue
            begin = asked.taken
            while asked.taken < len(asked.texts) and tokens < PASS_TOKENS_MAXIMUM:
                tokens += len(asked.texts[asked.taken])
                asked.taken += 1
            parts.append((asked, asked.texts[begin : asked.taken]))
        return parts

    async def _compute(self, parts: Sequence[tuple[_Asked, Sequence[Sequence[int]]]]) -> None:
        texts = [text for _, chosen in parts for text in chosen]
        try:
            vectors = await asyncio.to_thread(self._embedder.embed, texts)
        except Exception as error:  # noqa: BLE001 (whoever asked gets it)
            for asked, _ in parts:
                if not asked.answer.done():
                    asked.answer.set_exception(error)
            return
        for asked, chosen in parts:
            asked.vectors += vectors[: len(chosen)]
            vectors = vectors[len(chosen) :]
            if len(asked.vectors) == len(asked.texts) and not asked.answer.done():
                asked.answer.set_result(asked.vectors)
