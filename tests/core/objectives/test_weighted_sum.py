"""A weighted sum is its terms, added up: losses, gradients, needs, statistics and state; and what its configuration refuses."""

from __future__ import annotations

import math
import re

import pytest
import torch
from pydantic import ValidationError
from toys.scored import example, feedback_of, gradient, grid, loss_of, pair, scores_of, terms_of

from polyalign.objectives.base import averaged
from polyalign.objectives.bco import BCO
from polyalign.objectives.config import BCOPairConfig, DPOConfig
from polyalign.objectives.pairwise import DPO
from polyalign.objectives.specs import OBJECTIVES
from polyalign.objectives.supervised import SFT
from polyalign.objectives.terms import MPOConfig, WeightedSumConfig
from polyalign.objectives.weighted_sum import WeightedSum
from polyalign.plugins.specs import ObjectiveSpec

POLICY = [[[-1.0, -2.0]], [[-1.5, -0.5, -1.0]], [[-0.5]], [[-3.0, -1.0]]]
REFERENCE = [[[-1.5, -2.1]], [[-1.2, -0.7, -1.4]], [[-0.7]], [[-2.0, -1.0]]]
PAIRS = (pair(weight=2.0), pair(margin=0.25))


def of(*terms: dict) -> WeightedSum:
    return WeightedSum(WeightedSumConfig(terms=terms))


def spec_of(config: WeightedSumConfig) -> ObjectiveSpec:
    return config.declared(next(spec for spec in OBJECTIVES if spec.name == "weighted_sum"))


def test_mpo_is_its_three_losses_weighted_in_value_and_gradient():
    scores, reference, feedback = scores_of(POLICY), scores_of(REFERENCE), feedback_of(*PAIRS)
    loss = loss_of(WeightedSum(MPOConfig()), scores, reference, feedback)
    parts = [(0.8, DPO()), (0.2, BCO()), (1.0, SFT())]
    expected = sum(weight * loss_of(part, scores, reference, feedback) for weight, part in parts)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    torch.testing.assert_close(gradient(loss, scores), gradient(expected, scores), atol=1e-12, rtol=0)


def test_terms_keep_their_own_normalisation_and_are_named_by_objective():
    """SFT divides by 2 + 1 decisions of better responses, DPO by an edge weight of 3; the weight is in the sum."""
    objective = of({"name": "dpo", "weight": 0.5, "beta": 2.0}, {"name": "sft", "weight": 3.0})
    terms = terms_of(objective, scores_of(POLICY), scores_of(REFERENCE), feedback_of(*PAIRS))
    assert {name: term.weight.item() for name, term in terms.items()} == {"dpo/preference": 3.0, "sft/nll": 3.0}
    alone = terms_of(DPO(DPOConfig(beta=2.0)), scores_of(POLICY), scores_of(REFERENCE), feedback_of(*PAIRS))["preference"]
    assert terms["dpo/preference"].sum.item() == pytest.approx(0.5 * alone.sum.item(), abs=1e-12)
    assert terms["sft/nll"].sum.item() == pytest.approx(3.0 * (1.0 + 2.0 + 0.5), abs=1e-12)


def test_the_same_objective_twice_is_numbered():
    objective = of({"name": "dpo", "beta": 1.0}, {"name": "dpo", "beta": 2.0})
    terms = terms_of(objective, scores_of(POLICY), scores_of(REFERENCE), feedback_of(*PAIRS))
    assert list(terms) == ["dpo/preference", "dpo 2/preference"]
    assert terms["dpo/preference"].sum.item() != terms["dpo 2/preference"].sum.item()


def test_needs_scope_and_value_at_the_reference_are_those_of_all_terms_together():
    simple = of({"name": "simpo"}, {"name": "sft"})
    assert (simple.needs, simple.scope, simple.value_at_reference, simple.splittable) == ({"edges"}, "edge", None, True)
    grids = of({"name": "instruct_engine", "weight": 2.0}, {"name": "apo_zero", "weight": 0.5})
    assert (grids.needs, grids.scope) == ({"reference", "edges", "grid"}, "group")
    assert grids.value_at_reference == pytest.approx(2 * 2 * math.log(2) + 0.5)
    batch = of({"name": "bco_pair"}, {"name": "aot_unpaired", "weight": 3.0})
    assert (batch.scope, batch.splittable) == ("batch", True)
    assert batch.statistic_names == ("bco_pair/reward", "bco_pair/compared", "aot_unpaired/values")
    assert batch.value_at_reference == pytest.approx(5 * math.log(2))


def test_a_term_that_must_see_the_whole_window_makes_the_sum_unsplittable():
    class Whole(DPO):
        scope = "batch"

    objective = of({"name": "dpo"}, {"name": "bco_pair"})
    objective.objectives[0] = Whole()
    assert not objective.splittable


