"""The declarations say what the classes say, and cost no heavy import."""

from __future__ import annotations

import subprocess
import sys

import pytest

from polyalign.objectives.base import Objective
from polyalign.objectives.specs import OBJECTIVES
from polyalign.records.views import VIEWS

each_spec = pytest.mark.parametrize("spec", OBJECTIVES, ids=lambda spec: spec.name)


def test_names_are_the_users_and_unique():
    names = [spec.name for spec in OBJECTIVES]
    expected = """
        adpa alphapo aot aot_unpaired apo_down apo_zero apo_zero_unpaired awm bco_pair bnpo bradley_terry
        bradley_terry_aspects cispo cpl cpl_kl cpo crpo d2o dapo dckd dense_dpo diffusion_kto diffusion_nft discopop dpo
        dr_grpo draft_k dspo exo_pair f_dpo gkd grpo gspo hinge hpsv3 instruct_engine ipo kto ld_dpo mapo mm_dpo
        mpo nca_pair online_dpo orpo pal_a pal_b pickscore plackett_luce pointwise ppo ppo_max pro
        process_reward refl reinforce_pp rloo robust rwr salmon segment_dpo sft sigmoid_norm simpo sppo_hard
        tdpo unlikelihood weak_logconf weak_product weak_xent weighted_sum wpo
    """
    assert sorted(names) == expected.split()


@each_spec
def test_declaration_matches_the_class(spec):
    objective = spec.load()(spec.load_config()())
    assert isinstance(objective, Objective)
    assert set(spec.needs) == objective.needs
    assert spec.scope == objective.scope


@each_spec
def test_view_exists_and_source_cites_a_paper(spec):
    assert spec.view in VIEWS
    assert "arXiv" in spec.source


@each_spec
def test_every_setting_is_described_or_speaks_for_itself(spec):
    plain = {"desirable_weight", "undesirable_weight"}
    fields = spec.load_config().model_fields
    assert [name for name, field in fields.items() if not field.description and name not in plain] == []


def test_declarations_and_configuration_import_no_torch():
    code = (
        "import sys, polyalign.objectives.specs as s\n"
        "[spec.load_config()() for spec in s.OBJECTIVES]\n"
        "assert not {'torch', 'transformers', 'diffusers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
