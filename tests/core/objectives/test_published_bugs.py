"""Bugs of a published all-modality framework, as tests: what each computed wrongly, and that ours does not.

Found by reading align-anything at 3f9decc; letters are those of our notes. Bugs of its collators are tested where collators are
(`test_completion_mask`, `test_multimodal_masking`), the reward read at padding with the reward models.
"""

from __future__ import annotations

import pytest
import torch
from toys.scored import example, feedback_of, pair, scores_of

from polyalign.objectives.advantages import leave_one_out
from polyalign.objectives.config import KTOConfig, SimPOConfig
from polyalign.objectives.kto import KTO
from polyalign.objectives.pairwise import DPO
from polyalign.objectives.reference_free import SimPO
from polyalign.policies.base import Scores


def slopes(objective: object, scores: Scores, references: dict[str, Scores], feedback: object) -> torch.Tensor:
    """Return the gradient of the summed terms with respect to each sample's log-probabilities, ``[N]``."""
    terms = objective(scores, references, feedback)  # type: ignore[operator]
    (gradient,) = torch.autograd.grad(sum(term.sum for term in terms.values()), scores.log_probs)
    return torch.where(scores.mask, gradient, 0.0).sum((1, 2))


def test_b_simpo_divides_by_each_responses_own_length() -> None:
    """There both sides were divided by the padded length, so lengths cancelled. Five tokens at -1 and two at -1 have equal means:
    the loss is that of no difference, and the shorter side's tokens weigh more."""
    scores = scores_of([[[-1.0] * 5], [[-1.0] * 2]])
    objective = SimPO(SimPOConfig(beta=2.0, gamma=0.0))
    loss = objective(scores, {}, feedback_of(pair()))["preference"]
    assert float(loss.sum) == pytest.approx(0.6931471805599453)
    (gradient,) = torch.autograd.grad(loss.sum, scores.log_probs)
    assert float(gradient[0, 0, 0]) == pytest.approx(-0.5 * 2 / 5) and float(gradient[1, 0, 0]) == pytest.approx(0.5 * 2 / 2)


def test_b_every_token_of_a_response_is_scored_however_long_the_prompt() -> None:
    """There a slice by positions of the whole sequence was taken of rows that held responses only: often nothing was left."""
    scores = scores_of([[[-0.5] * 20], [[-1.5] * 15]])
    reference = scores_of([[[-1.0] * 20], [[-1.0] * 15]]).detach()
    (gradient,) = torch.autograd.grad(
        DPO()(scores, {"reference": reference}, feedback_of(pair()))["preference"].sum, scores.log_probs
    )
    assert bool((gradient[scores.mask] != 0).all())


def test_c_kto_makes_undesirable_responses_less_likely() -> None:
    """There the second term was subtracted: with equal weights training raised the likelihood of undesirable responses."""
    scores, reference = scores_of([[[-1.0]], [[-2.0]]]), scores_of([[[-1.5]], [[-1.5]]]).detach()
    feedback = feedback_of(example(2, labels=(1, -1)))
    desirable, undesirable = slopes(KTO(KTOConfig(kl="batch")), scores, {"reference": reference}, feedback)
    assert desirable < 0 < undesirable


def test_e_rloo_compares_samples_of_one_prompt_and_not_tokens() -> None:
    """There token rewards were reshaped, so that neighbouring tokens of one response were each other's baseline."""
    rewards, group = torch.tensor([1.0, 0.0, 4.0, 2.0, 0.0, 8.0]), torch.tensor([0, 1, 0, 1, 1, 0])
    expected = [1 - (4 + 8) / 2, 0 - (2 + 0) / 2, 4 - (1 + 8) / 2, 2 - (0 + 0) / 2, 0 - (0 + 2) / 2, 8 - (1 + 4) / 2]
    assert leave_one_out(rewards, group).tolist() == pytest.approx(expected)  # type: ignore[arg-type]


def test_g_dpo_compares_with_the_reference_and_scales_by_beta() -> None:
    """There the reference's scores were the policy's own and beta was missing, so that the loss never left 2 ln 2."""
    scores, reference = scores_of([[[-1.0]], [[-3.0]]]), scores_of([[[-2.0]], [[-2.0]]]).detach()
    objective = DPO()
    loss = float(objective(scores, {"reference": reference}, feedback_of(pair()))["preference"].sum)
    assert loss == pytest.approx(float(-torch.nn.functional.logsigmoid(torch.tensor(0.1 * 2.0, dtype=torch.float64))))
    assert loss != pytest.approx(float(objective(scores, {"reference": scores.detach()}, feedback_of(pair()))["preference"].sum))
