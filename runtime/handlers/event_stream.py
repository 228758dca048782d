"""An answer as an event stream, with the lines that let it go on elsewhere."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from stoker.placement.errors import StokerError
from stoker.placement.openai_requests import GenerationOptions
from stoker.placement.resumable import USAGE_LINE, StreamLog, answer_line, begin_line
from stoker.runtime.handlers import openai_answers
from stoker.runtime.handlers.generation import Generation, Piece, side_by_side
from stoker.runtime.handlers.http import Response
from stoker.runtime.handlers.openai_answers import Answer, Usage

_EVENT_STREAM = (("content-type", "text/event-stream"), ("cache-control", "no-cache"))
Pieces = AsyncGenerator[tuple[int, Piece | None], None]


def usage_of(generations: Sequence[Generation]) -> Usage:
    """A prompt counts once, however many answers it has."""
    return Usage(
        sum(g.prompt_tokens for g in generations if g.choice == 0),
        sum(g.completion_tokens for g in generations),
    )


async def stream(
    answer: Answer,
    generations: Sequence[Generation],
    options: GenerationOptions,
    log: StreamLog | None,
) -> Response:
    """Waits for the first token, so that an error before it is still an HTTP status.

    With a `log` each event has its line before it, and what the log has is not said again.
    """
    events = _Events(answer, generations, options, log)
    pieces = side_by_side(generations)
    try:
        first = await anext(pieces)
    except BaseException:
        await pieces.aclose()
        raise
    return Response(200, _EVENT_STREAM, events.run(first, pieces), generations[first[0]].prefill)


class _Events:
    def __init__(
        self,
        answer: Answer,
        generations: Sequence[Generation],
        options: GenerationOptions,
        log: StreamLog | None,
    ) -> None:
        self._answer = answer
        self._generations = generations
        self._options = options
        self._log = log
        self._offsets = [generation.told_characters for generation in generations]
        self._untold: list[list[int]] = [[] for _ in generations]

    async def run(self, first: tuple[int, Piece | None], pieces: Pieces) -> AsyncGenerator[bytes]:
        async with aclosing(pieces):
            if head := self._head() + self._event(*first):
                yield head
            try:
                async for index, piece in pieces:
                    if chunk := self._event(index, piece):
                        yield chunk
            except StokerError as error:
                yield openai_answers.error_event(error)
                return
            if self._options.include_usage and not (self._log and self._log.usage):
                line = USAGE_LINE if self._log else b""
                yield line + self._answer.usage_chunk(usage_of(self._generations))
            yield openai_answers.DONE

    def _head(self) -> bytes:
        """Whose answer it is, and the roles."""
        log, answer = self._log, self._answer
        head = b""
        if log is not None and not log.begun:
            head = begin_line(answer.answer_id, answer.created, self._options.seed)
        if answer.kind == "chat":
            for index in range(len(self._generations)):
                if log is None or log.of(index) is None:
                    head += self._line(index) + answer.role_chunk(index)
        return head

    def _event(self, index: int, piece: Piece | None) -> bytes:
        if piece is None:
            told = self._log.of(index) if self._log else None
            if told is not None and told.ended:
                return b""
            reason = self._generations[index].finish_reason
            return self._line(index, "end") + self._answer.last_chunk(index, reason)
        self._untold[index] += piece.tokens
        if not piece.text and not piece.scores:
            return b""
        offset = self._offsets[index]
        self._offsets[index] += len(piece.text)
        word = self._generations[index].finish_reason if piece.last else ""
        return self._line(index, word) + self._answer.text_chunk(index, piece, offset)

    def _line(self, index: int, word: str = "") -> bytes:
        if self._log is None:
            return b""
        tokens, self._untold[index] = self._untold[index], []
        return answer_line(index, tokens, word)
