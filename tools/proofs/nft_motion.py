"""DiffusionNFT: a rule that follows what moves makes a tiny text-to-video model move things as its captions say."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from ledger import ROOT, Proof, options, over_time

from polyalign.config import load_recipe
from polyalign.evaluation.intervals import bootstrap, paired_gain
from polyalign.training.report.samples import kept
from polyalign.training.run import Run, train
from polyalign.training.tracking import read_metrics
from polyalign_video.clip import Clip
from polyalign_video.modality import VideoModality
from polyalign_video.motion import move_of, named_in

sys.path.insert(0, str(ROOT / "tools" / "builders"))
from moving_shapes import thing_in

CLAIM = (
    "DiffusionNFT raises the share of clips that move as their captions say, for things that neither the model nor the training "
    "saw: the gain's 95 % interval lies above 0, and colours and shapes are right as often as before, to within 0.1"
)
SMOKE = ("report.prompts=7", "report.samples_per_prompt=1", "training.eval_batches=1", "online.samples_per_prompt=2")
PICTURE = ROOT / "docs" / "proofs" / "nft-motion.png"
SHOWN = 14  # captions in the picture


def clips_of(run: Run) -> dict[str, list[Clip]]:
    """Return the report's clips, "before" and "after"."""
    codec = VideoModality()
    return {when: [codec.decode(Path(row[0]["file"]).read_bytes()) for row in rows] for when, rows in kept(run.folder).items()}


def right(captions: Sequence[str], clips: Sequence[Clip]) -> dict[str, np.ndarray]:
    """Return what of each caption its clip shows, ``[N]`` of 0 and 1 each: "move", "colour" and "shape", the last two in the
    clip's middle frame."""
    things = [thing_in(torch.from_numpy(clip.frames[len(clip) // 2]).float() / 255) or ("", "") for clip in clips]
    words = [caption.split() for caption in captions]  # a COLOUR SHAPE ...
    return {
        "move": np.array([move_of(clip) == named_in(caption) for caption, clip in zip(captions, clips, strict=True)], float),
        "colour": np.array([thing[0] == word[1] for thing, word in zip(things, words, strict=True)], float),
        "shape": np.array([thing[1] == word[2] for thing, word in zip(things, words, strict=True)], float),
    }


def draw(captions: Sequence[str], clips: Mapping[str, Sequence[Clip]], each: int) -> None:
    """Draw the first clip of every few captions, before and after, frame by frame."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    chosen = np.linspace(0, len(captions) // each - 1, SHOWN).round().astype(int) * each
    figure, axes = plt.subplots(SHOWN, 2, figsize=(9, 0.62 * SHOWN), layout="constrained")
    for column, when in enumerate(("before", "after")):
        axes[0, column].set_title(when, fontsize=9)
        for axis, number in zip(axes[:, column], chosen):
            axis.imshow(np.concatenate(list(clips[when][number].frames), 1), interpolation="nearest")
            axis.set_xticks(np.arange(1, 8) * 32 - 0.5, [""] * 7)
            axis.set_yticks([])
            if column == 0:
                words = captions[number].split()
                label = " ".join(words[:3]) + "\n" + " ".join(words[3:])  # the thing, and below how it moves
                axis.set_ylabel(label, fontsize=7, rotation=0, ha="right", va="center")
    figure.savefig(PICTURE, dpi=80)
    plt.close(figure)


def main() -> None:
    smoke = options(__doc__).smoke
    proof = Proof("nft-motion", CLAIM, smoke)
    with tempfile.TemporaryDirectory() as place:
        resolved = load_recipe("video/nft-motion", SMOKE if smoke else ())
        run = train(resolved, Path(place) / "run", max_steps=resolved.recipe.online.steps_per_round if smoke else None)
        rows = read_metrics(run.folder / "metrics.jsonl")
        clips = clips_of(run)
    each = resolved.recipe.report.samples_per_prompt
    captions = [prompt[-1].parts[0].text for prompt in run.prompts for _ in range(each)]
    shown = {when: right(captions, made) for when, made in clips.items()}
    shares = {}
    for what in ("move", "colour", "shape"):
        before, after = (shown[when][what].reshape(-1, each) for when in ("before", "after"))
        shares[what] = {"before": bootstrap(before), "after": bootstrap(after), "gain": paired_gain(before, after)}
    unharmed = all(shown["after"][what].mean() > shown["before"][what].mean() - 0.1 for what in ("colour", "shape"))
    moves = np.array([named_in(caption) for caption in captions])
    if not smoke:
        draw(captions, clips, each)
    proof.settle(
        shares["move"]["gain"].low > 0 and unharmed,
        captions=len(run.prompts),
        clips_per_caption=each,
        share_right={what: {part: str(value) for part, value in found.items()} for what, found in shares.items()},
        moves_right={
            move: [round(float(shown[when]["move"][moves == move].mean()), 3) for when in ("before", "after")]
            for move in dict.fromkeys(moves.tolist())
        },
        rewards={
            judged.name: {part: str(getattr(judged, part)) for part in ("before", "after", "gain")} for judged in run.judgements
        },
        held_out_over_time=over_time(rows, "eval/reward"),
        over_time=over_time(row for row in rows if row["step"] % resolved.recipe.online.steps_per_round == 1),  # a row a round
    )


if __name__ == "__main__":
    main()
