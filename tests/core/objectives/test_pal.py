"""PAL: synthetic people whose tastes are known, few-shot newcomers, and the simplex."""

from __future__ import annotations

import math

import pytest
import torch
from toys.features import attached, compared, features_of, randomised
from toys.scored import feedback_of, loss_of

from polyalign.errors import TrainingError
from polyalign.objectives.base import Edges
from polyalign.objectives.reward_modeling.base import Reader
from polyalign.objectives.reward_modeling.pal import PALA, PALB
from polyalign.objectives.reward_modeling_config import PALAConfig, PALBConfig
from polyalign.policies.base import Scores
from polyalign.records.samples import Edge

WIDTH, DIMENSION, SEEN, UNSEEN, COMPARISONS = 16, 8, 40, 20, 100


class World:
    """People who prefer what lies nearer, in a hidden linear map of the features, to a mixture of two hidden ideal points."""

    def __init__(self, seed: int = 0) -> None:
        self.draw = torch.Generator().manual_seed(seed)
        self.map = self.normal(WIDTH, DIMENSION) / WIDTH**0.5
        self.ideals = 2 * self.normal(2, DIMENSION)
        self.mixtures = torch.softmax(4 * self.normal(SEEN + UNSEEN, 2), 1)  # most people are near one of the two

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.draw)

    def comparisons(self, people: range, count: int) -> tuple[Scores, Edges]:
        """``count`` comparisons by each person: squared distances decide, without noise."""
        who = torch.tensor([person for person in people for _ in range(count)])
        features = self.normal(2 * len(who), WIDTH)
        distance = ((features @ self.map).view(-1, 2, DIMENSION) - (self.mixtures @ self.ideals)[who][:, None]).square().sum(-1)
        first = torch.arange(len(who)) * 2
        better, worse = first + distance.argmin(1), first + distance.argmax(1)
        one = torch.ones(len(who))
        return features_of(features), Edges(
            better, worse, one, 0 * one, first, torch.zeros(len(who), dtype=torch.bool), ("overall",) * len(who),
            tuple(f"person {number}" for number in who.tolist()),
        )  # fmt: skip


def trained(prototypes: int, data: tuple[Scores, Edges], steps: int) -> PALA:
    model = PALA(PALAConfig(prototypes=prototypes, dimension=DIMENSION))
    attached(model, WIDTH, sorted(set(data[1].annotator))).float()
    scales = model.learning_rate_scales()
    groups = [{"params": [parameter], "lr": 5e-3 * scales[name]} for name, parameter in model.named_parameters()]
    optimizer = torch.optim.Adam(groups)
    for _ in range(steps):
        loss = model.losses(model.head_margins(*data)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def accuracy(model: PALA, data: tuple[Scores, Edges]) -> float:
    return float((model.head_margins(*data) > 0).float().mean())


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def models(world: World) -> dict[int, PALA]:
    data = world.comparisons(range(SEEN), COMPARISONS)
    return {prototypes: trained(prototypes, data, steps) for prototypes, steps in ((1, 150), (2, 400))}


def test_two_prototypes_explain_what_one_cannot(world: World, models: dict[int, PALA]):
    """True K is 2: new comparisons by the same people, right in at least 95 % with K = 2 and at most 85 % with K = 1."""
    fresh = world.comparisons(range(SEEN), 50)
    found = {prototypes: accuracy(model, fresh) for prototypes, model in models.items()}
    print(found)
    assert found[2] >= 0.95
    assert found[1] <= 0.85


def test_twenty_comparisons_place_a_newcomer_and_nothing_else_moves(world: World, models: dict[int, PALA]):
    model = models[2]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    people = range(SEEN, SEEN + UNSEEN)
    for person in people:
        weights = model.adapt(f"person {person}", *world.comparisons(range(person, person + 1), 20))
        assert weights.sum().item() == pytest.approx(1.0, abs=1e-6)
    found = accuracy(model, world.comparisons(people, 50))
    print(found)
    assert found >= 0.93
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value[: len(before[name])] if name == "mixture" else value, before[name], atol=0, rtol=0)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_weights_are_on_the_simplex_and_a_stranger_has_the_mean(models: dict[int, PALA]):
    model = models[2]
    weights = model.weights_of([*model.annotators, "a stranger"])
    torch.testing.assert_close(weights.sum(1), torch.ones(len(weights)))
    assert weights.ge(0).all()
    torch.testing.assert_close(weights[-1], weights[:-1].mean(0))


