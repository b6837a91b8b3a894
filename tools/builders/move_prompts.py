"""Build `dataset:move-prompts`, captions to ask `zoo:tiny-t2v` for: `python3 tools/dev.py data move-prompts`."""

from __future__ import annotations

import json
from pathlib import Path

from moving_shapes import HELD_OUT, THINGS, caption

from polyalign_video.motion import MOVES

TARGET = Path(__file__).resolve().parents[2] / "plugins/video/src/polyalign_video/data/move-prompts"


def record(colour: str, shape: str, move: str) -> dict[str, object]:
    prompt = [{"role": "user", "parts": [{"type": "text", "text": caption(colour, shape, move)}]}]
    candidates = [{"parts": [{"type": "text", "text": "prompt only"}]}]
    return {"id": f"{colour}-{shape}-{move}", "prompt": prompt, "candidates": candidates, "licence": "CC0-1.0"}


def main() -> None:
    TARGET.mkdir(parents=True, exist_ok=True)
    for split, held_out in (("train", False), ("test", True)):
        records = [record(*thing, move) for thing in THINGS if (thing in HELD_OUT) is held_out for move in MOVES]
        (TARGET / f"{split}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
        print(f"{split}: {len(records)} captions")


if __name__ == "__main__":
    main()