def test_statistics_reach_the_term_they_belong_to_and_so_do_observations():
    objective = WeightedSum(MPOConfig())
    scores, references, feedback = scores_of(POLICY), {"reference": scores_of(REFERENCE)}, feedback_of(*PAIRS)
    statistics = averaged(objective.statistics(scores, references, feedback))
    given = objective(scores, references, feedback, statistics)
    found = objective(scores, references, feedback)
    assert {name: term.sum.item() for name, term in given.items()} == {name: term.sum.item() for name, term in found.items()}
    objective.observe(statistics)
    alone = BCO(BCOPairConfig())
    alone.observe(averaged(alone.statistics(scores, references, feedback)))
    assert objective.state_dict()["objectives.1.baseline"].item() == alone.baseline.item() != 0.0


def test_held_out_data_leaves_every_terms_state_alone():
    assert [part.training for part in WeightedSum(MPOConfig()).eval().objectives] == [False] * 3


def test_weights_are_known_before_the_forward_pass():
    objective, scores = WeightedSum(MPOConfig()), scores_of(POLICY)
    weights = objective.weights(scores.mask, scores.kind, feedback_of(*PAIRS))
    assert {name: weight.item() for name, weight in weights.items()} == {
        "dpo/preference": 3.0,
        "bco_pair/preference": 3.0,
        "sft/nll": 3.0,
    }


def test_grids_serve_pairwise_terms_too():
    scores, reference = scores_of(POLICY), scores_of(REFERENCE)
    objective = of({"name": "instruct_engine", "beta": 0.5}, {"name": "dpo", "beta": 0.5})
    terms = terms_of(objective, scores, reference, feedback_of(grid()))
    assert terms["instruct_engine/rows"].sum.item() == pytest.approx(terms["dpo/preference"].sum.item(), abs=1e-12)
    assert (terms["instruct_engine/rows"].weight.item(), terms["dpo/preference"].weight.item()) == (1.0, 2.0)


def test_samples_without_feedback_cost_only_their_likelihood():
    terms = terms_of(WeightedSum(MPOConfig()), scores_of(POLICY[:2]), scores_of(REFERENCE[:2]), feedback_of(example(2)))
    assert {name: term.weight.item() for name, term in terms.items() if term.weight} == {"sft/nll": 5.0}


# configuration


def test_options_are_read_by_the_terms_own_configuration_and_written_with_its_defaults():
    config = WeightedSumConfig(terms=[{"name": "hinge", "weight": 0.25, "beta": 3.0}])
    written = config.model_dump(mode="json")
    assert written["terms"][0] == {
        "name": "hinge", "weight": 0.25, "kind_scale": {}, "beta": 3.0, "reduction": "sum",
        "divergence": "reverse_kl", "alpha": 0.5,
        "margin_from": "record", "margin_scale": 1.0, "weight_from": "record", "aspect_weights": {},
    }  # fmt: skip
    assert WeightedSumConfig.model_validate(written).model_dump(mode="json") == written


@pytest.mark.parametrize(
    ("terms", "problem"),
    [
        ([{"name": "dqo"}], "no objectives named 'dqo'. Did you mean 'dpo'?"),
        ([{"name": "dpo", "betta": 1.0}], "unknown key 'betta' of 'dpo'. Did you mean 'beta'?"),
        ([{"name": "sft", "x": 1}], "unknown key 'x' of 'sft'. Known keys: weight, kind_scale."),
        ([{"name": "dpo", "beta": -1.0}], "greater than 0"),
        ([{"name": "dpo", "weight": 0.0}], "greater than 0"),
        ([{"name": "mpo"}], "'mpo' is a weighted sum itself; write its terms here"),
        ([], "at least 1 item"),
        (
            [{"name": "dpo"}, {"name": "kto"}],
            "no one view of the records gives every term what it needs: dpo reads 'pairs', kto reads 'unpaired'",
        ),
    ],
)
def test_terms_that_cannot_be_are_refused(terms: list[dict], problem: str):
    with pytest.raises(ValidationError, match=re.escape(problem)):
        WeightedSumConfig(terms=terms)


def test_what_is_declared_follows_the_terms():
    spec = spec_of(WeightedSumConfig(terms=[{"name": "orpo"}, {"name": "instruct_engine"}, {"name": "aot"}]))
    assert set(spec.needs) == {"reference", "edges", "grid"}
    assert (spec.scope, spec.view) == ("batch", "grids")
    assert spec.unsupported["continuous"].startswith("orpo: a density")
    assert "2403.07691" in spec.source and "2504.10329" in spec.source
    assert spec_of(WeightedSumConfig(terms=[{"name": "sft"}, {"name": "kto"}])).view == "unpaired"
    assert spec_of(WeightedSumConfig(terms=[{"name": "sft"}])).view == "sft"


@pytest.mark.parametrize("config", [WeightedSumConfig(), MPOConfig()])
def test_the_light_declaration_says_what_the_object_says(config: WeightedSumConfig):
    spec, objective = spec_of(config), WeightedSum(config)
    assert (set(spec.needs), spec.scope) == (objective.needs, objective.scope)
