"""AlignGPT on tiny-vlm: a caption costs less under the level of its own fit to the picture than under the other levels.

CLIP ranks captions of uneven truth into eight levels; the recipe `image/aligngpt-pretrain` trains the levels' embeddings and the
projector. Judged on captions of held-out pictures, which are noisy in their own way; intervals are over pictures.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from dataclasses import asdict, replace
from pathlib import Path

import torch
from ledger import Proof, options

from polyalign.assets import resolve_dataset
from polyalign.cache import cache_folder
from polyalign.config import load_recipe
from polyalign.encoders import CachedEncoder, build_encoder
from polyalign.evaluation.intervals import bootstrap
from polyalign.evaluation.levels import LEVEL, add_levels
from polyalign.records.dataset import ExampleDataset
from polyalign.records.samples import Sample
from polyalign.training.config import Slot, SourceConfig
from polyalign.training.run import train
from polyalign_image.alignment_levels import AlignmentLevelsPolicy, build
from polyalign_image.config import AlignmentLevelsConfig

LEVELS, BATCH = 8, 64


def costs(policy: AlignmentLevelsPolicy, samples: list[Sample], level: int) -> list[float]:
    """Return the nats a token of each caption under a level."""
    given = [replace(sample, conditions={**sample.conditions, LEVEL: level}) for sample in samples]
    found: list[float] = []
    for start in range(0, len(given), BATCH):
        scores = policy(policy.collate(given[start : start + BATCH]))
        found += (-scores.reduced("mean")[:, 0]).tolist()
    return found


def main() -> None:
    smoke = options(__doc__).smoke
    proof = Proof("aligngpt-levels", "held-out captions cost less under their own level than under the mean of the others", smoke)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        encoder = CachedEncoder(build_encoder(Slot(name="clip")), cache_folder() / "embeddings")
        files = {split: folder / f"{split}.jsonl" for split in ("train", "test")}
        for split, file in files.items():
            add_levels(resolve_dataset("dataset:emoji-captions"), f"noisy.{split}", file, encoder, LEVELS)
        changed = [f"data.train.0.path={files['train']}"] + ["training.steps=2"] * smoke
        train(load_recipe("image/aligngpt-pretrain", changed), folder / "run")
        model, kept = str(folder / "run/model"), {"language": "frozen", "projector": "full"}
        policy = build(AlignmentLevelsConfig(base=model, stage="pretrain", max_length=256, max_response=64, **kept))
        data = ExampleDataset([SourceConfig(path=str(files["test"]), limit=48 if smoke else None)], "sft")
        samples = [sample for index in range(len(data)) for sample in data[index].samples]
        with torch.no_grad():
            by_level = [costs(policy.eval(), samples, level) for level in range(LEVELS)]
    own, gains = [], defaultdict(list)
    for number, sample in enumerate(samples):
        level = int(sample.conditions[LEVEL])
        others = [by_level[other][number] for other in range(LEVELS) if other != level]
        own.append(by_level[level][number])
        gains[sample.prompt].append(sum(others) / len(others) - own[-1])
    gain = bootstrap([sum(values) / len(values) for values in gains.values()])
    better = sum(value > 0 for values in gains.values() for value in values) / len(samples)
    proof.settle(gain.low > 0, own=sum(own) / len(own), others_less_own=asdict(gain), better_share=better, captions=len(samples))


if __name__ == "__main__":
    main()
