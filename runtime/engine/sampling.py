"""Counter-based sampling as a logits processor for transformers' continuous batching.

A token is drawn by the Gumbel-max trick: argmax(logits / temperature + noise) is a sample of the
softmax. The noise comes from the Philox counter generator, keyed by the request's seed, at the
counter of the token's absolute position. To the engine it is a plain argmax, batch neighbours
have no part in it, and a continuation elsewhere draws the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
)

from stoker.runtime.engine.protocol import SamplingParams

_SEED_MASK = 2**64 - 1


def gumbel_noise(seed: int, position: int, vocabulary_size: int) -> torch.Tensor:
    """Standard Gumbel noise, float32 of shape [vocabulary_size], for one token."""
    # The position is the second word of the counter: the first one counts within the vector.
    generator = np.random.Philox(key=seed & _SEED_MASK, counter=[0, position, 0, 0])
    mantissas = generator.random_raw(vocabulary_size) >> np.uint64(11)
    uniform = (mantissas.astype(np.float64) + 0.5) * 2.0**-53
    return torch.from_numpy((-np.log(-np.log(uniform))).astype(np.float32))


def perturb(logits: torch.Tensor, params: SamplingParams, position: int) -> torch.Tensor:
    """Scores of shape [vocabulary_size] whose argmax is the token drawn at `position`."""
    if params.temperature == 0.0:
        return logits
    scores = logits.float() / params.temperature
    if params.top_p < 1.0:
        scores = _keep_top_p(scores, params.top_p)
    return scores + gumbel_noise(params.seed, position, scores.shape[-1]).to(scores.device)


def _keep_top_p(scores: torch.Tensor, top_p: float) -> torch.Tensor:
    ordered, indices = torch.sort(scores, descending=True)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    dropped = before >= top_p
    dropped[0] = False
    return scores.masked_fill(dropped[indices.argsort()], -torch.inf)


class SamplingProcessor(ContinuousBatchingLogitsProcessor):  # type: ignore[misc]
    """Applies each request's own sampling to its row of the batch.

    The engine asks for the batch's arguments right before the forward pass whose logits it then
    hands over, both on its one thread: the rows are kept in between as they are, because
    parameters of a request do not fit the engine's one int32 per row.
    """

    supported_kwargs: dict[str, type] = {"sampling": SamplingParams}
    ignored_kwargs: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._rows: list[tuple[SamplingParams, int]] = []

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: Sequence[Any]) -> torch.Tensor:
        self._rows = [
            (
                request.state.logit_processor_kwargs["sampling"],
                len(request.state.initial_tokens) + len(request.state.generated_tokens),
            )
            for request in requests_with_new_token
        ]
        return torch.zeros(len(self._rows), dtype=torch.int32)

    def __call__(self, scores: torch.Tensor, _tensor_arg: torch.Tensor) -> torch.Tensor:
        for row, (params, position) in enumerate(self._rows):
            if params.temperature > 0.0:
                scores[row] = perturb(scores[row], params, position)
        return scores
