"""Distillation losses against the divergences of whole distributions, written out in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from toys.scored import example, feedback_of

from polyalign.errors import TrainingError
from polyalign.objectives.base import Objective, Term
from polyalign.objectives.distillation import ADPA, DCKD, GKD
from polyalign.objectives.distillation_config import ADPAConfig, DCKDConfig, GKDConfig
from polyalign.policies.base import Scores
from polyalign.policies.logprobs import log_sum_without, reduce_logits, reduce_to_likeliest
from polyalign.records.samples import Edge, Example, Sample

V, T = 11, 4
LENGTHS = (4, 2, 3, 1)


def logits_of(seed: int, samples: int = len(LENGTHS), spread: float = 2.0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return spread * torch.randn(samples, T, V, generator=draw, dtype=torch.float64)


def coarse(log_probs: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities of the listed ids and of all others together, by summing probabilities one by one."""
    listed = log_probs.gather(-1, ids)
    others = torch.ones_like(log_probs, dtype=torch.bool).scatter(-1, ids, False)
    rest = (log_probs.exp() * others).sum(-1, keepdim=True)
    return torch.cat([listed, rest.log().clamp(min=-1e4)], -1)


def scored(
    student: Tensor,
    teacher: Tensor,
    top: int = V,
    reference: Tensor | None = None,
    actions: Tensor | None = None,
    lengths: Sequence[int] = LENGTHS,
) -> Scores:
    """Scores as a token policy gives them, in float64, NaN at padding: of logits ``[N, T, V]``."""
    mask = torch.arange(T) < torch.tensor(lengths[: len(student)])[:, None]
    said = teacher.log_softmax(-1)
    ids = said.topk(top, -1).indices
    own = student.log_softmax(-1)
    actions = actions if actions is not None else torch.zeros(len(student), T, dtype=torch.long)
    extras = {
        "target_log_probs": own.gather(-1, ids),
        "target_rest": log_sum_without(own.flatten(0, 1), ids.flatten(0, 1)).unflatten(0, (len(student), T)),
        "teacher_log_probs": coarse(said, ids),
    }
    if reference is not None:
        extras["teacher_reference_log_probs"] = coarse(reference.log_softmax(-1), ids)
    nan = float("nan")
    extras = {name: torch.where(mask.reshape(*mask.shape, *[1] * (x.ndim - 2)), x, nan) for name, x in extras.items()}
    log_probs = torch.where(mask, own.gather(-1, actions[..., None])[..., 0], nan)
    return Scores(log_probs[:, None], mask[:, None], torch.zeros(len(student), T, dtype=torch.long), extras)  # type: ignore[arg-type]


def loss_of(objective: Objective, scores: Scores, feedback: object) -> Tensor:
    terms = objective(scores, {}, feedback)  # type: ignore[arg-type]
    return sum((term.sum / term.weight for term in terms.values() if term.weight), torch.zeros((), dtype=torch.float64))


def mean_over_tokens(values: Tensor, samples: list[int] | None = None) -> Tensor:
    """Mean of values ``[N, T]`` over the tokens of these samples."""
    chosen = [values[n, : LENGTHS[n]] for n in samples or range(len(values))]
    return torch.cat(chosen).mean()


def all_responses() -> object:
    return feedback_of(*(example(1, name=f"r{n}") for n in range(len(LENGTHS))))


def two_pairs(**edge: float) -> object:
    return feedback_of(*(example(2, [Edge(0, 1, **edge)], name=name) for name in "ab"))  # type: ignore[arg-type]


def full_kl(first: Tensor, second: Tensor) -> Tensor:
    p, q = first.softmax(-1), second.softmax(-1)
    return (p * (p / q).log()).sum(-1)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_gkd_with_all_tokens_is_the_divergence_of_the_whole_distributions(beta: float) -> None:
    student, teacher = logits_of(1), logits_of(2)
    p, q = teacher.softmax(-1), student.softmax(-1)
    if beta in (0.0, 1.0):
        values = full_kl(teacher, student) if beta == 0 else full_kl(student, teacher)
    else:
        m = beta * p + (1 - beta) * q
        values = beta * (p * (p / m).log()).sum(-1) + (1 - beta) * (q * (q / m).log()).sum(-1)
    for rest in ("bucket", "renormalised"):
        found = loss_of(GKD(GKDConfig(beta=beta, rest=rest)), scored(student, teacher), all_responses())
        assert found.item() == pytest.approx(mean_over_tokens(values).item(), abs=1e-10)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("top", [1, 3, V - 2])
