"""One run of DPO on pairs of words, pictures and speech makes `zoo:tiny-any` keep to the right thing in all six directions."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ledger import ROOT, Proof, options
from PIL import Image, ImageDraw
from six_directions import ceiling

from polyalign.assets import resolve_model
from polyalign.config import load_recipe
from polyalign.evaluation.intervals import bootstrap, paired_gain
from polyalign.records.files import open_file, records_of
from polyalign.records.schema import Record
from polyalign.training.report.samples import kept
from polyalign.training.run import train
from polyalign_any_to_any.media.base import open_tokenizer
from polyalign_any_to_any.policy import MEDIA_FOLDER
from polyalign_any_to_any.shipped import emoji_any

CLAIM = (
    "before alignment each of the six directions is above chance (the 95 % interval of the right things is above 1/32); after "
    "one run on mixed pairs the right things of each direction gain, the interval of the paired gain being above 0"
)
CHANCE = 1 / 32
JUDGES = ["{name: right_thing}", f"{{name: '{Path(__file__).parent / 'six_directions.py'}:heard_by_pocketsphinx'}}"]
ARMS = {  # the recipe, and what its two terms do alone
    "the recipe": (),
    "DPO alone": ("objective={name: dpo, beta: 1}",),
    "imitation alone": ("objective={name: sft}", "reference={cache: false}"),
}
SMOKE = ("report.prompts=12", "training.batch_size=2", "training.checkpoint.keep_best=false")
FOLDER = ROOT / "docs" / "proofs" / "tiny-any"
SHOWN = ("dog", "fox", "frog", "whale", "rose", "banana", "rocket", "guitar", "owl", "crab", "umbrella", "watermelon")
SPOKEN = ("dog", "banana", "rocket", "umbrella")


def by_direction(records: Sequence[Record], before: Any, after: Any) -> dict[str, dict[str, Any]]:
    """Return intervals of each direction, over its prompts, and apart of the things that preferences spoke of and did not."""
    found: dict[str, dict[str, Any]] = {}
    for direction in dict.fromkeys(str(record.group) for record in records):
        rows = [at for at, record in enumerate(records) if record.group == direction]
        kinds = {"": rows} | {
            f", {tag} things": [at for at in rows if tag in records[at].tags] for tag in ("preferred", "held-out")
        }
        for kind, chosen in kinds.items():
            if chosen:
                first, second = before[chosen], after[chosen]
                found[f"{direction}{kind}"] = {
                    "before": vars(bootstrap(first)), "after": vars(bootstrap(second)), "gain": vars(paired_gain(first, second)),
                }  # fmt: skip
    return found


def keep_media(records: Sequence[Record], media: Any, run: Path, samples: int) -> None:
    """Put a sheet of pictures and some clips beside the numbers: first answers, before and after, whatever they are."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    rows = kept(run)
    sheet = Image.new("RGB", (100 + 68 * len(SHOWN), 68 * 4 + 28), "white")
    asked = {(str(one.group), str(one.conditions["answer"])): at for at, one in reversed(list(enumerate(records)))}
    lines = ["said.txt: the first answer to the first question about each thing, before and after"]
    for line, direction in enumerate(("text-to-image", "audio-to-image")):
        for number, when in enumerate(("before", "after")):
            top = 68 * (2 * line + number)
            ImageDraw.Draw(sheet).text((2, top + 20), f"{direction}\n{when}", fill="black")
            for column, name in enumerate(SHOWN):
                answer = rows[when][samples * asked[direction, name]][0]
                if answer.get("modality") == "image":
                    picture = Image.open(answer["file"]).resize((64, 64), Image.Resampling.NEAREST)
                    sheet.paste(picture, (100 + 68 * column, top))
    for column, name in enumerate(SHOWN):
        ImageDraw.Draw(sheet).text((104 + 68 * column, 68 * 4 + 10), name, fill="black")
    sheet.save(FOLDER / "pictures.png", optimize=True)
    for direction in ("text-to-audio", "image-to-audio"):
        for name in SPOKEN:
            for when in rows:
                answer = rows[when][samples * asked[direction, name]][0]
                if answer.get("modality") == "audio":
                    (FOLDER / f"{direction}-{name}-{when}.flac").write_bytes(Path(answer["file"]).read_bytes())
    for direction in ("image-to-text", "audio-to-text"):
        for name in SHOWN:
            said = (f"{when} {rows[when][samples * asked[direction, name]][0].get('text')!r}" for when in ("before", "after"))
            lines.append(f"{direction}, {name}: {', '.join(said)}")
    (FOLDER / "said.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    smoke = options(__doc__).smoke
    proof, file = Proof("tiny-any", CLAIM, smoke), open_file(emoji_any() / "questions.jsonl")
    asked: dict[Any, Record] = {}  # the first record of each prompt; those of text are the same for every answer
    for record in records_of(file):
        asked.setdefault(record.prompt, record)
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for arm, changes in ARMS.items():
        with tempfile.TemporaryDirectory() as place:
            judges = f"report.rewards=[{', '.join(JUDGES if not changes else JUDGES[:1])}]"
            resolved = load_recipe("any-to-any/dpo-tiny-any", [*(SMOKE if smoke else ()), judges, *changes])
            run = train(resolved, Path(place) / "run", max_steps=1 if smoke else None)
            records, samples = [asked[tuple(prompt)] for prompt in run.prompts], resolved.recipe.report.samples_per_prompt
            if not changes and not smoke:
                keep_media(records, file.media, run.folder, samples)
        for judged in run.judgements:
            values = (np.reshape(one, (len(records), samples)) for one in (judged.before_values, judged.after_values))
            found[arm if judged is run.judgements[0] else "pocketsphinx"] = by_direction(records, *values)
    right, heard = found[next(iter(ARMS))], found.pop("pocketsphinx")
    directions = {name: numbers for name, numbers in right.items() if "," not in name}
    model = Path(resolve_model("zoo:tiny-any"))
    tokenizers = {modality: open_tokenizer(model / MEDIA_FOLDER / modality) for modality in ("image", "audio")}
    proof.settle(
        len(directions) == 6
        and all(numbers["before"]["low"] > CHANCE and numbers["gain"]["low"] > 0 for numbers in directions.values()),
        prompts={name: sum(str(record.group) == name for record in records) for name in directions},
        answers_per_prompt=samples,
        chance=CHANCE,
        right_things=found,
        pocketsphinx={name: numbers for name, numbers in heard.items() if name.endswith("to-audio")},
        ceiling=ceiling(list(asked.values())[:: 24 if smoke else 1], file.media, tokenizers),
    )


if __name__ == "__main__":
    main()
