"""Builds datasets/cartpole-episodes: two scripted episodes of CartPole-v1 per starting state, ranked by how long the pole stood.

A script pushes towards where the pole falls, judging angle and angular velocity by weights drawn anew for every episode, and
takes a random action now and then. Deterministic: the same versions of gymnasium and numpy give the same bytes.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import torch

from polyalign.records.parquet import write_parquet
from polyalign.records.schema import Provenance, Record
from polyalign.records.store import MediaStore
from polyalign_action.environments import Spaces, open_environment, play
from polyalign_action.episodes import record_of
from polyalign_action.tasks import Task
from polyalign_action.trajectory import Trajectory

ENVIRONMENT, LONGEST = "CartPole-v1", 200
SPLITS = {"train": range(0, 192), "test": range(1000, 1048)}  # seeds of the environment


def scripted(seed: int, number: int) -> Trajectory:
    """Return the episode of one script from one start, cut after `LONGEST` steps."""
    draw = random.Random(f"{seed} {number}")
    careless, watched = draw.uniform(0.0, 0.4), draw.uniform(-0.2, 1.0)

    def act(seen: torch.Tensor, numbers: object, step: int) -> torch.Tensor:
        action = int(seen[0, 2] + watched * seen[0, 3] > 0)
        return torch.tensor([draw.randint(0, 1) if draw.random() < careless else action])

    with closing(open_environment(ENVIRONMENT)) as environment:
        (episode,) = play([environment], [seed], [LONGEST], Spaces.of(environment), act)
    return episode


def records(seeds: range, store: MediaStore) -> Iterator[Record]:
    provenance = Provenance(source="tools/builders/cartpole_episodes.py", method="rule: the environment's own return")
    for seed in seeds:
        pair = [scripted(seed, number) for number in range(2)]
        record = record_of(f"cartpole-{seed}", Task(ENVIRONMENT, seed), pair, store.add)
        yield record.model_copy(update={"provenance": provenance, "licence": "Apache-2.0"})


def main() -> None:
    folder = Path(__file__).resolve().parents[2] / "datasets" / "cartpole-episodes"
    folder.mkdir(exist_ok=True)
    for split, seeds in SPLITS.items():
        with tempfile.TemporaryDirectory() as place:
            store = MediaStore(place)
            found = list(records(seeds, store))
            write_parquet(folder / f"{split}.parquet", found, store)
        lengths = sorted(int(rating.value) for record in found for rating in record.feedback if rating.type == "rating")
        print(f"{split}: {len(found)} records; steps: median {lengths[len(lengths) // 2]}, longest {lengths[-1]}")


if __name__ == "__main__":
    sys.exit(main())
