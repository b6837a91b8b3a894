"""The `vision-language` policy on tiny models of many architectures, against each model's own forward and processor.

The oracle of every score is `by_hand`: the plain transformers model and its own processor on one unpadded sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from toys.pictures import album, asked, picture, sample
from toys.vision_language import ARCHITECTURES

from polyalign.errors import ConfigError, TrainingError
from polyalign.objectives.pairwise import DPO, DPOConfig
from polyalign.policies.adapters import trainable
from polyalign.policies.base import Batch
from polyalign.policies.media_features import MediaEncoder, MediaFeatures
from polyalign.policies.reference import AdaptersOff, FrozenCopy
from polyalign.records.samples import Prompt
from polyalign.records.schema import Candidate, Comparison, Record, TextPart
from polyalign.records.views import VIEWS
from polyalign.training.batches import collate_examples
from polyalign.training.window import WindowLoss
from polyalign_image.config import VisionLanguageConfig
from polyalign_image.fixture import policy as policy_of
from polyalign_image.vision_language import VisionLanguagePolicy, build

NAMES = list(ARCHITECTURES)
BASE = {  # mode "base", since in these
    "gemma3": "a picture's tokens see each other in both directions",
    "paligemma": "the whole prompt attends in both directions",
    "ovis2": "the marks around a picture get embeddings of their own besides the placeholders",
}
NOT_SHARED = BASE | {"lfm2_vl": "it has layers of kind conv"}
ALIKE_ONLY = {"perception_lm"}  # its processor refuses pictures with unequal numbers of tiles in one prompt
INSIDE_THE_TOWER = {"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v"}  # the projector (merger)
PROMPTS: list[tuple[int | str, ...]] = [
    (0, "What is this?"),
    ("Compare ", 0, " with ", 1, " please"),
    ("No picture here",),
    (1, "?"),
    (1, " and again ", 1),
]
ANSWERS = [(0, "A red disc."), (0, "No."), (1, "Alike, I think."), (2, "I see."), (3, ""), (1, "?"), (4, "The same.")]
SAMPLES = [sample(asked(*PROMPTS[prompt]), response) for prompt, response in ANSWERS]


def built(name: str, **settings: Any) -> VisionLanguagePolicy:
    return policy_of(ARCHITECTURES[name](), max_length=400, **settings)


@cache
def plain(name: str) -> tuple[Any, Any]:
    return ARCHITECTURES[name]()


@torch.no_grad()
def by_hand(name: str, parts: Sequence[int | str], response: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits ``[T, V]`` that predict the response's ids, and the hidden state ``[H]`` at its last one."""
    model, processor = plain(name)
    tokenizer = processor.tokenizer
    content = [{"type": "image"} if isinstance(part, int) else {"type": "text", "text": part} for part in parts]
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": content}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    else:
        text = "".join(processor.image_token if isinstance(part, int) else part for part in parts)
    pictures = [picture(part) for part in parts if isinstance(part, int)]
    if pictures:
        inputs = dict(processor(text=[text], images=[pictures], return_tensors="pt", add_special_tokens=False))
    else:
        inputs = {"input_ids": tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]}
    inputs.pop("labels", None)
    if name == "paligemma":  # its text_pair, the answer, has type 1
        inputs.setdefault("token_type_ids", torch.zeros_like(inputs["input_ids"]))
    length = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([list(response)])], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    for types in ("token_type_ids", "mm_token_type_ids"):
        if types in inputs:
            more = torch.full((1, len(response)), int(name == "paligemma"))
            inputs[types] = torch.cat([inputs[types], more], 1)
    output = model(**inputs, output_hidden_states=True)
    return output.logits[0, length - 1 : -1].float(), output.hidden_states[-1][0, -1].float()


def ids_of(policy: VisionLanguagePolicy, response: str) -> list[int]:
    return [*policy.tokenizer(response, add_special_tokens=False)["input_ids"], *policy.encoder.end_ids]


@contextmanager
def pixels_seen(policy: VisionLanguagePolicy) -> Iterator[list[int]]:
    """Count what the first layer with weights inside the tower is given. Hooks lie inside what `FrozenTower` replays."""
    tower = policy.model.get_encoder(modality="image")
    layer = next(module for module in tower.modules() if isinstance(module, torch.nn.Conv2d | torch.nn.Conv3d | torch.nn.Linear))
    seen: list[int] = []
    handle = layer.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].numel()))
    yield seen
    handle.remove()


def pixels_of(batch: Batch) -> int:
    return sum(medium["pixel_values"].numel() for medium in batch.tensors["media"])


