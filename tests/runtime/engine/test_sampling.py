from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from stoker.runtime.engine.protocol import SamplingParams
from stoker.runtime.engine.sampling import (
    LOGPROB_MINIMUM,
    Sampler,
    gumbel_noise,
    logprobs_of,
    penalized,
    perturb,
)


def _draw(params: SamplingParams, logits: torch.Tensor, position: int) -> int:
    return int(perturb(logits.clone(), params, position).argmax())


def test_noise_depends_on_seed_and_position_alone() -> None:
    torch.testing.assert_close(gumbel_noise(7, 3, 100), gumbel_noise(7, 3, 100), rtol=0, atol=0)
    assert not torch.equal(gumbel_noise(7, 3, 100), gumbel_noise(7, 4, 100))
    assert not torch.equal(gumbel_noise(7, 3, 100), gumbel_noise(8, 3, 100))
    assert torch.equal(gumbel_noise(7, 3, 100)[:50], gumbel_noise(7, 3, 50))


def test_noise_is_the_same_on_every_machine_and_release() -> None:
    found = gumbel_noise(1234, 56, 3).tolist()

    torch.testing.assert_close(found, [-0.474608, -0.72624, -0.135604], atol=1e-5, rtol=0)


def test_temperature_zero_leaves_the_logits_alone() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0])

    assert torch.equal(perturb(logits, SamplingParams(1, temperature=0.0, seed=3), 9), logits)


def test_draws_follow_the_softmax_of_logits_over_temperature() -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0])
    params = SamplingParams(1, temperature=0.7, seed=11)

    draws = torch.tensor([_draw(params, logits, position) for position in range(4000)])

    found = torch.bincount(draws, minlength=4) / 4000
    torch.testing.assert_close(found, (logits / 0.7).softmax(0), atol=0.03, rtol=0)


def test_top_p_draws_only_from_the_smallest_set_that_reaches_it() -> None:
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    params = SamplingParams(1, temperature=1.0, top_p=0.6, seed=5)

    assert {_draw(params, logits, position) for position in range(300)} == {0, 1}


def test_a_tiny_top_p_is_greedy() -> None:
    logits = torch.tensor([0.1, 0.3, 0.2])
    params = SamplingParams(1, temperature=2.0, top_p=1e-9, seed=5)

    assert {_draw(params, logits, position) for position in range(50)} == {1}


def test_penalties_and_biases_change_the_scores_as_openai_says() -> None:
    logits = torch.tensor([1.0, 2.0, 3.0, 4.0])
    params = SamplingParams(
        1, presence_penalty=0.5, frequency_penalty=0.25, logit_bias=((0, 5.0), (99, 1.0))
    )

    found = penalized(logits, params, [3, 1, 3])

    torch.testing.assert_close(found, torch.tensor([6.0, 1.25, 3.0, 3.0]))
    assert torch.equal(logits, torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert penalized(logits, SamplingParams(1), [3, 1, 3]) is logits


def test_log_probabilities_are_the_models_own_whatever_was_asked_for() -> None:
    logits = torch.tensor([0.1, 2.0, 1.0, -torch.inf])
    params = SamplingParams(1, temperature=0.5, logit_bias=((0, 100.0),), top_logprobs=2)
    sampler, row = Sampler(params, prompt_tokens=3), logits.clone()

    sampler.choose(row, [5, 6, 7], [])

    noted = sampler.taken(3)
    assert noted is not None
    expected = logits.log_softmax(0).tolist()
    assert int(row.argmax()) == 0
    assert noted.chosen == pytest.approx(expected[0])
    assert [token for token, _ in noted.top] == [1, 2]
    assert [logprob for _, logprob in noted.top] == pytest.approx([expected[1], expected[2]])
    assert sampler.taken(3) is None
    assert logprobs_of(logits, 3, 1).chosen == LOGPROB_MINIMUM


def test_what_was_generated_before_a_request_was_set_aside_still_counts() -> None:
    params = SamplingParams(1, presence_penalty=2.0)
    whole, resumed = torch.tensor([3.0, 2.5, 2.0]), torch.tensor([3.0, 2.5, 2.0])

    Sampler(params, prompt_tokens=2).choose(whole, [1, 1], [0, 2])
    deepcopy(Sampler(params, prompt_tokens=2)).choose(resumed, [1, 1, 0], [2])

    assert torch.equal(whole, torch.tensor([1.0, 2.5, 0.0]))
    assert torch.equal(whole, resumed)
