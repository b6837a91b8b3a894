"""What every reward model owes the trainer: exact sums over any split, weights known before features, blindness to padding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys.features import attached, randomised
from toys.scored import feedback_of

from polyalign.objectives.reward_modeling.base import RewardModel
from polyalign.objectives.specs.reward_models import OBJECTIVES as SPECS
from polyalign.policies.base import Scores
from polyalign.records.samples import Edge, Example, Labelled, Ranked, Rated, Sample

WIDTH, DECISIONS = 4, 3
NAMES, ASPECTS = ("ann", "bob"), ("style", "truth")
VARIANTS = {
    "ties": ("bradley_terry", {"ties": "davidson", "tie": 1.0, "centring": 0.1, "hidden_layers": (5,)}),
    "cosine": ("pickscore", {"similarity": "cosine"}),
    "bce": ("pointwise", {"loss": "bce"}),
    "hinge": ("pal_a", {"loss": "hinge", "ideal": "mixture"}),
}


def build(name: str, options: dict) -> RewardModel:
    spec = next(spec for spec in SPECS if spec.name == name)
    return randomised(attached(spec.load()(spec.load_config()(**options)), WIDTH, NAMES, ASPECTS, ASPECTS))


MODELS = {spec.name: build(spec.name, {}) for spec in SPECS}
MODELS |= {variant: build(*which) for variant, which in VARIANTS.items()}
each_model = pytest.mark.parametrize("name", MODELS)


@st.composite
def cases(draw) -> list[Example]:
    """Examples with strict and tied comparisons by two people about two aspects, with ratings and labelled steps."""
    examples = []
    for number in range(draw(st.integers(1, 4))):
        count = draw(st.integers(1, 3))
        members = st.sampled_from(range(count))
        choices = [(a, b) for a in range(count) for b in range(count) if a != b and draw(st.booleans())]
        edges = [
            Edge(
                *sides,
                weight=draw(st.sampled_from((0.0, 0.5, 2.0))),
                margin=draw(st.sampled_from((0.0, 0.3))),
                aspect=draw(st.sampled_from((*ASPECTS, "other"))),
                annotator=draw(st.sampled_from((*NAMES, "stranger"))),
                contrast=draw(st.sampled_from(("response", "response", "prompt"))),
            )
            for sides in choices
        ]
        ranked = tuple(Ranked(at, draw(st.integers(0, 1)), weight=0.5) for at in range(count))
        few = range(draw(st.integers(0, 2)))
        rated = tuple(Rated(draw(members), draw(st.floats(0, 1)), draw(st.sampled_from(ASPECTS))) for _ in few)
        units, values = st.sampled_from(("steps", "tokens")), st.sampled_from((-1, 0, 1))
        labels = tuple(Labelled(draw(members), 0, draw(st.integers(1, 4)), draw(units), draw(values)) for _ in few)
        samples = tuple(Sample(f"r{number}/{i}", (), (), f"r{number}") for i in range(count))
        examples.append(Example(f"r{number}", samples, tuple(edges), ranked, rated, labels))
    return examples


def scores_of(examples: list[Example], extra: int = 0) -> Scores:
    """Features that belong to the samples, wherever they stand; decisions and steps are padded with NaN."""
    count = sum(len(example.samples) for example in examples)
    longest = DECISIONS + extra
    states = torch.full((count, longest, WIDTH), float("nan"), dtype=torch.float64)
    mask = torch.zeros(count, 1, longest, dtype=torch.bool)
    ends = torch.zeros(count, longest, dtype=torch.bool)
    hidden = []
    for row, sample in enumerate(sample for example in examples for sample in example.samples):
        draw = torch.Generator().manual_seed(hash(sample.id) % 2**31)
        length = 1 + len(sample.id + sample.draw_key) % DECISIONS
        hidden.append(torch.randn(2, WIDTH, generator=draw, dtype=torch.float64))
        states[row, :length] = torch.randn(length, WIDTH, generator=draw, dtype=torch.float64)
        mask[row, 0, :length] = True
        ends[row, length - 1] = True
    response, prompt = torch.stack(hidden).unbind(1)
    extras = {"hidden": response, "prompt_hidden": prompt, "states": states, "step_ends": ends}
    return Scores(torch.zeros(mask.shape, dtype=torch.float64), mask, torch.zeros(count, longest).long(), extras)


def loss_and_gradient(name: str, parts: list[list[Example]], extra: int = 0) -> torch.Tensor:
    """The window's loss, as the trainer forms it, and the gradient of every parameter, in one vector."""
    model = MODELS[name]
    terms = [model(scores_of(part, extra), {}, feedback_of(*part)) for part in parts]
    total = sum(parameter.sum() * 0 for parameter in model.parameters())
    for key in terms[0]:
        weight = sum(part[key].weight for part in terms)
        total = total + (sum(part[key].sum for part in terms) / weight if weight else 0.0)
    gradient = torch.autograd.grad(total, list(model.parameters()))
    return torch.cat([total.detach()[None], *(part.flatten() for part in gradient)])


