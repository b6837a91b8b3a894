"""What the proofs on pictures share: run a recipe that asks for a colour, and read what its report judged before and after."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ledger import Proof, over_time

from polyalign.config import load_recipe
from polyalign.training.report.judging import Judgement
from polyalign.training.run import train
from polyalign.training.tracking import read_metrics

LEAST_GAIN = 0.25
SMOKE = ("report.samples_per_prompt=1", "training.eval_batches=1", "online.samples_per_prompt=2")


def proved(name: str, recipe: str, method: str, smoke: bool) -> None:
    """Run the shipped recipe as it is (a smoke run: one round of a few drawings) and settle the claim."""
    claim = f"{method} raises the share of blue by {LEAST_GAIN} or more, in drawings from noise that it was not trained on"
    proof = Proof(name, claim, smoke)
    with tempfile.TemporaryDirectory() as place:
        resolved = load_recipe(recipe, SMOKE if smoke else ())
        run = train(resolved, Path(place) / "run", max_steps=resolved.recipe.online.steps_per_round if smoke else None)
        rows = read_metrics(run.folder / "metrics.jsonl")
    judged = {judgement.name: judgement for judgement in run.judgements}
    evaluated = [row for row in rows if "eval/reward" in row]
    proof.settle(
        judged["colour_rule"].gain.mean >= LEAST_GAIN,
        colour_rule=_numbers(judged["colour_rule"]),
        held_out_clip_score=_numbers(judged["clip_score"]),
        held_out_caption_retrieval=_numbers(judged["caption_retrieval"]),
        held_out_captions=[_row(row) for row in evaluated],
        over_time=over_time(rows),
    )


def _numbers(judgement: Judgement) -> dict[str, Any]:
    return {name: str(getattr(judgement, name)) for name in ("before", "after", "gain")}


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    known = {"step": "step", "eval/reward": "reward", "eval/reward/held_out/clip_score": "clip_score"}
    return {short: round(row[name], 4) for name, short in known.items()}
