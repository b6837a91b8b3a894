"""When contenders agree: outcomes and gradients within TOLERANCE of TRL's, and each picture encoded as often as promised."""

from __future__ import annotations

from typing import Any

from torch import Tensor

TOLERANCE = 1e-4
Outcome = dict[str, Tensor]  # what has to agree after a step: the loss, log-probabilities


def outcome_differences(mine: list[Outcome], theirs: list[Outcome]) -> dict[str, float]:
    """Return, per outcome, the largest difference over all steps, relative to the larger of 1 and TRL's largest entry."""
    found: dict[str, float] = {}
    for one, other in zip(mine, theirs, strict=True):
        for name, value in other.items():
            if one[name].shape != value.shape:
                raise RuntimeError(f"{name} has shape {tuple(one[name].shape)}, TRL's has {tuple(value.shape)}")
            difference = float((one[name] - value).abs().max() / max(1.0, float(value.abs().max())))
            found[name] = max(found.get(name, 0.0), difference)
    return found


def gradient_difference(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Return the largest difference of any entry in the first step, relative to TRL's largest entry of all."""
    if mine.keys() != theirs.keys():
        odd = sorted(mine.keys() ^ theirs.keys())
        raise RuntimeError(f"gradients exist on one side only, for {len(odd)} parameters: {', '.join(odd[:4])}")
    if not theirs:
        return 0.0
    largest = max(float(value.abs().max()) for value in theirs.values())
    return max(float((mine[name] - theirs[name]).abs().max()) for name in theirs) / largest


def problems(result: dict[str, Any]) -> list[str]:
    """Return what is wrong with one measured shape and mode, a sentence for each finding; none if all agree."""
    found = []
    for name, seen in result["contenders"].items():
        where = f"{result['shape']}, {result['mode']}, {name}"
        differences = {**seen["outcome differences"], "gradient": seen["gradient difference"]}
        for what, value in differences.items():
            if not value <= TOLERANCE:
                found.append(f"{where}: {what} differs from TRL's by {value:.1e}, more than {TOLERANCE}")
        passes, allowed = seen["pictures through the tower per prompt"], seen["pictures allowed"]
        if allowed is not None and passes != allowed:
            found.append(f"{where}: a picture went through the tower {passes:g} times per step, expected {allowed}")
    return found
