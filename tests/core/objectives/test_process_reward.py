"""Process rewards: where labels are read, how steps make a reward, and shaping that telescopes; ratings of whole responses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from toys.features import attached, compared, features_of, randomised
from toys.scored import feedback_of, terms_of

from polyalign.errors import TrainingError
from polyalign.objectives.reward_modeling.pointwise import Pointwise
from polyalign.objectives.reward_modeling.process import ProcessReward, aggregated, shaping
from polyalign.objectives.reward_modeling_config import PointwiseConfig, ProcessRewardConfig
from polyalign.policies.base import Scores
from polyalign.policies.token_features import step_ends
from polyalign.records.samples import Labelled, Rated

WIDTH = 3
probabilities = st.lists(st.floats(0, 1), min_size=1, max_size=6)


def stepped(lengths: list[int], ends: list[list[int]]) -> Scores:
    """Samples of so many decisions, with steps that end at the given ones; padding holds NaN."""
    count, longest = len(lengths), max(lengths)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    states = torch.randn(count, longest, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    states[~mask] = float("nan")
    at = torch.zeros(count, longest, dtype=torch.bool)
    for row, places in enumerate(ends):
        at[row, places] = True
    extras = {"states": states, "step_ends": at}
    return Scores(torch.zeros(count, 1, longest, dtype=torch.float64), mask[:, None], torch.zeros(count, longest).long(), extras)


@pytest.mark.parametrize("unit", ["steps", "tokens"])
def test_a_label_is_read_where_its_stretch_ends(unit: str):
    """Two responses of 5 and 3 decisions with steps ending at 1, 4 and at 2. In steps [0, 1) ends at decision 1, [1, 2) at 4;
    in tokens [0, 4) ends at 3 whatever the steps. A label of 0 and one past the end cost nothing; the first has no weight."""
    model = randomised(attached(ProcessReward(), WIDTH))
    scores = stepped([5, 3], [[1, 4], [2]])
    labels = {
        "steps": [(0, 0, 1, 1.0, 1), (0, 1, 2, -1.0, 4), (1, 0, 1, 0.5, 2), (0, 0, 2, 0.0, None), (1, 1, 2, 1.0, None)],
        "tokens": [(0, 0, 4, 1.0, 3), (0, 2, 5, -1.0, 4), (1, 0, 1, 0.5, 0), (0, 0, 2, 0.0, None), (1, 0, 4, 1.0, None)],
    }[unit]
    segments = tuple(Labelled(sample, start, end, unit, value) for sample, start, end, value, _ in labels)
    term = terms_of(model, scores, None, feedback_of(compared(2, [], segments=segments)))["step"]
    z = model.logits(scores).detach()
    by_hand = sum(
        -math.log(expit((1 if value > 0 else -1) * z[sample, at].item())) for sample, _, _, value, at in labels if at is not None
    )
    assert term.sum.item() == pytest.approx(by_hand, rel=1e-9)
    assert term.weight.item() == 4.0
    term.sum.backward()
    assert torch.isfinite(model.head[-1].weight.grad).all()


def test_other_units_are_refused():
    model = attached(ProcessReward(), WIDTH)
    with pytest.raises(TrainingError, match="segments are in seconds"):
        terms_of(model, stepped([2], [[1]]), None, feedback_of(compared(1, [], segments=(Labelled(0, 0, 1, "seconds", 1.0),))))


def test_rewards_aggregate_the_probabilities_of_steps():
    scores = stepped([5, 3], [[1, 4], []])
    model = randomised(attached(ProcessReward(), WIDTH))
    first, second = (torch.sigmoid(model.logits(scores)[0, at]).item() for at in (1, 4))
    expected = {"min": min(first, second), "product": first * second, "last": second, "mean": (first + second) / 2}
    for how, value in expected.items():
        model.config = ProcessRewardConfig(aggregate=how)
        assert model.rewards(scores).tolist() == [pytest.approx(value, rel=1e-9), 0.0]


@given(steps=probabilities)
def test_shaping_telescopes(steps: list[float]):
    """The bonuses add up to the final level minus 1: min(s) - 1, or the product - 1; by min each is min(0, s_t - m_(t-1))."""
    tensor = torch.tensor(steps, dtype=torch.float64)
    level, by_hand = 1.0, []
    for step in steps:
        by_hand.append(min(0.0, step - level))
        level = min(level, step)
    np.testing.assert_allclose(shaping(tensor, "min").numpy(), by_hand, atol=1e-12)
    for how in ("min", "product"):
        assert shaping(tensor, how).sum().item() == pytest.approx(aggregated(tensor, how).item() - 1, abs=1e-12)


def test_steps_end_at_line_breaks_and_at_the_end_but_blank_lines_are_none():
    """Decisions: "a", newline, newline, "b", newline, end-of-text; then "a", "b\\n" in one token; then "a" that just ends."""
    newline = torch.tensor([[0, 1, 1, 0, 1, 0], [0, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]]).bool()
    content = torch.tensor([[1, 0, 0, 1, 0, 0], [1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]]).bool()
    mask = torch.arange(6) < torch.tensor([6, 2, 1])[:, None]
    found = step_ends(newline, content, mask)
    assert [row.nonzero().flatten().tolist() for row in found] == [[1, 4], [1], [0]]
    assert step_ends(newline[:, :0], content[:, :0], mask[:, :0]).shape == (3, 0)


@pytest.mark.parametrize("loss", ["mse", "bce"])
def test_ratings_one_by_one_each_on_its_aspect(loss: str):
    model = randomised(attached(Pointwise(PointwiseConfig(loss=loss)), WIDTH, rated=("style", "truth")))
    hidden = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    given_ = [Rated(0, 0.75, "style"), Rated(0, 0.25, "style"), Rated(1, 1.0, "truth")]
    terms = terms_of(model, features_of(hidden), None, feedback_of(compared(2, [], ratings=tuple(given_))))
    values = model.columns(features_of(hidden)).detach().numpy()

    def cost(value: float, target: float) -> float:
        if loss == "mse":
            return (value - target) ** 2
        return -target * math.log(expit(value)) - (1 - target) * math.log(expit(-value))

    assert terms["rating/style"].sum.item() == pytest.approx(cost(values[0, 0], 0.75) + cost(values[0, 0], 0.25), rel=1e-9)
    assert terms["rating/truth"].sum.item() == pytest.approx(cost(values[1, 1], 1.0), rel=1e-9)
    assert [term.weight.item() for term in terms.values()] == [2.0, 1.0]
    if loss == "bce":
        assert model.rewards(features_of(hidden)).detach().numpy() == pytest.approx(expit(values).sum(1))


def test_data_without_ratings_is_refused():
    with pytest.raises(TrainingError, match="nothing to learn"):
        attached(Pointwise(), WIDTH, rated=())
