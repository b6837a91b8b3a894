"""Supervised fine-tuning: a mean over decisions, of responses only."""

from __future__ import annotations

import pytest
import torch
from toys.scored import example, feedback_of, gradient, loss_of, scores_of, terms_of

from polyalign.objectives.config import SFTConfig
from polyalign.objectives.supervised import SFT
from polyalign.policies.base import Kind
from polyalign.records.samples import Edge


def test_loss_is_the_mean_over_decisions_not_over_responses():
    """Tokens 1, 2 and 6: mean 3. A mean of means would give (1.5 + 6) / 2 = 3.75."""
    scores = scores_of([[[-1.0, -2.0]], [[-6.0]]])
    loss = loss_of(SFT(), scores, None, feedback_of(example(1), example(1)))
    assert loss.item() == pytest.approx(3.0, abs=1e-12)
    torch.testing.assert_close(gradient(loss, scores), torch.tensor([[[-1 / 3, -1 / 3]], [[-1 / 3, 0.0]]], dtype=torch.float64))


def test_loss_equals_cross_entropy_on_logits():
    logits = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[0, 4, 2], [1, 3, -100]])
    picked = logits.log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    scores = scores_of([[picked[0].tolist()], [picked[1, :2].tolist()]])
    oracle = torch.nn.functional.cross_entropy(logits.view(-1, 5), targets.view(-1), ignore_index=-100)
    assert loss_of(SFT(), scores, None, feedback_of(example(1), example(1))).item() == pytest.approx(oracle.item(), abs=1e-12)


def test_on_denoising_errors_it_is_half_the_mean_squared_error():
    """Errors 0.2 and 0.4 of one sample, 0.6 and 0.8 of another: mean 0.5, half of it 0.25."""
    scores = scores_of([[[-0.1], [-0.2]], [[-0.3], [-0.4]]], Kind.DENOISING)
    assert loss_of(SFT(), scores, None, feedback_of(example(1), example(1))).item() == pytest.approx(0.25, abs=1e-12)


def test_mismatched_samples_are_left_out():
    scores = scores_of([[[-1.0]], [[-50.0, -50.0]]])
    terms = terms_of(SFT(), scores, None, feedback_of(example(2, mismatched=[1])))
    assert (terms["nll"].sum.item(), terms["nll"].weight.item()) == (1.0, 1.0)


def test_responses_that_feedback_calls_bad_are_left_out_so_that_every_view_means_the_same():
    """A > B > C by edges, and a pair of labels: the sft view shows A and the desirable response, and so does this."""
    ranked = example(3, [Edge(0, 1), Edge(0, 2), Edge(1, 2)])
    scores = scores_of([[[-1.0]], [[-10.0]], [[-10.0]], [[-3.0, -2.0]], [[-10.0]]])
    terms = terms_of(SFT(), scores, None, feedback_of(ranked, example(2, labels=(1, -1))))
    assert (terms["nll"].sum.item(), terms["nll"].weight.item()) == (6.0, 3.0)


def test_edges_between_prompts_and_edges_of_weight_zero_call_nothing_bad():
    edges = [Edge(0, 1, contrast="prompt"), Edge(1, 0, weight=0.0)]
    terms = terms_of(SFT(), scores_of([[[-1.0]], [[-2.0]]]), None, feedback_of(example(2, edges)))
    assert (terms["nll"].sum.item(), terms["nll"].weight.item()) == (3.0, 2.0)


def test_an_impossible_mismatched_sample_does_not_spoil_the_loss():
    """Log-probability -inf times weight 0 would be NaN."""
    scores = scores_of([[[-1.0]], [[float("-inf")]]])
    total = terms_of(SFT(), scores, None, feedback_of(example(2, mismatched=[1])))["nll"].sum
    assert total.item() == 1.0
    torch.testing.assert_close(gradient(total, scores).flatten(), torch.tensor([-1.0, 0.0], dtype=torch.float64))


def test_kind_scale_weighs_kinds_in_one_response():
    scores = scores_of([[[-1.0, -3.0, -0.5]]], kinds=[[Kind.TOKEN, Kind.TOKEN, Kind.DENOISING]])
    loss = loss_of(SFT(SFTConfig(kind_scale={"denoising": 4.0})), scores, None, feedback_of(example(1)))
    assert loss.item() == pytest.approx((1 + 3 + 2) / 3, abs=1e-12)
