"""GRPO on codec tokens: a rule that listens for notes makes a tiny MusicGen play the tunes it is asked for."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ledger import ROOT, Proof, options

from polyalign.config import load_recipe
from polyalign.training.run import train
from polyalign.training.tracking import read_metrics
from polyalign_audio.modality import AudioModality

CLAIM = "GRPO raises the share of the asked words that are heard in tunes, for combinations of words not trained on; the interval is above 0"
SMOKE = ("report.samples_per_prompt=1", "training.eval_batches=1", "online.samples_per_prompt=2", "training.batch_size=2")
LISTEN = 4  # tunes kept before and after


def kept_tunes(run: Path, smoke: bool) -> list[str]:
    """Copy the first tunes that the report judged, before and after training, beside the numbers as FLAC; return their names."""
    target = ROOT / "docs" / "proofs" / "audio-generation"
    codec, names = AudioModality(), []
    for when in ("before", "after"):
        files = sorted(path for path in (run / "report" / when).rglob("*") if path.suffix in (".wav", ".flac", ".ogg"))
        for number, path in enumerate(files[:: max(1, len(files) // LISTEN)][:LISTEN]):
            name = f"{when}-{number}.flac"
            names.append(name)
            if not smoke:
                target.mkdir(parents=True, exist_ok=True)
                (target / name).write_bytes(codec.encode(codec.decode(path.read_bytes()), "audio/flac"))
    return names


def main() -> None:
    smoke = options(__doc__).smoke
    proof = Proof("audio-generation", CLAIM, smoke)
    with tempfile.TemporaryDirectory() as place:
        resolved = load_recipe("audio/grpo-tunes", SMOKE if smoke else ())
        run = train(resolved, Path(place) / "run", max_steps=1 if smoke else None)
        rows = read_metrics(run.folder / "metrics.jsonl")
        print(sorted(str(path.relative_to(run.folder)) for path in run.folder.rglob("*") if path.is_file())[:40])
        tunes = kept_tunes(run.folder, smoke)
    (judged,) = (judgement for judgement in run.judgements if judgement.name == "tune_rule")
    proof.settle(
        judged.gain.low > 0,
        tune_rule={name: str(getattr(judged, name)) for name in ("before", "after", "gain")},
        held_out_over_time=[
            {"step": row["step"], "reward": round(row["eval/reward"], 4)} for row in rows if "eval/reward" in row
        ],
        over_time=[{"step": row["step"], "reward": round(row["reward"], 4)} for row in rows if "reward" in row],
        tunes=tunes,
    )


if __name__ == "__main__":
    main()
