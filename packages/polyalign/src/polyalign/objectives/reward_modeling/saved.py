"""A trained head on disk: what it was attached to as JSON, its weights as safetensors."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from polyalign.errors import TrainingError
from polyalign.objectives.base import Objective
from polyalign.objectives.reward_modeling.base import Attachment, RewardModel
from polyalign.records.atomic import write_text

SHAPE, WEIGHTS = "reward_head.json", "reward_head.safetensors"


def reward_model_in(objective: Objective) -> RewardModel | None:
    """Return the objective if it is a reward model, or the first reward model among the terms of a weighted sum."""
    return next((module for module in objective.modules() if isinstance(module, RewardModel)), None)


def save_head(model: RewardModel, folder: Path) -> None:
    """Write the head into ``folder``, beside the policy's own files."""
    assert model.attachment is not None, "attach the reward model first"
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    write_text(folder / SHAPE, json.dumps(model.attachment.as_json(), indent=1))


def load_head(model: RewardModel, folder: Path) -> None:
    """Build the head that ``folder`` describes and give it its weights. Raises `TrainingError` where there is none."""
    if not (folder / SHAPE).is_file():
        raise TrainingError(f"{str(folder)!r} holds no {SHAPE}: it is no folder of a finished run that trained a reward model")
    model.load_attachment(Attachment.from_json(json.loads((folder / SHAPE).read_text(encoding="utf-8"))))
    model.load_state_dict(load_file(folder / WEIGHTS))
