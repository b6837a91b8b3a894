"""Bugs of a published all-modality framework, as tests: what each computed wrongly, and that ours does not.

Found by reading align-anything at 3f9decc; letters are those of our notes. Bugs of its collators (a, l) are tested where ours are
(`test_completion_mask`, `test_multimodal_masking`), the reward read at padding (f) with the features (`test_token_features`), the
order that never changed (j) with the data (`test_dataset`); h and k are of parts that we do not have.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from toys.gaussian import GaussianPolicy, pair_examples
from toys.scored import example, feedback_of, pair, scores_of

from polyalign.objectives.advantages import leave_one_out
from polyalign.objectives.config import KTOConfig, SimPOConfig
from polyalign.objectives.kto import KTO
from polyalign.objectives.pairwise import DPO
from polyalign.objectives.reference_free import SimPO
from polyalign.objectives.supervised import SFT
from polyalign.policies.base import Scores
from polyalign.policies.completion_mask import PromptResponseEncoder
from polyalign.policies.config import TokensConfig
from polyalign.policies.tiny_language import byte_tokenizer, tiny_llama
from polyalign.policies.tokens import TokenPolicy
from polyalign.records.schema import Message, TextPart
from polyalign.rewards.base import Judged, Reward
from polyalign.training.batches import collate_examples
from polyalign.training.config import OnlineConfig
from polyalign.training.rollouts import Judges
from polyalign.training.window import WindowLoss


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


def test_d_rewards_see_the_prompt_and_nothing_after_the_end() -> None:
    """There the reward model got the completion without its prompt, and whatever stood after the end as visible characters."""
    model = tiny_llama(258, initializer_range=0.2, eos_token_id=256)
    policy = TokenPolicy(model, PromptResponseEncoder(byte_tokenizer()), TokensConfig(max_length=100, max_response=60))
    prompts = [(Message(role="user", parts=(TextPart(text=text),)),) for text in ("Why?", "Where did you put it?")]
    seen: list[Judged] = []

    class Watching(Reward):
        def score(self, items: Sequence[Judged]) -> list[float]:
            seen.extend(items)
            return [0.0] * len(items)

    rollouts = policy.generate(prompts, samples_per_prompt=32, max_new_tokens=40, temperature=2.0)
    online = OnlineConfig.model_validate({"rewards": [{"name": "watching"}]})
    Judges(online, {"watching": Watching()}, {}).groups(["a", "b"], rollouts, 32)
    assert [item.prompt for item in seen] == [prompt for prompt in prompts for _ in range(32)]
    ids = [rollout.decisions[0].ids.tolist() for rollout in rollouts]  # type: ignore[union-attr]
    assert any(len(own) < 40 for own in ids)  # some ended, and were padded while others went on
    words = [policy.tokenizer.decode([token for token in own if token < 256]) for own in ids]
    assert [item.output for item in seen] == words


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


def test_i_only_a_recipe_that_asks_for_bf16_gets_it() -> None:
    """There the test was on the word "no", which is true, so that every diffusion run was in half precision."""
    precise, coarse = (trained_in(precision) for precision in ("fp32", "bf16"))
    assert precise == [torch.float32] and coarse == [torch.bfloat16]


def trained_in(precision: str) -> list[torch.dtype]:
    """Return the types in which a policy's layer answered while its loss was computed."""
    policy, seen = GaussianPolicy(), list[torch.dtype]()
    policy.mean.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    micro = collate_examples(pair_examples(2), policy.collator)
    WindowLoss(policy, None, SFT(), "cpu", precision).train([micro], lambda loss, last: loss.backward())
    return seen
