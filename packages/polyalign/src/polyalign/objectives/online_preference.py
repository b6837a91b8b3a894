"""DPO on the policy's own responses, ranked by a reward at every step."""

from __future__ import annotations

from polyalign.objectives.config import PairwiseConfig
from polyalign.objectives.online_config import OnlineDPOConfig
from polyalign.objectives.pairwise import DPO


class OnlineDPO(DPO):
    """Online DPO (Guo et al. 2024, arXiv 2402.04792, with a reward as the judge): `DPO` on the best and the worst of each
    prompt's responses, or on all that differ (``online.pairs``). Equal rewards prefer nothing."""

    needs = frozenset({"reference", "edges", "rollouts"})

    def __init__(self, config: PairwiseConfig | None = None) -> None:
        super().__init__(config or OnlineDPOConfig())
