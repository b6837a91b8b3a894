"""GRPO on codec tokens: a rule that listens for notes makes a tiny MusicGen play the tunes it is asked for."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from ledger import ROOT, Proof, options

from polyalign.config import Resolved, load_recipe
from polyalign.training.run import train
from polyalign.training.tracking import read_metrics
from polyalign_audio.modality import AudioModality, Clip

CLAIM = (
    "GRPO raises the share of the asked words that are heard in tunes, for combinations of words that it was not trained on: the "
    "95 % interval of the gain is above 0"
)
SMOKE = ("report.samples_per_prompt=1", "training.eval_batches=1", "online.samples_per_prompt=2", "training.batch_size=2")
KEPT = 4  # tunes to listen to, before and after
FOLDER = ROOT / "docs" / "proofs" / "audio-generation"


def keep_tunes(run: Path, resolved: Resolved) -> None:
    """Put the first tune of every second prompt beside the numbers, before and after training, and draw their spectrograms."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    each = resolved.recipe.report.samples_per_prompt
    clips: dict[str, list[Clip]] = {}
    for folder in sorted((run / "samples").iterdir()):
        when = folder.name.partition("-")[0]
        for number in range(KEPT):
            ((stored,),) = json.loads((folder / "index.json").read_text())[2 * number * each :][:1]
            data = (folder / stored["file"]).read_bytes()
            (FOLDER / f"{when}-{number}.flac").write_bytes(data)
            clips.setdefault(when, []).append(AudioModality().decode(data))
    draw(clips, FOLDER / "spectrograms.png")


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
        if not smoke:
            keep_tunes(run.folder, resolved)
    (judged,) = (judgement for judgement in run.judgements if judgement.name == "tune_rule")
    proof.settle(
        judged.gain.low > 0,
        tune_rule={name: str(getattr(judged, name)) for name in ("before", "after", "gain")},
        held_out_over_time=[
            {"step": row["step"], "reward": round(row["eval/reward"], 4)} for row in rows if "eval/reward" in row
        ],
        over_time=[{"step": row["step"], "reward": round(row["reward"], 4)} for row in rows if "reward" in row],
    )


if __name__ == "__main__":
    main()
