"""A reward model for motion: trained on animated emoji, it prefers held-out ones to the same frozen or shuffled.

Reversed clips are among what it is judged by, and their share is given apart: it does not tell them from true ones.
The recipe `video/reward-order` trains on the orders of `moving-emoji`. Judged on held-out emoji; intervals are over emoji.
The base is chance: an untrained head gives every clip the same reward. The picture shows held-out clips with their rewards.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

from ledger import ROOT, Proof, options
from PIL import Image, ImageDraw

from polyalign.assets import resolve_dataset
from polyalign.config import load_recipe
from polyalign.evaluation.intervals import bootstrap
from polyalign.records.files import open_file, records_of, split_files
from polyalign.records.modality import decoded
from polyalign.rewards.base import Judged
from polyalign.rewards.config import RewardSlot
from polyalign.training.run import train
from polyalign_video.clip import Clip
from polyalign_video.modality import contact_sheet

NAME, SHOWN, SIDE = "video-order-reward", 6, 48


def held_out(limit: int | None) -> list[tuple[str, dict[str, Clip]]]:
    """Return each held-out emoji with its clips by their order: forward, frozen, and shuffled or reversed."""
    (file,) = (open_file(path) for path in split_files(resolve_dataset("dataset:moving-emoji"), "orders.test"))
    found = []
    for record in list(records_of(file))[:limit]:
        clips = {str(each.conditions["order"]): decoded(each.parts[0].media, file.media) for each in record.candidates}
        found.append((str(record.conditions["name"]), clips))
    return found


def sheet(rows: list[tuple[str, Clip, float]]) -> Image.Image:
    """Return the clips frame by frame, one below the other, each with its name and reward."""
    strips = [contact_sheet(clip, SIDE) for _, clip, _ in rows]
    picture = Image.new("RGB", (max(strip.shape[1] for strip in strips), len(rows) * (SIDE + 14)), "white")
    draw = ImageDraw.Draw(picture)
    for number, ((name, _, value), strip) in enumerate(zip(rows, strips, strict=True)):
        draw.text((2, number * (SIDE + 14)), f"{name}: {value:+.2f}", fill="black")
        picture.paste(Image.fromarray(strip), (0, number * (SIDE + 14) + 14))
    return picture


def main() -> None:
    smoke = options(__doc__).smoke
    proof = Proof(NAME, "on held-out emoji, the interval of the share of broken clips below the true one is above chance", smoke)
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "run"
        train(load_recipe("video/reward-order", ["training.steps=4"] * smoke), run)
        reward = RewardSlot.model_validate({"name": "reward_model", "run": str(run)}).build()
        emoji = held_out(6 if smoke else None)
        values = iter(reward.score([Judged((), clip) for _, clips in emoji for clip in clips.values()]))
    rewards = [{order: next(values) for order in clips} for _, clips in emoji]
    right: dict[str, list[float]] = defaultdict(list)
    shares = []  # of each emoji's broken clips that are below the true one
    for found in rewards:
        wins = {order: float(found["forward"] > value) for order, value in found.items() if order != "forward"}
        shares.append(sum(wins.values()) / len(wins))
        for order, win in wins.items():
            right[order].append(win)
    overall = bootstrap(shares)
    by_order = {order: asdict(bootstrap(values)) | {"clips": len(values)} for order, values in sorted(right.items())}
    if not smoke:
        rows = [
            (f"{name}, {order}", clip, found[order])
            for (name, clips), found in list(zip(emoji, rewards))[:SHOWN]
            for order, clip in sorted(clips.items())
        ]
        sheet(rows).save(ROOT / "docs" / "proofs" / f"{NAME}.png")
    proof.settle(overall.low > 0.5, base=0.5, accuracy=asdict(overall), by_order=by_order, emoji=len(emoji))


if __name__ == "__main__":
    main()
