"""Answers of the policy itself, made in the run: by the weights of each round's start, once, and the same after a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from toys.jobs import untimed

from polyalign.config import Resolved, read_recipe
from polyalign.errors import ConfigError
from polyalign.evaluation import self_samples
from polyalign.policies.tiny_language import byte_tokenizer, tiny_llama
from polyalign.records.jsonl import read_jsonl, write_jsonl
from polyalign.records.schema import Candidate, Message, Rating, Record, TextPart
from polyalign.training.run import dry_run, train
from polyalign.training.tracking import read_metrics

BAD = ("Go away.", "No idea.", "Stupid question.")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an untaught model and records that know bad answers only."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = byte_tokenizer(template=None)
    tiny_llama(len(tokenizer), pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    records = [
        Record(
            id=f"bad-{number}",
            prompt=(Message(role="user", parts=(TextPart(text=f"Question {number}."),)),),
            candidates=(Candidate(parts=(TextPart(text=answer),)),),
            feedback=(Rating(candidate=0, value=0.0),),
        )
        for number, answer in enumerate(BAD)
    ]
    write_jsonl(folder / "data" / "train.jsonl", records)
    return folder


def recipe(base: Path, **changes: Any) -> Resolved:
    tree: dict[str, Any] = {
        "name": "own-answers",
        "policy": {"name": "text", "base": str(base), "chat_template": "none", "max_length": 64, "max_response": 24},
        "data": {
            "train": [{"path": str(base / "data")}],
            "self_samples": {"count": 2, "every": 3, "decoding": {"max_new_tokens": 6}},
        },
        "objective": {"name": "d2o"},
        "training": {
            "steps": 7, "batch_size": 3, "optimizer": {"learning_rate": 1e-2}, "checkpoint": {"every": 2, "keep_last": 9}
        },
        "report": {"prompts": 0},
    }  # fmt: skip
    return read_recipe(json.dumps({**tree, **changes}))


def answers(run: Path, number: int) -> list[str]:
    records = [record for _, record in read_jsonl(run / "self-samples" / f"round-{number:04d}.jsonl")]
    assert all(one.is_self_sample for record in records for one in record.candidates[1:])
    return [one.parts[0].text for record in records for one in record.candidates[1:]]


def test_every_round_is_answered_anew_and_a_resumed_run_answers_nothing_twice(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven steps in rounds of three: three rounds. A run stopped after step 5, in its second round, goes on to the same end."""
    made: list[str] = []
    write = self_samples.write

    def counted(policy: Any, found: Any, target: Path, **options: Any) -> int:
        made.append(target.name)
        return write(policy, found, target, **options)

    monkeypatch.setattr(self_samples, "write", counted)
    train(recipe(base), tmp_path / "whole")
    assert made == [f"round-{number:04d}.jsonl" for number in range(3)]
    rounds = [answers(tmp_path / "whole", number) for number in range(3)]
    assert [len(one) for one in rounds] == [6, 6, 6]
    assert rounds[0] != rounds[1] != rounds[2]

    made.clear()
    train(recipe(base), tmp_path / "stopped", max_steps=5)
    train(recipe(base), tmp_path / "stopped", resume=True)
    assert made == [f"round-{number:04d}.jsonl" for number in range(3)]
    assert [answers(tmp_path / "stopped", number) for number in range(3)] == rounds
    whole, stopped = (untimed(read_metrics(tmp_path / name / "metrics.jsonl")) for name in ("whole", "stopped"))
    assert json.dumps(whole) == json.dumps(stopped)
    assert whole[-1]["loss"] < whole[0]["loss"]


def test_a_round_is_answered_by_the_weights_of_its_start(tmp_path: Path, base: Path) -> None:
    """Without learning, rounds differ by their key alone, so the second round of a run that has learned differs from that."""
    still = recipe(base, training={"steps": 4, "batch_size": 3, "optimizer": {"learning_rate": 1e-12}})
    moved = recipe(base, training={"steps": 4, "batch_size": 3, "optimizer": {"learning_rate": 1e-1}})
    train(still, tmp_path / "still")
    train(moved, tmp_path / "moved")
    assert answers(tmp_path / "still", 0) == answers(tmp_path / "moved", 0)
    assert answers(tmp_path / "still", 1) != answers(tmp_path / "moved", 1)


def test_what_does_not_go_with_own_answers_is_said_before_the_run(base: Path) -> None:
    assert "view self_samples: 3 training examples" in dry_run(recipe(base))
    with pytest.raises(ConfigError, match="reference.cache does not go with data.self_samples"):
        recipe(base, reference={"cache": True})
    with pytest.raises(ConfigError, match="data.self_samples.*'unpaired' view"):
        recipe(base, objective={"name": "unlikelihood"})
