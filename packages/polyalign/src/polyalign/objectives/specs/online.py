"""Objectives that learn from the policy's own responses, declared. Light: no torch here."""

from __future__ import annotations

from polyalign.plugins.specs import ObjectiveSpec


def _spec(name: str, summary: str, source: str, config: str, needs: tuple[str, ...], target: str = "") -> ObjectiveSpec:
    return ObjectiveSpec(
        name=name,
        summary=summary,
        target=f"polyalign.objectives.{target or 'policy_gradient:PolicyGradient'}",
        config=f"polyalign.objectives.online_config:{config}",
        source=source,
        needs=needs,
        view="prompts",
    )


OBJECTIVES: tuple[ObjectiveSpec, ...] = (
    _spec(
        "grpo",
        "Group Relative Policy Optimization: rewards against those of the prompt's other responses, clipped ratio per decision",
        "Shao et al. 2024, arXiv 2402.03300, eq. 3",
        "GRPOConfig",
        ("rollouts",),
    ),
    _spec(
        "dr_grpo",
        "Dr. GRPO: no division by the group's deviation or by the response's length, so that neither biases",
        "Liu et al. 2025, arXiv 2503.20783, section 3.2",
        "DrGRPOConfig",
        ("rollouts",),
    ),
    _spec(
        "bnpo",
        "GRPO averaged over all decisions of the step: TRL's bnpo, whatever the split",
        "TRL 1.16, loss_type bnpo; on arXiv 2402.03300",
        "BNPOConfig",
        ("rollouts",),
    ),
    _spec(
        "dapo",
        "DAPO: GRPO over all decisions with a higher upper clip; dynamic sampling and soft length limits are set in online",
        "Yu et al. 2025, arXiv 2503.14476, eq. 8",
        "DAPOConfig",
        ("rollouts",),
    ),
    _spec(
        "gspo",
        "Group Sequence Policy Optimization: one ratio per response, the geometric mean over its decisions",
        "Zheng et al. 2025, arXiv 2507.18071, eq. 5",
        "GSPOConfig",
        ("rollouts",),
    ),
    _spec(
        "cispo",
        "CISPO: the capped ratio only weighs log-probabilities, so that clipped decisions still learn",
        "MiniMax 2025, arXiv 2506.13585, eq. 4",
        "CISPOConfig",
        ("rollouts",),
    ),
    _spec(
        "rloo",
        "REINFORCE Leave-One-Out: rewards less a KL penalty, against the mean of the prompt's other responses",
        "Ahmadian et al. 2024, arXiv 2402.14740, section 2",
        "RLOOConfig",
        ("rollouts", "reference"),
    ),
    _spec(
        "reinforce_pp",
        "REINFORCE++: reward still to come at each decision, less KL penalties, whitened over the whole round",
        "Hu 2025, arXiv 2501.03262",
        "ReinforcePPConfig",
        ("rollouts", "reference"),
    ),
    _spec(
        "ppo",
        "Proximal Policy Optimization: advantages against a value head that learns beside the policy",
        "Schulman et al. 2017, arXiv 1707.06347, eq. 7; advantages: arXiv 1506.02438",
        "PPOConfig",
        ("rollouts", "reference", "values"),
        "actor_critic:PPO",
    ),
    _spec(
        "ppo_max",
        "PPO-max: PPO with rewards normalised by all so far and clipped, and the other switches that keep it stable",
        "Zheng et al. 2023, arXiv 2307.04964, section 5",
        "PPOMaxConfig",
        ("rollouts", "reference", "values"),
        "actor_critic:PPO",
    ),
    _spec(
        "online_dpo",
        "DPO on the policy's own responses, ranked by the rewards at every step",
        "Guo et al. 2024, arXiv 2402.04792",
        "OnlineDPOConfig",
        ("rollouts", "reference", "edges"),
        "online_preference:OnlineDPO",
    ),
)