def test_fewer_tokens_give_the_divergence_of_the_coarser_distributions_which_is_a_lower_bound(beta: float, top: int) -> None:
    student, teacher = logits_of(3), logits_of(4)
    ids = teacher.topk(top, -1).indices
    coarser = [coarse(x.log_softmax(-1), ids).exp() for x in (teacher, student)]
    p, q = coarser
    if beta == 0:
        values = (p * (p / q).log()).sum(-1)
    elif beta == 1:
        values = (q * (q / p).log()).sum(-1)
    else:
        m = beta * p + (1 - beta) * q
        values = beta * (p * (p / m).log()).sum(-1) + (1 - beta) * (q * (q / m).log()).sum(-1)
    objective = GKD(GKDConfig(beta=beta))
    found = loss_of(objective, scored(student, teacher, top), all_responses()).item()
    assert found == pytest.approx(mean_over_tokens(values).item(), abs=1e-10)
    assert 0 < found < loss_of(objective, scored(student, teacher), all_responses()).item()
    assert loss_of(objective, scored(teacher, teacher, top), all_responses()).item() == pytest.approx(0.0, abs=1e-12)


def test_renormalised_leaves_the_rest_out_on_both_sides() -> None:
    student, teacher = logits_of(5), logits_of(6)
    ids = teacher.topk(3, -1).indices
    values = full_kl(teacher.gather(-1, ids), student.gather(-1, ids))  # softmax over the listed logits alone
    found = loss_of(GKD(GKDConfig(beta=0.0, rest="renormalised")), scored(student, teacher, 3), all_responses())
    assert found.item() == pytest.approx(mean_over_tokens(values).item(), abs=1e-10)
    shifted = student.scatter(-1, ids, student.gather(-1, ids) + 1.0)  # moves mass between listed and rest only
    again = loss_of(GKD(GKDConfig(beta=0.0, rest="renormalised")), scored(shifted, teacher, 3), all_responses())
    assert again.item() == pytest.approx(found.item(), abs=1e-10)
    assert loss_of(GKD(GKDConfig(beta=0.0)), scored(shifted, teacher, 3), all_responses()).item() != pytest.approx(found.item())


def test_near_its_ends_gkd_is_forward_and_reverse_kl_over_beta() -> None:
    student, teacher = logits_of(7, spread=1.0), logits_of(8, spread=1.0)

    def value(beta: float) -> float:
        return loss_of(GKD(GKDConfig(beta=beta)), scored(student, teacher), all_responses()).item()

    assert value(1e-5) / 1e-5 == pytest.approx(value(0.0), rel=1e-3)
    assert value(1 - 1e-5) / 1e-5 == pytest.approx(value(1.0), rel=1e-3)


def test_mismatches_do_not_count_and_self_samples_do() -> None:
    student, teacher = logits_of(9, 3), logits_of(10, 3)
    roles = ("response", "mismatch", "self_sample")
    samples = tuple(Sample(role, (), (), "r", role=role) for role in roles)  # type: ignore[arg-type]
    feedback = feedback_of(Example("r", samples))
    values = full_kl(teacher, student)
    found = loss_of(GKD(GKDConfig(beta=0.0)), scored(student, teacher), feedback)
    assert found.item() == pytest.approx(mean_over_tokens(values, [0, 2]).item(), abs=1e-10)


def test_dckd_is_its_three_terms_each_averaged_over_its_own_tokens() -> None:
    student, teacher = logits_of(11), logits_of(12)
    actions = torch.randint(V, (4, T), generator=torch.Generator().manual_seed(0))
    nll = -student.log_softmax(-1).gather(-1, actions[..., None])[..., 0]
    values = full_kl(teacher, student)
    expected = (
        0.5 * mean_over_tokens(nll, [0, 2]) + 2.0 * mean_over_tokens(values, [0, 2]) + 3.0 * mean_over_tokens(values, [1, 3])
    )
    objective = DCKD(DCKDConfig(nll_weight=0.5, better_weight=2.0, worse_weight=3.0))
    found = loss_of(objective, scored(student, teacher, actions=actions), two_pairs())
    assert found.item() == pytest.approx(expected.item(), abs=1e-10)


def test_dckd_divergences_vanish_exactly_where_the_student_is_the_teacher() -> None:
    teacher = logits_of(13)
    for top in (V, 3):
        for rest in ("bucket", "renormalised"):
            objective = DCKD(DCKDConfig(nll_weight=0.0, rest=rest))
            assert loss_of(objective, scored(teacher, teacher, top), two_pairs()).item() == pytest.approx(0.0, abs=1e-12)
    moved = teacher.clone()
    moved[1, 0, 0] += 0.1
    assert loss_of(DCKD(DCKDConfig(nll_weight=0.0)), scored(moved, teacher), two_pairs()).item() > 1e-7


