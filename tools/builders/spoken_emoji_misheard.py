"""Build the `misheard` files of `datasets/spoken-emoji`: what was said, over what Whisper tiny.en heard instead.

    python3 tools/dev.py data spoken-emoji-misheard    # minutes; needs `polyalign assets install whisper-tiny.en`

The recogniser answers `transcripts.*` greedily; where a word is wrong, its answer is the worse candidate. The better one is
the name written as the recogniser writes: with a capital and a full stop, so that the two differ in their words only.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from polyalign.records.files import open_file, records_of
from polyalign.records.jsonl import write_jsonl
from polyalign.records.samples import Prompt
from polyalign.records.schema import Candidate, Comparison, Provenance, Record, TextPart
from polyalign_audio.config import WhisperConfig
from polyalign_audio.whisper import build
from polyalign_audio.word_accuracy import word_accuracy

TARGET = Path(__file__).resolve().parents[2] / "datasets/spoken-emoji"
BASE, SECONDS, MOST_TOKENS = "asset:whisper-tiny.en", 3, 16


def misheard(path: Path) -> Iterator[Record]:
    """Yield one comparison for each clip of which a word was heard wrongly."""
    file = open_file(path)
    rows = list(records_of(file))
    policy = build(WhisperConfig(base=BASE, seconds=SECONDS, tower="frozen"))
    prompts = [Prompt.of(row.prompt, file.media) for row in rows]
    answers = policy.generate(prompts, temperature=0.0, max_new_tokens=MOST_TOKENS, batch_size=64)
    for row, answer in zip(rows, answers, strict=True):
        heard, said = str(answer.output).strip(), str(row.conditions["answer"])
        if not heard or word_accuracy(heard, said) == 1:
            continue
        yield row.model_copy(
            update={
                "id": row.id.replace("transcripts", "misheard", 1),
                "candidates": tuple(Candidate(parts=(TextPart(text=text),)) for text in (f"{said.capitalize()}.", heard)),
                "feedback": (Comparison(ranking=((0,), (1,)), aspect="words", annotator="rule:words"),),
                "conditions": {"answer": said},  # the others stand in transcripts.*, under the same name
                "provenance": Provenance(source=BASE, method="rule"),
            }
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, default=TARGET)
    target = parser.parse_args().target
    for split in ("train", "test"):
        found = list(misheard(target / f"transcripts.{split}.jsonl"))
        write_jsonl(target / f"misheard.{split}.jsonl", found)
        print(f"misheard.{split}.jsonl: {len(found)}", flush=True)


if __name__ == "__main__":
    main()