@each_model
@settings(max_examples=10, deadline=None)
@given(case=cases(), data=st.data())
def test_order_and_splitting_change_neither_loss_nor_gradient(name: str, case: list[Example], data: st.DataObject):
    order = data.draw(st.permutations(case))
    cut = data.draw(st.integers(0, len(order)))
    parts = [part for part in (list(order[:cut]), list(order[cut:])) if part]
    torch.testing.assert_close(loss_and_gradient(name, parts), loss_and_gradient(name, [case]), atol=1e-6, rtol=1e-6)


@each_model
@settings(max_examples=5, deadline=None)
@given(case=cases(), extra=st.integers(1, 2))
def test_padding_never_matters(name: str, case: list[Example], extra: int):
    """Padded states are NaN: loss and gradient stay as they are, and stay finite."""
    plain = loss_and_gradient(name, [case])
    assert torch.isfinite(plain).all()
    torch.testing.assert_close(loss_and_gradient(name, [case], extra), plain, atol=1e-12, rtol=1e-12)


@each_model
@settings(max_examples=5, deadline=None)
@given(case=cases())
def test_weights_are_known_before_the_features(name: str, case: list[Example]):
    scores, feedback = scores_of(case), feedback_of(*case)
    terms = MODELS[name](scores, {}, feedback)
    weights = MODELS[name].weights(scores.mask, scores.kind, feedback)
    assert {key: term.weight.item() for key, term in terms.items()} == {key: weight.item() for key, weight in weights.items()}


@each_model
@settings(max_examples=5, deadline=None)
@given(case=cases())
def test_swapping_sides_negates_the_margin(name: str, case: list[Example]):
    scores, edges = scores_of(case), feedback_of(*case).edges
    there = MODELS[name].head_margins(scores, edges)
    edges.better, edges.worse = edges.worse, edges.better
    torch.testing.assert_close(MODELS[name].head_margins(scores, edges), -there)


@each_model
def test_samples_without_feedback_give_zero_sums_of_zero_weight_and_a_valid_graph(name: str):
    silent = [Example("r", (Sample("a", (), (), "r"), Sample("b", (), (), "r")))]
    assert loss_and_gradient(name, [silent]).eq(0).all()
    terms = MODELS[name](scores_of(silent), {}, feedback_of(*silent))
    assert [(term.sum.item(), term.weight.item()) for term in terms.values()] == [(0.0, 0.0)] * len(terms)


@each_model
def test_state_comes_back_from_a_file_and_shapes_from_json(name: str, tmp_path):
    """What a finished run keeps of its head: the attachment as JSON and the weights as safetensors."""
    import json

    from safetensors.torch import load_file, save_file

    from polyalign.objectives.reward_modeling.base import Attachment

    model = MODELS[name]
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, tmp_path / "head.safetensors")
    again = type(model)(model.config)
    again.load_attachment(Attachment.from_json(json.loads(json.dumps(model.attachment.as_json()))))
    again.double().load_state_dict(load_file(tmp_path / "head.safetensors"))
    case = [Example("r", (Sample("a", (), (), "r"), Sample("b", (), (), "r")), (Edge(0, 1, annotator="bob", aspect="truth"),))]
    scores, edges = scores_of(case), feedback_of(*case).edges
    torch.testing.assert_close(again.head_margins(scores, edges), model.head_margins(scores, edges), atol=0, rtol=0)