def test_an_edge_of_weight_zero_costs_nothing_even_where_its_scores_are_not_numbers() -> None:
    student, teacher = logits_of(14), logits_of(15)
    broken = student.clone()
    broken[2:] = float("nan")
    weighted = feedback_of(example(2, [Edge(0, 1)], name="a"), example(2, [Edge(0, 1, weight=0.0)], name="b"))
    alone = feedback_of(example(2, [Edge(0, 1)], name="a"))
    objective = DCKD()
    found = loss_of(objective, scored(broken, teacher), weighted).item()
    assert found == pytest.approx(loss_of(objective, scored(student[:2], teacher[:2]), alone).item(), abs=1e-12)


@pytest.mark.parametrize("objective", [GKD(), DCKD(), ADPA(ADPAConfig(states="responses"))], ids=lambda o: type(o).__name__)
def test_a_batch_without_anything_that_counts_has_zero_sums_and_a_valid_graph(objective: Objective) -> None:
    student = logits_of(16, 2).requires_grad_()
    samples = tuple(Sample(str(n), (), (), "r", role="mismatch") for n in range(2))
    terms = objective(scored(student, logits_of(17, 2), reference=logits_of(18, 2)), {}, feedback_of(Example("r", samples)))  # type: ignore[arg-type]
    for term in terms.values():
        assert (term.sum.item(), term.weight.item()) == (0.0, 0.0)
    sum(term.sum for term in terms.values()).backward()  # type: ignore[union-attr]
    assert student.grad is not None and student.grad.eq(0).all()


@pytest.mark.parametrize(
    "objective",
    [GKD(), GKD(GKDConfig(beta=1.0)), DCKD(), ADPA(ADPAConfig(states="responses")), ADPA()],
    ids=["gkd", "reverse", "dckd", "adpa", "adpa on self-samples"],
)
def test_splitting_and_order_change_nothing_and_weights_are_known_before(objective: Objective) -> None:
    student, teacher, reference = logits_of(19), logits_of(20), logits_of(21)
    examples = [example(2, [Edge(0, 1, weight=weight)], name=str(weight)) for weight in (0.5, 2.0)]
    if isinstance(objective, ADPA):  # the second sample becomes the student's own
        own = Sample("own", (), (), "r", role="self_sample")
        examples = [Example(one.record_id, (one.samples[0], own)) for one in examples]

    def terms(order: list[int]) -> dict[str, Term]:
        at = [2 * number + side for number in order for side in (0, 1)]
        scores = scored(student[at], teacher[at], 3, reference[at], lengths=[LENGTHS[n] for n in at])
        feedback = feedback_of(*(examples[number] for number in order))
        found = objective(scores, {}, feedback)
        weights = objective.weights(scores.mask, scores.kind, feedback)
        assert {name: term.weight.item() for name, term in found.items()} == {n: w.item() for n, w in weights.items()}
        return found

    whole, turned, parts = terms([0, 1]), terms([1, 0]), [terms([0]), terms([1])]
    for name, term in whole.items():
        assert term.weight > 0
        for value, other, pieces in zip(term, turned[name], zip(*(part[name] for part in parts)), strict=True):
            assert other.item() == pytest.approx(value.item(), abs=1e-9)
            assert sum(piece.item() for piece in pieces) == pytest.approx(value.item(), abs=1e-9)


def test_adpa_gradient_is_minus_pi_times_the_centred_advantage() -> None:
    """d/dlogits of -sum_a pi A is -pi * (A - E_pi A); and it is what finite differences say."""
    student, tuned, before = logits_of(22, 1), logits_of(23, 1), logits_of(24, 1)
    objective = ADPA(ADPAConfig(nll_weight=0.0, states="responses", floor=1e-30))
    feedback = feedback_of(example(1))

    def loss(logits: Tensor) -> Tensor:
        return loss_of(objective, scored(logits, tuned, reference=before), feedback)

    leaf = student.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(leaf), leaf)
    advantage = tuned.log_softmax(-1) - before.log_softmax(-1)
    pi = student.softmax(-1)
    expected = -pi * (advantage - (pi * advantage).sum(-1, keepdim=True)) / LENGTHS[0]
    torch.testing.assert_close(found[0, : LENGTHS[0]], expected[0, : LENGTHS[0]], atol=1e-12, rtol=1e-9)
    for at in ((0, 0, 0), (0, 1, 5), (0, 3, V - 1)):
        step = torch.zeros_like(student)
        step[at] = 1e-5
        slope = (loss(student + step) - loss(student - step)) / 2e-5
        assert slope.item() == pytest.approx(found[at].item(), abs=1e-6)


