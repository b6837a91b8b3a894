"""The zoo's any-to-any model, its tokenizer of drawings, and the judge of what it answers, on real pictures and clips."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from polyalign.assets import resolve_model
from polyalign.errors import RewardError
from polyalign.records.files import open_file, records_of
from polyalign.records.modality import decoded
from polyalign.records.samples import Prompt
from polyalign.records.schema import MediaPart, Record
from polyalign.rewards.base import Judged
from polyalign_any_to_any.config import AnyToAnyConfig
from polyalign_any_to_any.media.base import open_tokenizer
from polyalign_any_to_any.media.drawings import DrawingTokenizer
from polyalign_any_to_any.policy import build
from polyalign_any_to_any.right_thing import RightThing
from polyalign_any_to_any.shipped import emoji_any

QUESTIONS = open_file(emoji_any() / "questions.jsonl")
RECORDS: list[Record] = list(records_of(QUESTIONS))


def answer_of(record: Record) -> Any:
    (part,) = record.candidates[0].parts
    return decoded(part.media, QUESTIONS.media) if isinstance(part, MediaPart) else part.text


def judged(record: Record, output: Any) -> Judged:
    return Judged.of(Prompt.of(record.prompt, QUESTIONS.media, record.conditions), output)


def test_a_drawing_is_two_codes_a_cell_and_a_saved_tokenizer_writes_the_same(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = DrawingTokenizer(side=16, codes=8, width=8, latent=4)
    picture = answer_of(RECORDS[0])
    codes = tokenizer.encode(picture)
    assert len(codes) == tokenizer.length == 2 * (16 // 8) ** 2
    tokenizer.save(tmp_path)
    again = open_tokenizer(tmp_path)
    assert again.encode(picture) == codes and again.fingerprint() == tokenizer.fingerprint()
    assert again.decode(codes).size == (16, 16)
    assert again.decode(codes).tobytes() == tokenizer.decode(codes).tobytes()


def test_codes_stand_for_cells_in_reading_order() -> None:
    """The decoder sees five cells far: other codes in the last cell of eight a side change that corner, not the opposite one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = DrawingTokenizer(side=64, codes=8, width=8, latent=4)
    pictures = [np.asarray(tokenizer.decode([*[0] * 126, *last]), dtype=int) for last in ((0, 0), (5, 6))]
    changed = np.abs(pictures[0] - pictures[1])
    assert changed[-8:, -8:].sum() > 0 == changed[:8, :8].sum()


def test_the_judge_knows_real_answers_and_no_other_things() -> None:
    reward = RightThing()
    asked = RECORDS[::3]  # every thing in every direction
    answers = [answer_of(record) for record in asked]
    right = reward.score([judged(record, answer) for record, answer in zip(asked, answers, strict=True)])
    assert sum(right) / len(right) >= 0.99
    others = [answers[32 * (at // 32) + (at + 1) % 32] for at in range(len(asked))]  # the next thing in the same direction
    assert sum(reward.score([judged(record, other) for record, other in zip(asked, others, strict=True)])) / len(asked) <= 0.01


def test_an_answer_of_another_kind_is_wrong_and_so_are_two() -> None:
    reward = RightThing()
    by_kind = {str(record.conditions["wanted"]): record for record in RECORDS if record.conditions["answer"] == "dog"}
    outputs = {kind: answer_of(record) for kind, record in by_kind.items()}
    for kind, record in by_kind.items():
        found = reward.score([judged(record, output) for output in outputs.values()])
        assert found == [float(other == kind) for other in outputs]
    both = (outputs["text"], outputs["image"])
    assert reward.score([judged(by_kind["text"], both)]) == [0.0]


def test_a_record_that_says_not_what_is_wanted_cannot_be_judged() -> None:
    with pytest.raises(RewardError, match="wanted=None"):
        RightThing().score([Judged((), "dog", conditions={"answer": "dog"})])


def test_the_zoo_model_answers_in_kind_and_better_than_chance() -> None:
    """Every direction of eight things at temperature 0; 1 in 32 is chance, and a fifth is beyond it: with 8 questions each, three
    right by chance happen once in 600 times."""
    folder = Path(resolve_model("zoo:tiny-any"))
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 20e6
    policy = build(AnyToAnyConfig(base="zoo:tiny-any", max_length=128, max_response=48))
    assert sum(weight.numel() for weight in policy.parameters()) < 10e6
    asked = [record for start in range(0, len(RECORDS), 96) for record in islice(RECORDS, start, start + 96, 12)]
    prompts = [Prompt.of(record.prompt, QUESTIONS.media, record.conditions) for record in asked]
    rollouts = policy.generate(prompts, temperature=0.0, max_new_tokens=44)
    kinds = {"text": str, "image": Image.Image}
    right: Counter[str] = Counter()
    scores = RightThing().score([Judged.of(prompt, rollout.output) for prompt, rollout in zip(prompts, rollouts, strict=True)])
    for record, rollout, score in zip(asked, rollouts, scores, strict=True):
        assert rollout.modalities == (record.conditions["wanted"],)
        assert isinstance(rollout.output, kinds.get(str(record.conditions["wanted"]), object))
        right[str(record.group)] += int(score)
    assert len(right) == 6 and min(right.values()) >= 3
