"""A chat model of plain transformers, loaded and streamed as its documentation says."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation.streamers import BaseStreamer


class Chat:
    def __init__(self, folder: str) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.bfloat16, local_files_only=True
        )

    def stream(self, messages: list[dict[str, str]], tokens: int) -> Iterator[str]:
        """The likeliest answer, token by token."""
        inputs = self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        streamer = _Tokens()
        settings = {**inputs, "max_new_tokens": tokens, "do_sample": False, "streamer": streamer}
        thread = threading.Thread(target=self._model.generate, kwargs=settings)
        thread.start()
        while (token := streamer.fresh.get()) is not None:
            if text := self._tokenizer.decode(token, skip_special_tokens=True):
                yield text
        thread.join()


class _Tokens(BaseStreamer):
    """Each token at once: transformers' own streamer of text keeps the last word back."""

    def __init__(self) -> None:
        self.fresh: queue.Queue[list[int] | None] = queue.Queue()
        self._seen_prompt = False

    def put(self, value: torch.Tensor) -> None:
        if self._seen_prompt:
            self.fresh.put(value.reshape(-1).tolist())
        self._seen_prompt = True

    def end(self) -> None:
        self.fresh.put(None)
