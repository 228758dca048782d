"""What a worker and a gateway say to each other of a stream that may go on elsewhere.

    : stoker begin chatcmpl-1 1790000000 42     whose answer: its id, when it began, its seed
    data: {"choices": [...]}
                                                an empty line ends each event
    : stoker 0 311 97                           the tokens that answer 0 has more than before,
    data: {"choices": [...]}                    up to and with the ones that this event tells
    : stoker 0 stop                             all of its text is told, and why it ended
    : stoker 0 end                              its last event
    : stoker usage                              the event with the usage

The gateway keeps these lines and passes on the rest. With them, any instance of the same function
and checkpoint goes on where the stream broke: no token is lost or told twice, for an event and its
line are passed on together or not at all.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from stoker.placement.errors import BadRequest

RESUMABLE_HEADER = "x-stoker-resumable"
RESUME_HEADER = "x-stoker-resume"
LINE = b": stoker "
CHOICES_MAXIMUM = 4096
_REASONS = ("stop", "length")


@dataclass(slots=True)
class Told:
    """What the client was told of one answer: its tokens, and why it ended if that is all."""

    tokens: list[int] = field(default_factory=list)
    reason: str = ""
    ended: bool = False


@dataclass(slots=True)
class StreamLog:
    """All that the client was told of one stream, in `told` by the number of the answer.

    An instance that `prepares` computes what the next token needs, and answers nothing.
    """

    answer_id: str = ""
    created: int = 0
    seed: int = 0
    told: dict[int, Told] = field(default_factory=dict)
    usage: bool = False
    prepares: bool = False

    @property
    def begun(self) -> bool:
        return bool(self.answer_id)

    def note(self, line: bytes) -> None:
        """Take in a line, without its LINE. ValueError for one that no worker writes."""
        words = line.decode("ascii").split()
        if words[:1] == ["begin"]:
            _, self.answer_id, created, seed = words
            self.created, self.seed = int(created), int(seed)
        elif words == ["usage"]:
            self.usage = True
        elif words:
            self._note_answer(int(words[0]), words[1:])

    def _note_answer(self, choice: int, words: Sequence[str]) -> None:
        told = self.told.get(choice)
        if told is None:
            if len(self.told) >= CHOICES_MAXIMUM:
                raise ValueError(f"more than {CHOICES_MAXIMUM} answers")
            told = self.told[choice] = Told()
        for word in words:
            if word == "end":
                told.ended = True
            elif word in _REASONS:
                told.reason = word
            else:
                told.tokens.append(int(word))

    def of(self, choice: int) -> Told | None:
        return self.told.get(choice)

    def envelope(self, body: bytes, *, prepares: bool = False) -> bytes:
        """The body of a request to go on with the answer to `body`, or to prepare for it."""
        return orjson.dumps(
            {
                "answer_id": self.answer_id,
                "created": self.created,
                "seed": str(self.seed),
                "usage": self.usage,
                "prepares": prepares,
                "told": [[k, t.tokens, t.reason, t.ended] for k, t in self.told.items()],
                "body": base64.b64encode(body).decode(),
            }
        )


def begin_line(answer_id: str, created: int, seed: int) -> bytes:
    return b"%sbegin %s %d %d\n" % (LINE, answer_id.encode(), created, seed)


def answer_line(choice: int, tokens: Sequence[int], word: str = "") -> bytes:
    """`word` is why the answer ended, or `end`."""
    words = [str(choice), *map(str, tokens), *([word] if word else [])]
    return LINE + " ".join(words).encode() + b"\n"


USAGE_LINE = LINE + b"usage\n"


def opened(envelope: bytes) -> tuple[StreamLog, bytes]:
    """The log in `envelope`, and the body of the request; BadRequest."""
    try:
        fields: dict[str, Any] = orjson.loads(envelope)
        log = StreamLog(
            str(fields["answer_id"]),
            int(fields["created"]),
            int(fields["seed"]),
            {
                int(choice): Told([int(token) for token in tokens], str(reason), bool(ended))
                for choice, tokens, reason, ended in fields["told"]
            },
            bool(fields["usage"]),
            bool(fields["prepares"]),
        )
        return log, base64.b64decode(fields["body"], validate=True)
    except (orjson.JSONDecodeError, binascii.Error, KeyError, TypeError, ValueError) as error:
        raise BadRequest(
            f"Expected what a stream has told, found {error!r:.200}.",
            "Only a gateway goes on with a stream.",
        ) from error