@pytest.mark.parametrize("name", NAMES)
def test_the_mode_is_the_best_that_the_architecture_allows_and_a_warning_says_why(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", logger="polyalign"):
        policy = built(name)
    assert policy.mode == ("base" if name in BASE else "decoder")
    assert policy.shares == (name not in NOT_SHARED)
    assert caplog.text.count("one row per response") == (name in NOT_SHARED)
    if name in NOT_SHARED:
        assert ("media do more" if name in BASE else NOT_SHARED[name]) in caplog.text
        with pytest.raises(ConfigError, match="use auto or plain"):
            built(name, rows="shared")


@pytest.mark.parametrize("name", NAMES)
def test_log_probs_are_those_of_the_models_own_forward(name: str) -> None:
    """Two sizes of picture, two pictures in a prompt, one twice, and text alone, padded together in one batch; then text
    alone in a batch of its own."""
    policy = built(name).eval()
    batch = policy.collate(SAMPLES)
    scores = policy(batch, frozenset({"hidden"}))
    for number, (prompt, response) in enumerate(ANSWERS):
        if name in ALIKE_ONLY and prompt == 1:
            continue
        ids = ids_of(policy, response)
        logits, hidden = by_hand(name, PROMPTS[prompt], ids)
        expected = logits.log_softmax(-1)[torch.arange(len(ids)), torch.tensor(ids)]
        assert batch.mask[number, 0].sum() == len(ids)
        torch.testing.assert_close(scores.log_probs[number, 0, : len(ids)], expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(scores.extras["hidden"][number], hidden, rtol=1e-4, atol=1e-4)
    words = policy(policy.collate([SAMPLES[3]])).log_probs[0, 0]
    torch.testing.assert_close(words, scores.log_probs[3, 0, : len(words)], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_shared_rows_are_exact(name: str) -> None:
    policy = built(name, lora=None)
    if name in NOT_SHARED:
        assert not policy.shares
        pytest.skip(NOT_SHARED[name])
    batch = policy.collate(SAMPLES)
    assert "shared" in batch.tensors
    weights = torch.linspace(-1, 1, batch.mask.numel()).reshape(batch.mask.shape)
    found = {}
    for shares in (False, True):
        policy.shares = shares
        policy.zero_grad()
        log_probs = policy(batch).log_probs
        (log_probs * weights).sum().backward()
        gradients = {name: parameter.grad for name, parameter in trainable(policy).items() if parameter.grad is not None}
        found[shares] = (log_probs.detach(), gradients)
    torch.testing.assert_close(found[True][0], found[False][0], rtol=0, atol=1e-4)
    assert found[True][1].keys() == found[False][1].keys()
    for parameter, gradient in found[False][1].items():
        torch.testing.assert_close(found[True][1][parameter], gradient, rtol=0, atol=1e-3 * float(gradient.abs().max()) + 1e-7)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "gradient-checkpointing"])
@pytest.mark.parametrize("name", NAMES)
def test_each_picture_is_encoded_once_for_policy_and_reference(name: str, checkpointing: bool) -> None:
    policy = built(name).train()
    if checkpointing:
        policy.enable_gradient_checkpointing()
    batch = policy.collate(SAMPLES)
    with pixels_seen(policy) as seen:
        AdaptersOff(policy)(batch)
        policy(batch).log_probs.sum().backward()
    assert sum(seen) == pixels_of(batch)
    tower = policy.model.get_encoder(modality="image")
    assert all(parameter.grad is None for parameter in tower.parameters())
    assert all(parameter.grad is not None for parameter in trainable(policy).values())


@pytest.mark.parametrize("name", NAMES)
def test_a_projector_that_trains_gets_gradients_from_a_frozen_tower(name: str) -> None:
    policy = built(name, lora=None, language="frozen", projector="full").train()
    reference = FrozenCopy(policy)
    batch = policy.collate(SAMPLES)
    with pixels_seen(policy) as seen, pixels_seen(reference.policy) as again:  # type: ignore[arg-type]
        reference(batch)
        policy(batch).log_probs.sum().backward()
    assert sum(seen) + sum(again) == (2 if name in INSIDE_THE_TOWER else 1) * pixels_of(batch)
    parameters = trainable(policy)
    assert parameters
    for parameter_name, parameter in parameters.items():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, parameter_name


@pytest.mark.parametrize("name", NAMES)
def test_dpo_starts_at_ln2_and_moves_the_margin_up(name: str) -> None:
    records = [
        Record(
            id=f"pair-{number}",
            prompt=asked(*PROMPTS[number]),
            candidates=(Candidate(parts=(TextPart(text="A disc."),)), Candidate(parts=(TextPart(text="Nothing"),))),
            feedback=(Comparison(ranking=((0,), (1,))),),
        )
        for number in (0, 3)
    ]
    policy = built(name).train()
    micro = collate_examples([e for record in records for e in VIEWS["pairs"](record, album()[0])], policy.collator)
    starting = AdaptersOff(policy)(micro.batch)
    window = WindowLoss(policy, lambda batch: starting, DPO(DPOConfig()), "cpu")
    parameters = trainable(policy)
    optimizer = torch.optim.AdamW(parameters.values(), lr=2e-3, weight_decay=0.0)
    losses = []
    for _ in range(3):
        losses.append(window.train([micro], lambda loss, last: loss.backward())["loss"])
        assert all(parameter.grad is not None and torch.isfinite(parameter.grad).all() for parameter in parameters.values())
        optimizer.step()
        optimizer.zero_grad()
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert all(map(math.isfinite, losses)) and losses[2] < losses[0]
    moved = (policy(micro.batch).detach().reduced() - starting.reduced())[:, 0]
    edges = micro.feedback.edges
    assert (moved[edges.better] > moved[edges.worse]).all()


@pytest.mark.parametrize("name", NAMES)
def test_generation_reads_pictures_as_scoring_does(name: str) -> None:
    """Greedy ids are the argmax of the model's own forward, for prompts of unequal length in one batch."""
    policy = built(name)
    chosen = [parts for number, parts in enumerate(PROMPTS) if name not in ALIKE_ONLY or number != 1]
    prompts = [Prompt.of(asked(*parts), album()[0]) for parts in chosen]
    greedy = policy.generate(prompts, max_new_tokens=4, temperature=0.0)
    for parts, rollout in zip(chosen, greedy, strict=True):
        ids = rollout.decisions[0].ids  # type: ignore[union-attr]
        logits = by_hand(name, parts, ids.tolist())[0]
        logits[:, [token for token in policy.encoder.media_ids if token < logits.shape[1]]] = -torch.inf
        assert logits.argmax(-1).tolist() == ids.tolist()


@pytest.mark.parametrize("name", NAMES)
def test_rollouts_are_deterministic_hold_no_placeholder_and_score_as_recorded(name: str) -> None:
    policy = built(name)
    prompt = Prompt.of(asked(*PROMPTS[0]), album()[0])
    with pixels_seen(policy) as seen:
        rollouts = policy.generate([prompt], samples_per_prompt=2, seed=3, max_new_tokens=8)
    batch = policy.collator.of_rollouts(rollouts)
    assert sum(seen) == 2 * pixels_of(batch)  # once to sample both, once to score both
    again = policy.generate([prompt], samples_per_prompt=2, seed=3, max_new_tokens=8)
    scores = policy.eval()(batch)
    for number, (rollout, other) in enumerate(zip(rollouts, again, strict=True)):
        ids = rollout.decisions[0].ids  # type: ignore[union-attr]
        assert torch.equal(ids, other.decisions[0].ids)  # type: ignore[union-attr]
        assert not set(ids.tolist()) & policy.encoder.media_ids
        assert rollout.old_log_probs is not None and len(rollout.old_log_probs) == len(ids)
        torch.testing.assert_close(scores.log_probs[number, 0, : len(ids)], rollout.old_log_probs, rtol=0, atol=1e-4)
    assert not torch.equal(rollouts[0].decisions[0].ids, rollouts[1].decisions[0].ids)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_folder_is_the_base_of_another_run(name: str, tmp_path: Path) -> None:
    """Compared over the processor as it loads: transformers may choose another backend, with other pixels by rounding."""
    built(name, lora=None).save(tmp_path)
    loaded = build(VisionLanguageConfig(base=str(tmp_path), max_length=400, max_response=48)).eval()
    expected = policy_of((ARCHITECTURES[name]()[0], loaded.encoder.processor), max_length=400, lora=None).eval()
    found, scores = (policy(policy.collate(SAMPLES)).log_probs for policy in (loaded, expected))
    torch.testing.assert_close(found, scores, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["llava", "qwen3_vl", "gemma3", "ovis2"])
def test_features_from_disk_give_the_same_scores_without_the_tower(name: str, tmp_path: Path) -> None:
    policy = built(name, cache_features=True).eval()
    batch = policy.collate(SAMPLES)
    expected = policy(batch).log_probs
    with pixels_seen(policy) as seen:
        policy.prepare(SAMPLES, tmp_path)
        assert sum(seen) == pixels_of(batch)
        assert policy.media.cache is not None
        policy.media.cache.clear_memory()
        torch.testing.assert_close(policy(policy.collate(SAMPLES)).log_probs, expected, rtol=0, atol=1e-5)
        assert sum(seen) == pixels_of(batch)
    with pytest.raises(TrainingError, match="cache_features keeps features of frozen parts"):
        built(name, cache_features=True, lora=None).prepare(SAMPLES, tmp_path)


def test_an_architecture_that_takes_no_features_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stood in for by features that are not those which the model makes for itself."""
    encoded = MediaEncoder._encoded

    def wrong(self: MediaEncoder, media: Any) -> MediaFeatures:
        features = encoded(self, media)
        return replace(features, rows=features.rows + 1)

    monkeypatch.setattr(MediaEncoder, "_encoded", wrong)
    with pytest.raises(ConfigError, match="LlavaForConditionalGeneration makes other logits"):
        built("llava")