@pytest.mark.parametrize("ideal", ["map_of_mixture", "mixture_of_maps", "mixture"])
def test_pal_a_with_one_prototype_is_an_ideal_point_model(ideal: str):
    """-||f(x) - a|| with one a for everybody, from numpy's point of view: plain matrix products."""
    model = randomised(attached(PALA(PALAConfig(prototypes=1, ideal=ideal)), 3, ("ann", "bob")))
    x = torch.tensor([[0.5, -1.0, 2.0], [0.1, 0.2, 0.3]], dtype=torch.float64)
    layer = model.map[0]
    a = model.prototypes[0] if ideal == "mixture" else layer.weight @ model.prototypes[0] + layer.bias
    expected = -((x @ layer.weight.T + layer.bias - a) ** 2).sum(1).sqrt()
    for name in ("ann", "bob"):
        torch.testing.assert_close(model.rewards(features_of(x), Reader(annotator=name)), expected)


@pytest.mark.parametrize("loss", ["logistic", "hinge"])
def test_each_edge_is_judged_by_its_own_annotator(loss: str):
    model = randomised(attached(PALA(PALAConfig(prototypes=2, loss=loss)), 3, ("ann", "bob")), scale=2.0)
    scores = features_of(torch.randn(4, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64))
    edges = [Edge(0, 1, annotator="ann", weight=2.0), Edge(2, 3, annotator="bob", margin=0.5)]
    feedback = feedback_of(compared(4, edges))
    of = {name: model.rewards(scores, Reader(annotator=name)) for name in ("ann", "bob")}
    margins = torch.stack([of["ann"][0] - of["ann"][1], of["bob"][2] - of["bob"][3]])
    torch.testing.assert_close(model.head_margins(scores, feedback.edges), margins)
    asked = margins - torch.tensor([0.0, 0.5], dtype=torch.float64)
    each = torch.log1p(torch.exp(-asked)) if loss == "logistic" else (1 - asked).clamp(min=0)
    assert loss_of(model, scores, None, feedback).item() == pytest.approx(((2 * each[0] + each[1]) / 3).item(), rel=1e-6)


def test_pal_bs_ideal_point_follows_the_prompt():
    """exp(l) cos(f(x), sum_k w_k g_k(prompt)), written out for one sample; exp(l) is cut at 100."""
    model = randomised(attached(PALB(PALBConfig(prototypes=2, dimension=2)), 3, ("ann",)))
    draw = torch.Generator().manual_seed(5)
    x, prompt = (torch.randn(1, 3, generator=draw, dtype=torch.float64) for _ in range(2))
    w = torch.softmax(model.mixture[0], 0)
    a = sum(w[k] * model.prompt_maps[k](prompt)[0] for k in range(2))
    f = model.map(x)[0]
    cosine = (f @ a) / (f.norm() * a.norm())
    scores = features_of(x, prompt_hidden=prompt)
    assert model.rewards(scores).item() == pytest.approx((model.scale.exp() * cosine).item(), rel=1e-9)
    with torch.no_grad():
        model.scale.fill_(math.log(1e4))
    assert model.rewards(scores).item() == pytest.approx(100 * cosine.item(), rel=1e-9)


def test_an_unknown_annotator_is_named():
    model = attached(PALA(), 3, ("ann",))
    with pytest.raises(TrainingError, match="'anne'.*Did you mean 'ann'"):
        model.rewards(features_of(torch.zeros(1, 3, dtype=torch.float64)), Reader(annotator="anne"))
