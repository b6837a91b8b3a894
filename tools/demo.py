"""The main job: align zoo:tiny-sd to one drawing style, by DPO on pairs and by InstructEngine on grids, and judge both.

Run by ``python3 tools/dev.py demo``. Writes runs/demo/{dpo,instruct-engine}/ (report.html, model, model card), runs/demo/
before-after.png and runs/demo/summary.json, and prints what the judges say and which goals below were met. With ``--strict`` a
missed goal is exit status 1.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from polyalign.config import load_recipe
from polyalign.records.schema import text_of
from polyalign.training import run
from polyalign.training.report.samples import kept

RECIPES = {"dpo": "text-to-image/dpo-emoji", "instruct-engine": "text-to-image/instruct-engine-emoji"}
SHOWN, CELL = 12, 96


def goals(judgements: dict[str, dict]) -> dict[str, bool]:
    """The demo's promises, each checked on the judges' numbers (intervals are 95 % over held-out prompts)."""
    style, retrieval = judgements["style_rate"], judgements["caption_retrieval"]
    return {
        "style-B rate after is at least 0.90": style["after"]["mean"] >= 0.90,
        "lower bound of the paired gain is above 0.25": style["gain"]["low"] > 0.25,
        "caption retrieval is within 5 points of before": retrieval["gain"]["mean"] >= -0.05,
    }


def draw_sheet(columns: dict[str, list[Any]], prompts: dict[int, str], out: Path) -> None:
    """Draw one row per prompt (by the number of its first sample): before, and after each objective."""
    titles = list(columns)
    font = ImageFont.load_default(13)
    half = (len(prompts) + 1) // 2
    width = 150 + CELL * len(titles)
    sheet = Image.new("RGB", (2 * width, 24 + CELL * half), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (sample, prompt) in enumerate(prompts.items()):
        left, top = (number // half) * width, 24 + (number % half) * CELL
        draw.multiline_text((left + 8, top + CELL // 2 - 10), prompt.replace(" ", "\n", 1), font=font, fill="black")
        for column, title in enumerate(titles):
            if top == 24:
                draw.text((left + 150 + column * CELL + 4, 6), title, font=ImageFont.load_default(12), fill="black")
            with Image.open(columns[title][sample][0]["file"]) as picture:
                sheet.paste(
                    picture.convert("RGB").resize((CELL - 8, CELL - 8), Image.Resampling.BICUBIC),
                    (left + 154 + column * CELL, top + 4),
                )
    sheet.save(out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--max-steps", type=int, help="a shorter run, to try things out")
    parser.add_argument("--strict", action="store_true", help="exit with status 1 if a goal is missed")
    options = parser.parse_args()
    if options.out.exists():
        print(f"replacing {options.out}")
        shutil.rmtree(options.out)
    summary: dict[str, dict] = {}
    runs = {}
    for name, recipe in RECIPES.items():
        folder = options.out / name
        if runs:  # the starting model is the same: its pictures need not be drawn again
            shutil.copytree(next(iter(runs.values())).folder / "samples" / "before", folder / "samples" / "before")
        began = time.perf_counter()
        runs[name] = run.train(load_recipe(recipe), folder, max_steps=options.max_steps)
        judgements = {judgement["name"]: judgement for judgement in json.loads((folder / "judgements.json").read_text())}
        seconds = sum(row.get("time/seconds", 0.0) for row in metrics(folder))
        summary[name] = {
            "judgements": judgements,
            "goals": goals(judgements),
            "seconds": time.perf_counter() - began,
            "training_seconds": seconds,
        }

    resolved = load_recipe(str(runs["dpo"].folder))
    per_prompt = resolved.recipe.report.samples_per_prompt
    asked = runs["dpo"].prompts
    spread = [place * len(asked) // SHOWN for place in range(SHOWN)]  # from every group of emoji, not the first twelve faces
    prompts = {place * per_prompt: text_of(asked[place][-1].parts) for place in spread}
    drawn = {name: kept(run.folder) for name, run in runs.items()}
    columns = {"before": drawn["dpo"]["before"]} | {name: both["after"] for name, both in drawn.items()}
    draw_sheet(columns, prompts, options.out / "before-after.png")
    (options.out / "summary.json").write_text(json.dumps(summary, indent=1))
    missed = tell(summary, options.out)
    return 1 if missed and options.strict else 0


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def tell(summary: dict[str, dict], out: Path) -> int:
    def interval(value: dict) -> str:
        return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"

    missed = 0
    for name, result in summary.items():
        print(f"\n{name}: {result['training_seconds']:.0f} s of training, {result['seconds']:.0f} s in all")
        for judge, values in result["judgements"].items():
            before, after, gain = (interval(values[key]) for key in ("before", "after", "gain"))
            print(f"  {judge}: before {before}, after {after}, gain {gain}")
            for key, note in values["notes"].items():
                print(f"    {key}: {note}")
        for goal, met in result["goals"].items():
            print(f"  {'met   ' if met else 'MISSED'} {goal}")
            missed += not met
    print(f"\nlook at {out / 'before-after.png'} and {out / 'dpo' / 'report.html'}")
    return missed


if __name__ == "__main__":
    sys.exit(main())
