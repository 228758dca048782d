"""Embeddings by an encoder: one forward pass per batch, pooled to one vector per text.

Pooling and normalisation follow the sentence-transformers files of the checkpoint
(`modules.json` and the pooling module's config.json); without them, the mean of the tokens,
normalised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import orjson
import torch
from transformers.modeling_utils import PreTrainedModel

from stoker.placement.errors import ContextOverflow, StartFailed
from stoker.runtime.engine.tokenizer import read_json

BATCH_TOKENS_MAXIMUM = 8_192
"""Tokens of one forward pass, padding included."""
LIKE_TOKENS = 16
"""Texts of up to so many tokens go together, longer ones with those of up to twice their length."""


Mode = Literal["mean", "cls", "lasttoken"]

_MODES: dict[str, Mode] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True, slots=True)
class Pooling:
    mode: Mode = "mean"
    normalize: bool = True


def read_pooling(files_dir: Path) -> Pooling:
    """What the checkpoint's modules.json says; StartFailed for a pooling we do not have."""
    path = files_dir / "modules.json"
    if not path.is_file():
        return Pooling()
    modules = orjson.loads(path.read_bytes())
    kinds = {str(m["type"]).rpartition(".")[2]: str(m["path"]) for m in modules}
    settings = read_json(files_dir / kinds.get("Pooling", "1_Pooling") / "config.json")
    modes = [name for name, value in settings.items() if name.startswith("pooling_mode_") and value]
    normalize = "Normalize" in kinds
    if not modes:
        return Pooling(normalize=normalize)
    if len(modes) == 1 and modes[0] in _MODES:
        return Pooling(_MODES[modes[0]], normalize)
    raise StartFailed(
        f"Expected mean, cls or lasttoken pooling in the checkpoint, found {', '.join(modes)}.",
        "Use a checkpoint with one of these.",
    )


class Embedder:
    """Embeds token lists of at most `context_tokens` each."""

    def __init__(self, model: PreTrainedModel, pooling: Pooling, context_tokens: int) -> None:
        self.context_tokens = context_tokens
        self._model = model
        self._pooling = pooling

    def check(self, texts: Sequence[Sequence[int]]) -> None:
        """ContextOverflow for a text that is too long."""
        for tokens in texts:
            if len(tokens) > self.context_tokens:
                raise ContextOverflow(
                    f"Expected texts of at most {self.context_tokens} tokens, "
                    f"found one of {len(tokens)} tokens.",
                    "Split the text.",
                    prompt_tokens=len(tokens),
                    context_tokens=self.context_tokens,
                )

    def embed(self, texts: Sequence[Sequence[int]]) -> list[list[float]]:
        """One vector per text, in the order given; ContextOverflow for a text too long."""
        self.check(texts)
        vectors: dict[int, list[float]] = {}
        for batch in _batches(texts):
            rows = self._forward([texts[i] for i in batch])
            vectors.update(zip(batch, rows, strict=True))
        return [vectors[i] for i in range(len(texts))]

    @torch.inference_mode()
    def _forward(self, texts: Sequence[Sequence[int]]) -> list[list[float]]:
        longest = max(len(tokens) for tokens in texts)
        ids = torch.zeros(len(texts), longest, dtype=torch.long)
        mask = torch.zeros(len(texts), longest, dtype=torch.long)
        for row, tokens in enumerate(texts):
            ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
            mask[row, : len(tokens)] = 1
        hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        pooled = _pool(hidden, mask, self._pooling.mode)
        if self._pooling.normalize:
            pooled = torch.nn.functional.normalize(pooled, dim=-1)
        rows: list[list[float]] = pooled.tolist()
        return rows


def _pool(hidden: torch.Tensor, mask: torch.Tensor, mode: str) -> torch.Tensor:
    """Hidden states [batch, tokens, width] to [batch, width]."""
    if mode == "cls":
        return hidden[:, 0]
    if mode == "lasttoken":
        last = mask.sum(dim=1).clamp(min=1) - 1
        return hidden[torch.arange(hidden.shape[0]), last]
    weights = mask.unsqueeze(-1).float()
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)


def _batches(texts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Indices of texts that go together: of like length, and bounded with their padding."""
    batches: list[list[int]] = []
    for index in sorted(range(len(texts)), key=lambda i: len(texts[i])):
        longest = max(1, len(texts[index]))
        # The others are padded to the longest, and what is padded costs as much as text does.
        alike = bool(batches) and longest <= max(LIKE_TOKENS, 2 * len(texts[batches[-1][0]]))
        if alike and (len(batches[-1]) + 1) * longest <= BATCH_TOKENS_MAXIMUM:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
