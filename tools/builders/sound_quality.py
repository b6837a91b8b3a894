"""Reward models on 21,924 comparisons by 40 listeners: ``python tools/builders/sound_quality.py FOLDER OUT.json``.

SoundQuality is in the Debian package r-cran-psychotools (GPL; fetched by name into FOLDER, never shipped). Reading it needs
``pip install rdata``. Two questions: does our Bradley-Terry agree with choix, an independent fit; and do K prototypes (PAL-A)
predict held-out listeners better than one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import choix
import numpy as np
import torch

from polyalign.evaluation.reward_models import resampled
from polyalign.objectives.base import Edges
from polyalign.objectives.reward_modeling.base import Attachment
from polyalign.objectives.reward_modeling.bradley_terry import BradleyTerry
from polyalign.objectives.reward_modeling.pal import PALA
from polyalign.objectives.reward_modeling_config import PALAConfig
from polyalign.policies.base import Scores

PACKAGE = "r-cran-psychotools"
INSIDE = "usr/lib/R/site-library/psychotools/data/SoundQuality.rda"
FOLDS, FEW = 4, 20  # held out listeners in four turns; comparisons that a newcomer is known by
Votes = list[tuple[str, int, int]]  # listener, better mode, worse mode


def fetch(folder: Path) -> Path:
    """Download and unpack the package by its name; return the data file."""
    target = folder / INSIDE
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", PACKAGE], cwd=folder, check=True)
        (archive,) = folder.glob(f"{PACKAGE}_*.deb")
        subprocess.run(["dpkg-deb", "-x", str(archive), str(folder)], check=True)
    return target


def read(path: Path) -> tuple[list[str], Votes]:
    """Return the names of the eight modes and every judgement.

    +1 prefers the first of a pair; pairs come as (1, 2), (1, 3), (2, 3), (1, 4) ...
    """
    import rdata
    from rdata.conversion import DEFAULT_CLASS_MAP

    def as_it_is(value: Any, attributes: Any) -> tuple[Any, Any]:
        return value, attributes

    classes = {**DEFAULT_CLASS_MAP, "paircomp": as_it_is, "data.frame": as_it_is}
    table, _ = rdata.conversion.convert(rdata.parser.parse_file(path), constructor_dict=classes)["SoundQuality"]
    answers, about = table["preference"]
    modes = [str(label) for label in about["labels"]]
    pairs = sorted(combinations(range(len(modes)), 2), key=lambda pair: (pair[1], pair[0]))
    votes = []
    for listener, row in zip(table["id"], np.asarray(answers), strict=True):
        for (first, second), answer in zip(pairs, row, strict=True):
            if answer in (1, -1):
                votes.append((str(listener), first, second) if answer == 1 else (str(listener), second, first))
    return modes, votes


def tensors(modes: int, votes: Votes) -> tuple[Scores, Edges]:
    """Each mode is one sample with a feature of its own; each judgement is an edge."""
    better, worse = (torch.tensor([vote[side] for vote in votes]) for side in (1, 2))
    one = torch.ones(len(votes), dtype=torch.float64)
    names = tuple(vote[0] for vote in votes)
    edges = Edges(better, worse, one, 0 * one, torch.arange(len(votes)), one < 0, ("overall",) * len(votes), names)
    mask = torch.zeros(modes, 1, 0, dtype=torch.bool)
    hidden = torch.eye(modes, dtype=torch.float64)
    return Scores(torch.zeros(modes, 1, 0), mask, torch.zeros(modes, 0).long(), {"hidden": hidden}), edges


def attached(model: Any, modes: int, votes: Votes) -> Any:
    model.load_attachment(Attachment({"hidden": modes}, tuple(sorted({vote[0] for vote in votes}))))
    return model.double()


def against_choix(modes: list[str], votes: Votes) -> dict[str, Any]:
    """Fit both to convergence; return strengths (mean 0) and the largest difference."""
    scores, edges = tensors(len(modes), votes)
    model = attached(BradleyTerry(), len(modes), votes)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model.losses(model.head_margins(scores, edges)).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    ours = model.rewards(scores).detach().numpy()
    theirs = choix.ilsr_pairwise(len(modes), [(better, worse) for _, better, worse in votes], alpha=0.0)
    ours, theirs = ours - ours.mean(), theirs - theirs.mean()
    return {
        "modes": modes,
        "ours": ours.round(6).tolist(),
        "choix": theirs.round(6).tolist(),
        "largest_difference": float(np.abs(ours - theirs).max()),
    }


def pal(modes: list[str], votes: Votes, prototypes: int, steps: int = 300) -> dict[str, Any]:
    """Train on three quarters of the listeners; know each of the others by FEW comparisons; predict the rest of theirs."""
    listeners = sorted({vote[0] for vote in votes})
    draw = np.random.default_rng(0)
    order = draw.permutation(len(listeners))
    hits, owners = [], []
    for fold in range(FOLDS):
        out = {listeners[number] for number in order[fold::FOLDS]}
        seen = [vote for vote in votes if vote[0] not in out]
        model = attached(PALA(PALAConfig(prototypes=prototypes, dimension=4)), len(modes), seen)
        counts: dict[tuple[str, int, int], int] = {}
        for vote in seen:
            counts[vote] = counts.get(vote, 0) + 1
        scores, edges = tensors(len(modes), list(counts))
        weight = torch.tensor(list(counts.values()), dtype=torch.float64)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
        for _ in range(steps):
            loss = (weight * model.losses(model.head_margins(scores, edges))).sum() / weight.sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        for listener in sorted(out):
            own = [vote for vote in votes if vote[0] == listener]
            own = [own[number] for number in draw.permutation(len(own))]
            model.adapt(listener, *tensors(len(modes), own[:FEW]), steps=100)
            with torch.no_grad():
                margins = model.head_margins(*tensors(len(modes), own[FEW:]))
            hits += ((torch.sign(margins) + 1) / 2).tolist()
            owners += [listener] * len(margins)
    found = np.array(hits)
    interval = resampled(lambda at: float(found[at].mean()), np.arange(len(found)), np.array(owners))
    return {"prototypes": prototypes, "comparisons": len(found), "accuracy": vars(interval)}


def main(folder: Path, out: Path) -> None:
    modes, votes = read(fetch(folder))
    result = {
        "judgements": len(votes),
        "listeners": len({vote[0] for vote in votes}),
        "bradley_terry": against_choix(modes, votes),
    }
    print(json.dumps(result, indent=1), flush=True)
    result["pal"] = []
    for prototypes in (1, 2, 3, 4):
        result["pal"].append(pal(modes, votes, prototypes))
        print(result["pal"][-1], flush=True)
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
