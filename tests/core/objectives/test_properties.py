"""What every objective owes the trainer, on random batches: exact sums over any split, and blindness to padding and order."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys.scored import example, feedback_of, gradient, loss_of, scores_of, terms_of

from polyalign.objectives.base import Objective, Term, averaged
from polyalign.objectives.config import DPOConfig
from polyalign.objectives.margins import margins
from polyalign.objectives.metrics import preference_metrics
from polyalign.objectives.pairwise import DPO
from polyalign.objectives.specs import OBJECTIVES as SPECS
from polyalign.policies.base import Scores
from polyalign.records.samples import Edge, Example, Labelled, Ranked, Rated

# Options that make a property visible on log-probabilities of a few units, and variants that have their own code.
OPTIONS = {
    "dpo": {"beta": 0.5},
    "ipo": {"beta": 0.5},
    "kto": {"beta": 0.5, "undesirable_weight": 1.3},
    "orpo": {"odds_weight": 0.5},
    "instruct_engine": {"beta": 0.5, "column_weight": 0.3},
    "wpo": {"beta": 0.5, "alignment": "none"},
    "tdpo": {"beta": 0.5},
    "crpo": {"terms": [{"name": "dpo", "beta": 0.5}, {"name": "sft", "weight": 2.0}]},
    "diffusion_kto": {"beta": 0.5, "utility": "loss_averse", "undesirable_weight": 1.3},
    "mapo": {"steps": 2.0},
}
VARIANTS = {
    "cdpo": ("dpo", {"beta": 0.5, "label_smoothing": 0.2}),
    "forward_kl": ("f_dpo", {"divergence": "forward_kl"}),
    "alpha": ("f_dpo", {"divergence": "alpha", "reduction": "mean"}),
    "bco_pair without baseline": ("bco_pair", {"baseline": "none"}),
    "plackett_luce of equals": ("plackett_luce", {"ties": "equal"}),
    "pro unheated": ("pro", {"temperatures": "unit"}),
    "weak_logconf for sure": ("weak_logconf", {"beta": 0.5, "confidence": 1.0}),
    "rated margins and weights": ("dpo", {"beta": 0.5, "margin_from": "ratings", "weight_from": "ratings"}),
    "mixture": ("weighted_sum", {"terms": [{"name": name, "beta": 0.5} for name in ("aot", "instruct_engine", "bco_pair")]}),
}


def build(name: str, options: dict) -> Objective:
    spec = next(spec for spec in SPECS if spec.name == name)
    return spec.load()(spec.load_config()(**options))


MORE = {"token_targets", "predictions", "rollouts", "sample_grad"}  # not in a `Case`: tested in files of their own
PLAIN = [spec for spec in SPECS if spec.reads == "log_probs" and not MORE & {*spec.needs}]
OBJECTIVES = {spec.name: build(spec.name, OPTIONS.get(spec.name, {})) for spec in PLAIN}
OBJECTIVES |= {variant: build(*which) for variant, which in VARIANTS.items()}
GRID_MEANS = ("instruct_engine", "mixture")
each_objective = pytest.mark.parametrize("name", OBJECTIVES)


@dataclass
class Case:
    """Examples with the log-probabilities of their samples under policy and reference."""

    examples: list[Example]
    policy: list[list]  # per example, per sample: [D][T]
    reference: list[list]

    def part(self, order: list[int]) -> tuple[Scores, Scores, object]:
        return (
            scores_of([sample for i in order for sample in self.policy[i]]),
            scores_of([sample for i in order for sample in self.reference[i]]),
            feedback_of(*(self.examples[i] for i in order)),
        )

    def whole(self) -> tuple[Scores, Scores, object]:
        return self.part(list(range(len(self.examples))))


log_prob = st.floats(-6, -0.01)


@st.composite
def rankings(draw, count: int) -> tuple[Ranked, ...]:
    """One ranking with ties, of some of the samples."""
    ranks = [draw(st.sampled_from((0, 1, 2, 3, None))) for _ in range(count)]
    weight, contrast = draw(st.sampled_from((0.0, 0.5, 1.0))), draw(st.sampled_from(("response", "response", "prompt")))
    return tuple(Ranked(at, rank, 0, weight, contrast) for at, rank in enumerate(ranks) if rank is not None)


@st.composite
def ratings(draw, count: int) -> tuple[Rated, ...]:
    """Up to two ratings of each sample; some have none."""
    return tuple(Rated(at, value) for at in range(count) for value in draw(st.lists(st.floats(0, 1), max_size=2)))


@st.composite
def segments(draw, count: int) -> tuple[Labelled, ...]:
    """Up to two labelled stretches of each sample, which may overlap, reach past its end or say nothing."""
    stretch = st.tuples(st.integers(0, 2), st.integers(1, 3), st.sampled_from((-1.0, 0.0, 1.0)))
    found = [(at, *one) for at in range(count) for one in draw(st.lists(stretch, max_size=2))]
    return tuple(Labelled(at, start, start + length, "steps", value) for at, start, length, value in found)


@st.composite
def cases(draw) -> Case:
    examples, policy, reference = [], [], []
    draws = draw(st.integers(1, 2))
    for number in range(draw(st.integers(1, 4))):
        lengths = draw(st.lists(st.integers(1, 3), min_size=2, max_size=4))
        indices = range(len(lengths))
        edges = [
            Edge(better, worse, draw(st.sampled_from((0.5, 1.0, 2.0))), draw(st.sampled_from((0.0, 0.3))), contrast=contrast)
            for better in indices
            for worse in indices
            if better != worse and (contrast := draw(st.sampled_from((None, None, "response", "prompt"))))
        ]
        mismatched = draw(st.sets(st.sampled_from(indices), max_size=1))
        labels = tuple(0 if i in mismatched else draw(st.sampled_from((1, -1, 0))) for i in indices)
        plain = example(len(lengths), edges, labels, tuple(mismatched), f"r{number}")
        said = {"rankings": rankings, "ratings": ratings, "segments": segments}
        examples.append(replace(plain, **{kind: draw(of(len(lengths))) for kind, of in said.items()}))
        for side in (policy, reference):
            side.append([[[draw(log_prob) for _ in range(length)] for _ in range(draws)] for length in lengths])
    return Case(examples, policy, reference)


def loss_over(name: str, case: Case, parts: list[list[int]]) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    """The loss of a window split into parts, as the trainer adds it up: sum of sums / sum of weights, statistics first.
    Beside it, by example, the gradient of the log-probabilities of its samples."""
    objective, split = OBJECTIVES[name], [case.part(part) for part in parts]
    gathered = [objective.statistics(scores, {"reference": ref}, feedback) for scores, ref, feedback in split]
    statistics = averaged(
        {
            key: torch.cat([g[key] for g in gathered])
            if isinstance(gathered[0][key], torch.Tensor)
            else Term(sum(g[key].sum for g in gathered), sum(g[key].weight for g in gathered))
            for key in objective.statistic_names
        }
    )
    terms = [objective(scores, {"reference": ref}, feedback, statistics or None) for scores, ref, feedback in split]
    total = torch.zeros((), dtype=torch.float64) + sum(scores.log_probs.nansum() * 0.0 for scores, _, _ in split)
    for key in terms[0]:
        weight = sum(part[key].weight for part in terms)
        total = total + (sum(part[key].sum for part in terms) / weight if weight else 0.0)
    slopes: dict[int, torch.Tensor] = {}
    for part, (scores, _, _), grad in zip(
        parts, split, torch.autograd.grad(total, [scores.log_probs for scores, _, _ in split]), strict=True
    ):
        position = 0
        for number in part:
            end = position + len(case.policy[number])
            slopes[number] = grad[position:end][scores.mask[position:end]]
            position = end
    return total.detach(), slopes


@each_objective
@settings(max_examples=8, deadline=None)
@given(case=cases(), data=st.data())
def test_order_and_splitting_change_neither_loss_nor_gradient(name: str, case: Case, data: st.DataObject):
    order = data.draw(st.permutations(range(len(case.examples))))
    cut = data.draw(st.integers(0, len(order)))
    whole, slopes = loss_over(name, case, [sorted(order)])
    parts = [part for part in (order[:cut], order[cut:]) if part]
    loss, pieces = loss_over(name, case, parts)
    assert loss.item() == pytest.approx(whole.item(), abs=1e-6, rel=1e-6)
    for number, slope in slopes.items():
        torch.testing.assert_close(pieces[number], slope, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in GRID_MEANS])
@settings(max_examples=5, deadline=None)
@given(case=cases())
def test_an_edge_of_weight_zero_contributes_nothing(name: str, case: Case):
    """One more edge of weight 0 in every example, in a direction of its own.

    A grid is left out: its weight is the mean over its edges, and an edge of weight 0 is one of them.
    """
    extended = [replace(e, edges=(*e.edges, Edge(len(e.samples) - 1, 0, weight=0.0, margin=0.5))) for e in case.examples]
    order = [list(range(len(case.examples)))]
    without, slopes = loss_over(name, case, order)
    loss, others = loss_over(name, Case(extended, case.policy, case.reference), order)
    assert loss.item() == pytest.approx(without.item(), abs=1e-9, rel=1e-9)
    for number, slope in slopes.items():
        torch.testing.assert_close(others[number], slope, atol=1e-9, rtol=1e-9)


@each_objective
@settings(max_examples=5, deadline=None)
@given(case=cases(), decisions=st.integers(0, 2), draws=st.integers(0, 2))
def test_padding_never_matters(name: str, case: Case, decisions: int, draws: int):
    """Padded decisions and draws hold NaN: value and gradient stay as they are, and padding gets no gradient."""
    scores, reference, feedback = case.whole()

    def padded(plain: Scores) -> Scores:
        log_probs = torch.nn.functional.pad(plain.log_probs.detach(), (0, decisions, 0, draws), value=float("nan"))
        mask = torch.nn.functional.pad(plain.mask, (0, decisions, 0, draws))
        return Scores(log_probs.requires_grad_(), mask, torch.nn.functional.pad(plain.kind, (0, decisions), value=3))

    larger = padded(scores)
    plain_loss = loss_of(OBJECTIVES[name], scores, reference, feedback)
    padded_loss = loss_of(OBJECTIVES[name], larger, padded(reference), feedback)
    assert padded_loss.item() == pytest.approx(plain_loss.item(), abs=1e-9, rel=1e-9)
    grad = gradient(padded_loss, larger)
    d, t = scores.log_probs.shape[1:]
    torch.testing.assert_close(grad[:, :d, :t], gradient(plain_loss, scores), atol=1e-9, rtol=1e-9)
    assert grad[~larger.mask].eq(0).all()


@each_objective
@settings(max_examples=5, deadline=None)
@given(case=cases())
def test_weights_are_known_before_the_forward_pass(name: str, case: Case):
    scores, reference, feedback = case.whole()
    terms = terms_of(OBJECTIVES[name], scores, reference, feedback)
    weights = OBJECTIVES[name].weights(scores.mask, scores.kind, feedback)
    assert {key: term.weight.item() for key, term in terms.items()} == {key: weight.item() for key, weight in weights.items()}


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in ("sft", "mpo", "crpo", "weighted_sum")])
def test_samples_without_feedback_give_zero_sums_of_zero_weight_and_a_valid_graph(name: str):
    """Ties and incomparable candidates become samples without edges."""
    scores = scores_of([[[-1.0, -2.0]], [[-1.5]]])
    terms = terms_of(OBJECTIVES[name], scores, scores_of([[[-1.0, -1.0]], [[-1.0]]]), feedback_of(example(2)))
    for term in terms.values():
        assert (term.sum.item(), term.weight.item()) == (0.0, 0.0)
    assert gradient(sum(term.sum for term in terms.values()), scores).eq(0).all()


@settings(max_examples=12, deadline=None)
@given(case=cases())
def test_swapping_sides_negates_the_margin_and_mirrors_the_accuracy(case: Case):
    scores, reference, feedback = case.whole()
    swapped = Case([_swapped(one) for one in case.examples], case.policy, case.reference).whole()[2]
    values = scores.reduced()
    torch.testing.assert_close(margins(values, swapped.edges), -margins(values, feedback.edges))
    there, back = (preference_metrics(scores, reference, f) for f in (feedback, swapped))
    assert back["margin"].sum.item() == pytest.approx(-there["margin"].sum.item(), abs=1e-9)
    total = there["accuracy"].weight.item()
    assert back["accuracy"].sum.item() == pytest.approx(total - there["accuracy"].sum.item(), abs=1e-6)


def _swapped(one: Example) -> Example:
    edges = [Edge(e.worse, e.better, e.weight, e.margin, contrast=e.contrast) for e in one.edges]
    return Example(one.record_id, one.samples, tuple(edges), labels=one.labels)


@settings(max_examples=12, deadline=None)
@given(case=cases())
def test_sigmoid_links_of_both_directions_differ_by_the_scaled_margin(case: Case):
    """-log sigma(-z) - (-log sigma(z)) = z for every edge without margin: the summed losses differ by beta * the metric."""
    plain = [
        Example(e.record_id, e.samples, tuple(Edge(x.better, x.worse, x.weight, contrast=x.contrast) for x in e.edges))
        for e in case.examples
    ]
    scores, reference, feedback = Case(plain, case.policy, case.reference).whole()
    swapped = feedback_of(*map(_swapped, plain))
    objective = DPO(DPOConfig(beta=0.5))
    here, there = (terms_of(objective, scores, reference, f)["preference"].sum for f in (feedback, swapped))
    margin = preference_metrics(scores, reference, feedback)["margin"].sum
    assert (there - here).item() == pytest.approx(0.5 * margin.item(), abs=1e-9)