@pytest.mark.parametrize("top", [3, V])
def test_a_constant_added_to_the_advantage_of_a_state_changes_no_gradient(top: int) -> None:
    """Where the student's probabilities sum to 1, that is with the bucket or renormalised; and not where the rest is dropped."""
    student, tuned, before = logits_of(25, 1), logits_of(26, 1), logits_of(27, 1)

    def gradient(rest: str, shift: float) -> Tensor:
        leaf = student.clone().requires_grad_()
        scores = scored(leaf, tuned, top, before)
        scores.extras["teacher_reference_log_probs"] += shift  # type: ignore[index]
        objective = ADPA(ADPAConfig(nll_weight=0.0, states="responses", floor=1e-30, rest=rest))  # type: ignore[arg-type]
        return torch.autograd.grad(loss_of(objective, scores, feedback_of(example(1))), leaf)[0]

    for rest in ("bucket", "renormalised"):
        # with all tokens listed the empty bucket has mass 0, whatever its advantage
        torch.testing.assert_close(gradient(rest, 1.5), gradient(rest, 0.0), atol=1e-12, rtol=0)
    if top < V:
        assert (gradient("dropped", 1.5) - gradient("dropped", 0.0)).abs().max() > 1e-3


def test_equal_teachers_give_no_advantage() -> None:
    student, teacher = logits_of(28, 1).requires_grad_(), logits_of(29, 1)
    objective = ADPA(ADPAConfig(nll_weight=0.0, states="responses"))
    loss = loss_of(objective, scored(student, teacher, 4, teacher), feedback_of(example(1)))
    assert loss.item() == 0
    loss.backward()
    assert student.grad is not None and student.grad.abs().max() < 1e-15


def test_expected_advantages_are_the_divergences_between_the_teachers() -> None:
    """E_ref[A] = -KL(ref || dpo) and E_dpo[A] = KL(dpo || ref): a student equal to either shows them."""
    tuned, before = logits_of(30, 1), logits_of(31, 1)
    objective = ADPA(ADPAConfig(nll_weight=0.0, states="responses", floor=1e-30))

    def expected(student: Tensor) -> float:
        return -loss_of(objective, scored(student, tuned, reference=before), feedback_of(example(1))).item()

    assert expected(before) == pytest.approx(-mean_over_tokens(full_kl(before, tuned)).item(), abs=1e-10)
    assert expected(tuned) == pytest.approx(mean_over_tokens(full_kl(tuned, before)).item(), abs=1e-10)


def test_the_floor_bounds_advantages() -> None:
    """A token that the reference finds impossible has the advantage log p_dpo - log floor, not infinity."""
    student = torch.zeros(1, T, V, dtype=torch.float64)
    tuned = torch.zeros_like(student)
    before = torch.zeros_like(student)
    before[..., 0] = -100.0
    loss = loss_of(
        ADPA(ADPAConfig(nll_weight=0.0, states="responses", floor=1e-3)),
        scored(student, tuned, reference=before),
        feedback_of(example(1)),
    )
    first = -math.log(V) - math.log(1e-3)
    others = -math.log(V) + math.log(V - 1)
    assert -loss.item() == pytest.approx((first + (V - 1) * others) / V, abs=1e-9)


def test_adpa_without_a_second_teacher_and_any_without_a_first_say_what_is_missing() -> None:
    student, teacher = logits_of(32), logits_of(33)
    with pytest.raises(TrainingError, match=r"objective\.teacher\.reference"):
        ADPA()(scored(student, teacher), {}, all_responses())  # type: ignore[arg-type]
    plain = scored(student, teacher)
    with pytest.raises(TrainingError, match=r"objective\.teacher"):
        GKD()(Scores(plain.log_probs, plain.mask, plain.kind), {}, all_responses())  # type: ignore[arg-type]


def test_a_small_rest_keeps_its_digits_and_an_empty_one_is_no_mass() -> None:
    """The rest is summed, not subtracted from 1: exp(-30) would vanish beside 1 in float32."""
    logits = torch.tensor([[0.0, -30.0, -31.0]])
    found = reduce_logits(
        logits, torch.tensor([0]), torch.ones(1), target_ids=torch.tensor([[0]]), target_values=torch.ones(1, 1)
    )  # type: ignore[arg-type]
    assert found["target_rest"].item() == pytest.approx(math.log(math.exp(-30) + math.exp(-31)), rel=1e-6)
    leaf = torch.randn(2, 5, requires_grad=True)
    everything = reduce_to_likeliest(leaf, None, 5)
    assert everything["log_probs"][:, -1].exp().eq(0).all() and torch.isfinite(everything["log_probs"]).all()
    everything["log_probs"].exp().sum().backward()
    assert leaf.grad is not None and leaf.grad.abs().max() < 1e-6  # probabilities sum to 1 whatever the logits


def test_the_likeliest_are_the_largest_in_order_and_sum_to_one_with_the_rest() -> None:
    logits = torch.randn(6, 9)
    found = reduce_to_likeliest(logits, None, 4)
    assert (found["log_probs"][:, :4].diff() <= 0).all()
    torch.testing.assert_close(found["log_probs"].exp().sum(-1), torch.ones(6))
    again = reduce_to_likeliest(logits, found["ids"], 4)
    assert torch.equal(again["log_probs"], found["log_probs"])
