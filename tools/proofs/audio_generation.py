"""GRPO on codec tokens: a rule that listens for notes makes a tiny MusicGen play tunes that rise."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ledger import ROOT, Proof, options, over_time

from polyalign.config import load_recipe
from polyalign.rewards.base import Judged
from polyalign.training.report.samples import kept
from polyalign.training.run import Run, train
from polyalign.training.tracking import read_metrics
from polyalign_audio.modality import AudioModality, Clip
from polyalign_audio.tunes import TuneRule

CLAIM = (
    "GRPO makes tunes rise, for combinations of words that it was not trained on: the share of rising steps grows, its 95 % "
    "interval above 0, and the words of the prompts are heard as before, to within 0.1"
)
SMOKE = ("report.samples_per_prompt=1", "training.eval_batches=1", "online.samples_per_prompt=2", "training.batch_size=2")
KEPT = 4  # tunes to listen to, before and after
FOLDER = ROOT / "docs" / "proofs" / "audio-generation"


def judged_tunes(run: Run, each: int, smoke: bool) -> dict[str, float]:
    """Return the share of the prompts' own words heard in the report's tunes, before and after training; keep the first tune of
    every third prompt beside the numbers, and draw their spectrograms."""
    first: dict[str, list[Clip]] = {}
    heard: dict[str, float] = {}
    for when, rows in kept(run.folder).items():
        files = [Path(row[0]["file"]) for row in rows]
        clips = [AudioModality().decode(path.read_bytes()) for path in files]
        items = [Judged(run.prompts[number // each], clip) for number, clip in enumerate(clips)]
        heard[when] = round(sum(TuneRule().score(items)) / len(items), 3)
        first[when] = clips[:: 3 * each][:KEPT]
        if not smoke:
            FOLDER.mkdir(parents=True, exist_ok=True)
            for number, path in enumerate(files[:: 3 * each][:KEPT]):
                (FOLDER / f"{when}-{number}.flac").write_bytes(path.read_bytes())
    if not smoke:
        draw(first, FOLDER / "spectrograms.png")
    return heard


def draw(clips: dict[str, list[Clip]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(KEPT, 2, figsize=(7, 6), sharex=True, sharey=True, layout="constrained")
    for column, when in enumerate(("before", "after")):
        axes[0, column].set_title(when)
        for row, clip in enumerate(clips[when]):
            axes[row, column].specgram(clip.samples + 1e-4, NFFT=256, noverlap=192, Fs=clip.rate, vmin=-110, cmap="magma")
            axes[row, column].set_ylim(0, 1500)
    figure.supxlabel("seconds")
    figure.supylabel("Hz")
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main() -> None:
    smoke = options(__doc__).smoke
    proof = Proof("audio-generation", CLAIM, smoke)
    with tempfile.TemporaryDirectory() as place:
        resolved = load_recipe("audio/grpo-tunes", SMOKE if smoke else ())
        run = train(resolved, Path(place) / "run", max_steps=1 if smoke else None)
        rows = read_metrics(run.folder / "metrics.jsonl")
        asked = judged_tunes(run, resolved.recipe.report.samples_per_prompt, smoke)
    (judged,) = (judgement for judgement in run.judgements if judgement.name == "tune_rule")
    proof.settle(
        judged.gain.low > 0 and asked["after"] > asked["before"] - 0.1,
        words_of_the_prompts=asked,
        rising={name: str(getattr(judged, name)) for name in ("before", "after", "gain")},
        held_out_over_time=over_time(rows, "eval/reward"),
        over_time=over_time(rows),
    )


if __name__ == "__main__":
    main()
