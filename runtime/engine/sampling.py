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

from stoker.runtime.engine.protocol import SamplingParams, TokenLogprobs

_SEED_MASK = 2**64 - 1
# JSON has no infinity.
LOGPROB_MINIMUM = -9999.0


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


def penalized(logits: torch.Tensor, params: SamplingParams, answer: Sequence[int]) -> torch.Tensor:
    """Logits [vocabulary_size] with the request's biases, less its penalties for what `answer` has.

    `answer` are the tokens generated so far; the prompt's do not count.
    """
    penalizes = bool(answer) and (params.presence_penalty or params.frequency_penalty)
    if not penalizes and not params.logit_bias:
        return logits
    scores = logits.float().clone()
    # A tokenizer may have more tokens than its model has scores.
    biases = [(token, bias) for token, bias in params.logit_bias if token < scores.shape[-1]]
    if biases:
        tokens, values = zip(*biases, strict=True)
        scores[list(tokens)] += torch.tensor(values, device=scores.device)
    if penalizes:
        seen, counts = np.unique(np.asarray(answer), return_counts=True)
        loss = params.presence_penalty + params.frequency_penalty * counts
        scores[torch.from_numpy(seen)] -= torch.from_numpy(loss).to(scores)
    return scores


def logprobs_of(logits: torch.Tensor, chosen: int, top_count: int) -> TokenLogprobs:
    """What the model itself says of a choice, before biases, penalties and temperature."""
    logprobs = logits.float().log_softmax(dim=-1).clamp(min=LOGPROB_MINIMUM)
    values, tokens = logprobs.topk(min(top_count, logprobs.shape[-1]))
    top = tuple(zip(tokens.tolist(), values.tolist(), strict=True))
    return TokenLogprobs(float(logprobs[chosen]), top)


def _keep_top_p(scores: torch.Tensor, top_p: float) -> torch.Tensor:
    ordered, indices = torch.sort(scores, descending=True)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    dropped = before >= top_p
    dropped[0] = False
    return scores.masked_fill(dropped[indices.argsort()], -torch.inf)


class Sampler:
    """How one request chooses tokens; `taken` gives what was noted of a choice, once.

    Used in the engine's thread, but for `taken`: each note is left by the one and fetched by the
    other.
    """

    def __init__(self, params: SamplingParams, prompt_tokens: int) -> None:
        self._params = params
        self._prompt_tokens = prompt_tokens
        self._noted: dict[int, TokenLogprobs] = {}
        self.is_plain = params.is_plain

    def __deepcopy__(self, _memo: Any) -> Sampler:
        # The engine copies a request that it sets aside; its notes are still fetched here.
        return self

    def choose(self, row: torch.Tensor, prompt: Sequence[int], generated: Sequence[int]) -> None:
        """Make of a row of logits scores whose argmax is the next token, in place.

        Of what a request had generated when it was set aside, the engine makes prompt.
        """
        params, position = self._params, len(prompt) + len(generated)
        logits = None if params.top_logprobs is None else row.clone()
        counts = params.presence_penalty or params.frequency_penalty
        answer = [*prompt[self._prompt_tokens :], *generated] if counts else []
        scores = perturb(penalized(row, params, answer), params, position)
        if scores is not row:
            row.copy_(scores)
        if logits is not None and params.top_logprobs is not None:
            self._noted[position] = logprobs_of(logits, int(row.argmax()), params.top_logprobs)

    def taken(self, position: int) -> TokenLogprobs | None:
        return self._noted.pop(position, None)


class SamplingProcessor(ContinuousBatchingLogitsProcessor):  # type: ignore[misc]
    """Applies each request's own sampling to its row of the batch.

    The engine asks for the batch's arguments right before the forward pass whose logits it then
    hands over, both on its one thread: the rows are kept in between as they are, because
    parameters of a request do not fit the engine's one int32 per row.
    """

    supported_kwargs: dict[str, type] = {"sampling": Sampler}
    ignored_kwargs: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._rows: list[Any] = []

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: Sequence[Any]) -> torch.Tensor:
        self._rows = [request.state for request in requests_with_new_token]
        return torch.zeros(len(self._rows), dtype=torch.int32)

    def __call__(self, scores: torch.Tensor, _tensor_arg: torch.Tensor) -> torch.Tensor:
        for row, state in enumerate(self._rows):
            sampler: Sampler = state.logit_processor_kwargs["sampling"]
            if sampler.is_plain:
                continue
            sampler.choose(scores[row], state.initial_tokens, state.generated_tokens)
        return scores
