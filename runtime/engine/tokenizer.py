"""Text to tokens and back, and chat messages to a prompt.

`tokenizer.json` is read by the tokenizers library itself: wrapping it in transformers' tokenizer
class doubles the time it takes (82 ms for a vocabulary of 49,000), for nothing needed here.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import orjson
from tokenizers import Tokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from stoker.placement.errors import BadRequest, StartFailed

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


def _byte_alphabet() -> dict[str, int]:
    """How byte-level tokenizers write a byte: printable ones as themselves, others from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTES = _byte_alphabet()
_BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")


class TextCodec:
    """A tokenizer with its chat template (None: the model cannot chat)."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        chat_template: str | None = None,
        special_tokens: Mapping[str, str] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._chat_template = chat_template
        self._special_tokens = dict(special_tokens or {})
        # Such a tokenizer has a token for the space alone, written so.
        self._byte_level = tokenizer.token_to_id("\u0120") is not None

    @property
    def can_chat(self) -> bool:
        return self._chat_template is not None

    @property
    def vocabulary_size(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    @property
    def end_token(self) -> int | None:
        """The tokenizer's own end-of-sequence token."""
        token = self._special_tokens.get("eos_token")
        number = None if token is None else self._tokenizer.token_to_id(token)
        return None if number is None else int(number)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`, without special tokens."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def token_bytes(self, token: int) -> bytes:
        """What one token stands for, special tokens too; it may be a part of a character."""
        name = str(self._tokenizer.id_to_token(token) or "")
        if self._byte_level and all(character in _BYTES for character in name):
            return bytes(_BYTES[character] for character in name)
        if _BYTE_TOKEN.fullmatch(name):
            return bytes.fromhex(name[3:5])
        return name.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode()

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The prompt for the assistant's next message; BadRequest if the template refuses."""
        if self._chat_template is None:
            raise BadRequest(
                "Expected a model with a chat template, found none in its checkpoint.",
                "Use /v1/completions, or add a chat_template.jinja to the checkpoint.",
            )
        try:
            rendered, _ = render_jinja_template(
                conversations=[list(messages)],
                chat_template=self._chat_template,
                add_generation_prompt=True,
                **self._special_tokens,
            )
        except jinja2.TemplateError as error:
            raise BadRequest(
                f"Expected messages that the model's chat template accepts, found: {error}.",
                "Send the roles in the order that this model was trained for.",
            ) from error
        return self.encode(rendered[0], add_special_tokens=False)

    def rehearse(self) -> None:
        """Do once what is slow the first time: the chat template is compiled."""
        if self._chat_template is not None:
            with contextlib.suppress(BadRequest):  # a template may want more than one message
                self.encode_chat([{"role": "user", "content": "a"}])


def load_codec(files_dir: Path) -> TextCodec:
    """The codec of the checkpoint whose small files lie in `files_dir`; StartFailed if none."""
    path = files_dir / "tokenizer.json"
    if not path.is_file():
        raise StartFailed(
            "Expected a tokenizer.json in the checkpoint, found none.",
            "Save the tokenizer with save_pretrained from a fast tokenizer.",
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise StartFailed(
            f"Expected a readable tokenizer.json in the checkpoint, found: {error}.",
            "Save the tokenizer again with save_pretrained.",
        ) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    settings = read_json(files_dir / "tokenizer_config.json")
    settings = read_json(files_dir / "special_tokens_map.json") | settings
    special = {name: _token_text(settings[name]) for name in _SPECIAL_TOKENS if settings.get(name)}
    return TextCodec(tokenizer, _chat_template(files_dir, settings), special)


def read_json(path: Path) -> dict[str, Any]:
    """The object in `path`, empty when there is no such file; StartFailed when it is not one."""
    try:
        value = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except orjson.JSONDecodeError as error:
        raise StartFailed(
            f"Expected JSON in the checkpoint's {path.name}, found: {error}.",
            "Correct the file in the checkpoint.",
        ) from error
    if not isinstance(value, dict):
        raise StartFailed(
            f"Expected an object in the checkpoint's {path.name}, found {type(value).__name__}.",
            "Correct the file in the checkpoint.",
        )
    return value


def _token_text(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def _chat_template(files_dir: Path, settings: Mapping[str, Any]) -> str | None:
    path = files_dir / "chat_template.jinja"
    if path.is_file():
        return path.read_text()
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {str(t["name"]): str(t["template"]) for t in template}
        return named.get("default")
    return template if isinstance(template, str) else None


def rehearse() -> None:
    """Renders one template, so that a forked child finds jinja2 warm."""
    render_jinja_template(
        conversations=[[{"role": "user", "content": ""}]], chat_template="{{ 1 }}"
    )
