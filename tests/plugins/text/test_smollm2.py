"""The real SmolLM2-135M: the shipped recipe, for a few steps, on the shipped data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from polyalign.config import load_recipe
from polyalign.records.samples import Sample
from polyalign.records.schema import Message, TextPart
from polyalign.training.run import datasets, train
from polyalign_text.config import TextConfig
from polyalign_text.policy import TextPolicy, build

pytestmark = pytest.mark.slow

FRANCE = (Message(role="user", parts="What is the capital of France?"),)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def smollm2(asset: Callable[[str], Path]) -> TextPolicy:
    asset("smollm2")
    return build(TextConfig(base="asset:smollm2", max_length=256, max_response=64))


def test_it_answers_and_prefers_the_right_answer_to_a_wrong_one(smollm2: TextPolicy) -> None:
    (rollout,) = smollm2.generate([FRANCE], temperature=0, max_new_tokens=16)
    assert "Paris" in rollout.output
    right, wrong = (
        Sample(text, FRANCE, (TextPart(text=f"The capital of France is {text}."),), "france") for text in ("Paris", "Potato")
    )
    scores = smollm2(smollm2.collate([right, wrong])).reduced()[:, 0]
    assert scores[0] > scores[1] + 5


def test_scores_are_those_of_its_full_logits(smollm2: TextPolicy) -> None:
    sample = Sample("a", FRANCE, (TextPart(text="It is Paris, of course."),), "a")
    encoded = smollm2.collator.encode(sample)
    ids = torch.tensor([encoded.prompt + encoded.response])
    with torch.no_grad():
        log_probs = smollm2.model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    scores = smollm2(smollm2.collate([sample])).log_probs[0, 0]
    torch.testing.assert_close(scores, log_probs[len(encoded.prompt) - 1 :], atol=2e-4, rtol=1e-4)
    assert smollm2.tokenizer.decode(encoded.response) == "It is Paris, of course.<|im_end|>"


def test_a_few_steps_of_the_recipe_raise_the_held_out_margin(
    asset: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first step every margin is 0: the loss is ln 2 and the accuracy, with ties counted half, 0.5."""
    base = f"policy.base={asset('smollm2')}"
    monkeypatch.setenv("POLYALIGN_CACHE", str(tmp_path / "cache"))
    few = [base, "training.steps=8", "training.batch_size=4", "training.eval_every=8", "training.eval_batches=3"]
    rate = ["learning_rate=2e-4", "schedule=constant", "warmup_steps=0"]  # eight steps must show: too high for a real run
    quick = [*(f"training.optimizer.{setting}" for setting in rate), "report.prompts=0"]
    run = train(load_recipe("text/dpo-smollm2", [*few, *quick]), tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    first, last = rows[0], rows[-1]
    assert first["eval/loss"] == pytest.approx(0.693147, abs=1e-5)
    assert first["eval/margin"] == 0 and first["eval/accuracy"] == 0.5
    assert last["eval/loss"] < 0.69
    assert last["eval/margin"] > 0.2
    assert last["eval/accuracy"] >= 0.5  # of twelve pairs after eight steps: too coarse to ask for more
    trained = build(TextConfig(base=str(run.folder / "model"), max_length=256, max_response=64))
    (rollout,) = trained.generate([FRANCE], temperature=0, max_new_tokens=16)
    assert rollout.output.strip()


def test_dckd_moves_the_real_model_towards_a_tuned_teachers_margin(
    asset: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher is the model itself after sixteen steps of DPO; the student starts where the teacher did, and reads its store.

    Margins are means of log-probabilities of better less worse answers over 16 pairs that both have trained on.
    """
    started = str(asset("smollm2"))
    monkeypatch.setenv("POLYALIGN_CACHE", str(tmp_path / "cache"))
    few = [
        f"policy.base={started}",
        "training.steps=16",
        "training.batch_size=4",
        "report.prompts=0",
        "data.train.0.limit=16",
        "data.eval=[]",
    ]
    rate = ["learning_rate=2e-4", "schedule=constant", "warmup_steps=0"]
    few += [f"training.optimizer.{setting}" for setting in rate]
    tuned = train(load_recipe("text/dpo-smollm2", few), tmp_path / "teacher")
    sizes = "max_length: 256, max_response: 128"
    taught = f"{{name: dckd, nll_weight: 0, teacher: {{policy: {{name: text, base: '{tuned.folder / 'model'}', {sizes}}}}}}}"
    recipe = load_recipe("text/dpo-smollm2", [*few, f"objective={taught}"])
    student = train(recipe, tmp_path / "student")

    store = json.loads(next((tmp_path / "cache" / "teachers").glob("*/store.json")).read_text())
    assert (store["vocabulary"], store["top_k"]) == (49152, 128)

    data, _ = datasets(recipe)
    samples = [sample for index in range(len(data)) for sample in data[index].samples]

    def margin(folder: str) -> float:
        policy = build(TextConfig(base=folder, max_length=256, max_response=128))
        with torch.no_grad():
            values = torch.cat([policy(policy.collate(samples[at : at + 8])).reduced()[:, 0] for at in range(0, len(samples), 8)])
        return float((values[::2] - values[1::2]).mean())

    start, goal, found = map(margin, (started, str(tuned.folder / "model"), str(student.folder / "model")))
    print(f"margin: start {start:.2f}, teacher {goal:.2f}, student {found:.2f}")
    assert goal > start + 2
    assert found - start > 0.3 * (goal - start)
