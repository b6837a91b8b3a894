"""MEET: soft prompts learn behaviours, the model stays as it was or learns along, and whoever asks gets what they ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from polyalign.config import load_recipe
from polyalign.errors import ConfigError, RecordError
from polyalign.objectives.config import DPOConfig
from polyalign.objectives.pairwise import DPO
from polyalign.objectives.supervised import SFT
from polyalign.policies.reference import AdaptersOff, FrozenCopy
from polyalign.policies.tiny_language import byte_tokenizer, tiny_llama
from polyalign.records.samples import Example, Sample
from polyalign.records.schema import Candidate, Comparison, Message, Record, TextPart
from polyalign.records.views import VIEWS
from polyalign.training.batches import collate_examples
from polyalign.training.window import WindowLoss
from polyalign_text.config import ControlAdaptersConfig
from polyalign_text.control_adapters import MODULES_FILE, ControlAdaptersPolicy, build
from polyalign_text.fixture import build_controlled, records

WORDS = "tea rain moss iron salt wool reed clay lime dusk fern jade".split()
GOOD, BAD = "Yes.", "No!"


def question(word: str) -> tuple[Message, ...]:
    return (Message(role="user", parts=f"Any {word}?"),)  # type: ignore[arg-type]


def examples(view: str, words: list[str] = WORDS[:8]) -> list[Example]:
    return [
        example
        for word in words
        for example in VIEWS[view](
            Record(
                id=word,
                prompt=question(word),
                candidates=(Candidate(parts=GOOD), Candidate(parts=BAD)),  # type: ignore[arg-type]
                feedback=(Comparison(ranking=((0,), (1,))),),
            ),
            None,
        )
    ]


def learn(policy: ControlAdaptersPolicy, found: list[Example], steps: int, rate: float, objective: Any = None) -> None:
    objective = objective or SFT()
    reference = FrozenCopy(policy) if "reference" in objective.needs else None
    window = WindowLoss(policy, reference, objective, "cpu")
    learned = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=rate, weight_decay=0.0)
    micro = collate_examples(found, policy.collator)
    for _ in range(steps):
        window.train([micro], lambda loss, last: loss.backward())
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad()


def rate_of_good(policy: ControlAdaptersPolicy, control: str) -> float:
    """Share of sampled answers to questions never seen that show the preferred behaviour."""
    prompts = [question(word) for word in WORDS[8:]]
    rollouts = policy.generate(prompts, samples_per_prompt=4, seed=1, control=control, max_new_tokens=6)
    return sum(rollout.output.startswith("Y") for rollout in rollouts) / len(rollouts)


def settings(base: Path, **more: Any) -> ControlAdaptersConfig:
    return ControlAdaptersConfig(base=str(base), length=4, max_length=80, max_response=16, **more)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model's folder: it has learned both answers, and gives either by chance."""
    from polyalign_text.config import TextConfig
    from polyalign_text.policy import build as plain

    folder, tokenizer = tmp_path_factory.mktemp("base"), byte_tokenizer()
    tiny_llama(len(tokenizer), initializer_range=0.1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    policy = plain(TextConfig(base=str(folder), max_length=80, max_response=16))
    learn(policy, [Example(e.record_id, (s,)) for e in examples("controlled") for s in e.samples], 40, 3e-3)  # type: ignore[arg-type]
    policy.save(folder)
    return folder


@pytest.fixture(scope="module")
def stages(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Both stages, one after the other, each saved."""
    folder = tmp_path_factory.mktemp("stages")
    first = build(settings(base, stage="modules"))
    before = {name: value.clone() for name, value in first.model.state_dict().items()}
    learn(first, examples("controlled"), 60, 3e-2)
    first.save(folder / "first")
    first.save_modules(folder / "modules")
    joint = build(settings(folder / "first", stage="joint"))
    start = {name: value.clone() for name, value in joint.model.state_dict().items()}
    learn(joint, examples("controlled"), 30, 1e-3)
    joint.save(folder / "joint")
    return {"folder": folder, "first": first, "before": before, "joint": joint, "start": start}


def test_the_first_stage_leaves_the_model_bit_by_bit_as_it_was(stages: dict[str, Any]) -> None:
    first = stages["first"]
    assert [name for name, parameter in first.named_parameters() if parameter.requires_grad] == ["modules_table"]
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, stages["before"][name]), name
    assert not torch.equal(first.modules_table, first.start)


def test_the_second_stage_changes_model_and_modules_and_what_is_asked_for_is_what_comes(stages: dict[str, Any]) -> None:
    """P(good | good module) - P(good | bad module) >= 0.5, on questions never seen; before any stage it is about 0."""
    joint = stages["joint"]
    moved = [name for name, value in joint.model.state_dict().items() if not torch.equal(value, stages["start"][name])]
    assert moved and not torch.equal(joint.modules_table, joint.start)
    assert rate_of_good(joint, "good") - rate_of_good(joint, "bad") >= 0.5
    assert rate_of_good(stages["first"], "good") - rate_of_good(stages["first"], "bad") >= 0.5


def test_without_training_modules_do_not_control(base: Path) -> None:
    fresh = build(settings(base))
    assert abs(rate_of_good(fresh, "good") - rate_of_good(fresh, "bad")) < 0.5


def test_swapped_modules_swap_the_rates(stages: dict[str, Any]) -> None:
    """Exactly: a draw depends on prompt, number and seed, and not on the label that was asked for."""
    joint = build(settings(stages["folder"] / "joint"))
    good, bad = rate_of_good(joint, "good"), rate_of_good(joint, "bad")
    with torch.no_grad():
        joint.modules_table.copy_(joint.modules_table.roll(4, 0))  # two labels of four vectors each
    assert (rate_of_good(joint, "good"), rate_of_good(joint, "bad")) == (bad, good)


def test_modules_alone_restore_the_first_stage_and_the_folder_the_second(base: Path, stages: dict[str, Any]) -> None:
    batch = [sample for example in examples("controlled", WORDS) for sample in example.samples]
    for policy, again in (
        (stages["first"], build(settings(base, modules=str(stages["folder"] / "modules")))),
        (stages["joint"], build(settings(stages["folder"] / "joint"))),
    ):
        torch.testing.assert_close(
            again(again.collate(batch)).log_probs, policy(policy.collate(batch)).log_probs, atol=1e-6, rtol=0
        )
        prompts = [question("ash")]
        for control in ("good", "bad"):
            (found,), (expected,) = (one.generate(prompts, control=control, max_new_tokens=6) for one in (again, policy))
            assert found.output == expected.output
    assert sorted(path.name for path in (stages["folder"] / "modules").iterdir()) == [MODULES_FILE]


def test_scores_are_those_of_the_model_fed_with_the_modules_by_hand(stages: dict[str, Any]) -> None:
    policy = stages["joint"]
    sample = Sample("a", question("ash"), (TextPart(text=GOOD),), "a", conditions={"control": "bad"})
    row = policy.collator.encode(sample)
    words = policy.model.get_input_embeddings()(torch.tensor([row.prompt[4:] + row.response]))
    with torch.no_grad():
        logits = policy.model(inputs_embeds=torch.cat([policy.modules_table[4:][None], words], 1)).logits[0]
        log_probs = logits.log_softmax(-1)[len(row.prompt) - 1 : -1].gather(1, torch.tensor(row.response)[:, None])[:, 0]
        found = policy(policy.collate([sample])).log_probs[0, 0]
    torch.testing.assert_close(found, log_probs, atol=1e-5, rtol=1e-5)


def test_shared_rows_keep_labels_apart_and_give_the_scores_of_plain_rows() -> None:
    plain, shared = build_controlled(rows="plain"), build_controlled(rows="shared")
    batch = [
        Sample(f"{text}{label}", question("tea"), (TextPart(text=text),), "tea", conditions={"control": label})
        for text in (GOOD, BAD, "Maybe.")
        for label in ("good", "bad", "good+bad")
    ]
    rows = shared.rows(shared.collate(batch)).tensors["input_ids"]
    assert len(rows) == 3, "one row per set of labels"
    torch.testing.assert_close(
        shared(shared.collate(batch)).log_probs, plain(plain.collate(batch)).log_probs, atol=1e-5, rtol=1e-5
    )


def test_rollouts_are_scored_under_the_module_that_made_them() -> None:
    policy = build_controlled()
    with torch.no_grad():
        policy.modules_table.mul_(30)  # so that labels differ
    (rollout,) = policy.generate([question("tea")], control="bad", max_new_tokens=5)
    sample = Sample("a", rollout.prompt, (), "a", conditions={"control": "bad"})
    row = policy.collator.encode(sample)
    (tokens,) = rollout.decisions
    batch = policy.collator.layout((sample,), [policy.encoder.with_places(_plain(row, tokens), ("bad",))], torch.ones(1), None)  # type: ignore[arg-type]
    torch.testing.assert_close(policy(batch).log_probs[0, 0], rollout.old_log_probs, atol=1e-5, rtol=1e-5)


def _plain(row: Any, tokens: Any) -> Any:
    from dataclasses import replace

    return replace(row, prompt=row.prompt[4:], response=tuple(tokens.ids.tolist()))


def test_any_objective_can_take_the_second_stage(stages: dict[str, Any]) -> None:
    """DPO under the good module starts at ln 2: the reference has no LoRA, and the modules of the first stage."""
    joint = build(settings(stages["folder"] / "first", lora={"rank": 4}))
    pairs = examples("pairs")
    micro = collate_examples(pairs, joint.collator)
    window = WindowLoss(joint, AdaptersOff(joint), DPO(DPOConfig()), "cpu")
    assert window.evaluate([micro])["loss"] == pytest.approx(0.693147, abs=1e-5)
    with torch.no_grad():
        joint.modules_table += 0.1
    assert window.evaluate([micro])["loss"] != pytest.approx(0.693147, abs=1e-5)


def test_the_controlled_view_labels_what_is_preferred_and_keeps_what_is_named() -> None:
    found = [example for record in records()[:2] for example in VIEWS["controlled"](record, None)]
    assert [sample.conditions["control"] for example in found for sample in example.samples] == ["good", "bad"] * 2
    assert all(not example.edges and not example.labels for example in found)
    named = Record(id="n", prompt=question("tea"), candidates=(Candidate(parts="x", conditions={"control": "terse"}),))  # type: ignore[arg-type]
    assert VIEWS["controlled"](named, None)[0].samples[0].conditions["control"] == "terse"
    unknown = Record(id="u", prompt=question("tea"), candidates=(Candidate(parts="x"),))  # type: ignore[arg-type]
    assert VIEWS["controlled"](unknown, None) == []


def test_a_long_prompt_loses_its_own_tokens_and_never_the_modules() -> None:
    policy = build_controlled(max_length=40, max_response=16)
    row = policy.collator.encode(Sample("a", question("tea " * 30), (TextPart(text=GOOD),), "a"))
    assert len(row) == 40 and row.dropped > 0
    index = policy.collate([Sample("a", question("tea " * 30), (TextPart(text=GOOD),), "a")]).tensors["control_index"]
    assert index[0, :4].tolist() == [0, 1, 2, 3] and (index[0, 4:] == -1).all()


def test_mistakes_are_named(stages: dict[str, Any], base: Path) -> None:
    policy = build_controlled()
    with pytest.raises(
        RecordError, match=r"sample 'a' has condition 'control' 'god': no control module 'god'. Did you mean 'good'"
    ):
        policy.collate([Sample("a", question("tea"), (TextPart(text=GOOD),), "a", conditions={"control": "god"})])
    with pytest.raises(ConfigError, match="no control module 'worse'"):
        policy.generate([question("tea")], control="worse", max_new_tokens=2)
    with pytest.raises(ConfigError, match=rf"holds no {MODULES_FILE}"):
        build(settings(base, modules=str(base)))
    with pytest.raises(ConfigError, match=r"modules for good, bad of shape \(8, 32\).*set policy.labels"):
        build(settings(base, labels=("kind", "rude"), control="kind", modules=str(stages["folder"] / "modules")))
    for wrong, words in (
        ({"control": "nice"}, "names 'nice'"),
        ({"labels": ("a", "a")}, "distinct"),
        ({"stage": "modules", "lora": {}}, "stage modules trains the soft prompts alone"),
        ({"length": 80, "max_length": 80, "max_response": 16}, "leave no room"),
    ):
        with pytest.raises(ValidationError, match=words):
            ControlAdaptersConfig.model_validate({"base": "x", **wrong})


def test_both_recipes_read_the_same_data_in_the_controlled_view() -> None:
    first, second = load_recipe("text/meet-modules"), load_recipe("text/meet-joint")
    assert first.view == second.view == "controlled"
    assert (first.policy_config.stage, second.policy_config.stage) == ("modules", "joint")  # type: ignore[attr-defined]
