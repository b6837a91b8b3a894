"""The omni-language policy: sound, pictures, clips and text in one prompt, scored as transformers itself would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyalign.errors import ConfigError, RecordError
from polyalign.objectives.pairwise import DPO
from polyalign.objectives.supervised import SFT
from polyalign.policies.adapters import trainable
from polyalign.policies.media_kinds import installed_kind
from polyalign.policies.reference import AdaptersOff, FrozenCopy
from polyalign.records.samples import Prompt, Sample
from polyalign.records.schema import MediaPart, Message, TextPart
from polyalign.records.store import MemoryMedia
from polyalign.records.views import VIEWS
from polyalign.training.batches import collate_examples
from polyalign.training.window import WindowLoss
from polyalign_any_to_any import omni
from polyalign_any_to_any.omni import OmniLanguagePolicy, build
from polyalign_any_to_any.omni_config import OmniLanguageConfig
from polyalign_any_to_any.omni_fixture import SIDE, part, policy, records, tiny_thinker, wav, webp

MEDIA = MemoryMedia()
PIECES = {
    "picture": ("image",), "sound": ("audio",), "clip": ("video",),
    "all": ("audio", " then ", "image", "video", " and ", "audio", "image"),
}  # fmt: skip
SIZES = {"min_pixels": SIDE**2, "max_pixels": SIDE**2}


def asked(*pieces: str | MediaPart) -> tuple[Message, ...]:
    """Return a prompt; a modality's name stands for a medium of it, one after the other."""
    count = 0
    parts: list[Any] = []
    for piece in pieces:
        if isinstance(piece, str) and piece in ("image", "audio", "video"):
            parts.append(part(MEDIA, piece, count % 4))
            count += 1
        else:
            parts.append(TextPart(text=piece) if isinstance(piece, str) else piece)
    return (Message(role="user", parts=tuple(parts)),)


def sample(name: str, answer: str, *pieces: str | MediaPart) -> Sample:
    return Sample(name, asked(*pieces), (TextPart(text=answer),), name, media=MEDIA)


def medium(modality: str, data: bytes, mime: str) -> MediaPart:
    return MediaPart(media=MEDIA.add(data, modality, mime))  # type: ignore[arg-type]


def wide(**settings: Any) -> OmniLanguagePolicy:
    """A tiny policy whose weights are drawn so wide that a feature in a wrong place shows."""
    model, processor = tiny_thinker()
    with torch.no_grad():
        torch.manual_seed(0)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
    return policy((model, processor), **{"lora": None, "max_length": 300, **settings}).eval()


def own_log_probs(found: OmniLanguagePolicy, item: Sample, answer: str) -> torch.Tensor:
    """Return what transformers' processor and forward give the answer, fed with all media at once."""
    kinds, given = found.encoder.kinds, {}
    for modality, kind in kinds.items():
        refs = [p.media for p in item.prompt[0].parts if isinstance(p, MediaPart) and p.media.modality == modality]
        if refs:
            given |= kind.arguments([kind.open(MEDIA.read(ref)) for ref in refs])
    text = found.encoder.rendered(item.prompt) + answer + "<|end|>"
    inputs = dict(found.encoder.processor(text=[text], **given, return_tensors="pt", add_special_tokens=False))
    inputs.pop("video_metadata", None)
    with torch.no_grad():
        logits = found.model(**inputs).logits[0].log_softmax(-1)
    return logits[:-1].gather(1, inputs["input_ids"][0, 1:, None])[-len(answer) - 1 :, 0]


@pytest.mark.parametrize("rows", ["plain", "auto"])
@pytest.mark.parametrize("what", list(PIECES))
def test_scores_are_those_of_transformers_own_processor_and_forward(what: str, rows: str) -> None:
    """In a batch with padding and, in ``auto``, two answers in one row; positions in time, height and width are the model's."""
    found = wide(rows=rows)
    first, second = (sample(f"{n}", answer, *PIECES[what], "?") for n, answer in enumerate(("red it is", "blue")))
    other = sample("text", "no, not this time", "Hm?")
    scores = found(found.collate([first, other, second]), frozenset())
    for place, item, answer in ((0, first, "red it is"), (2, second, "blue")):
        expected = own_log_probs(found, item, answer)
        torch.testing.assert_close(scores.log_probs[place, 0, : len(expected)], expected, rtol=1e-4, atol=1e-4)
        assert int(scores.mask[place].sum()) == len(expected)


def test_what_is_scored_is_what_generation_draws() -> None:
    """Greedy answers are the likeliest ids at every place, by `likeliest` over the whole row."""
    found = wide()
    prompts = [Prompt.of(asked(*PIECES[what], "?"), MEDIA) for what in PIECES] + [Prompt.of(asked("Hm?"), MEDIA)]
    rollouts = found.generate(prompts, samples_per_prompt=1, seed=0, max_new_tokens=5, temperature=0.0)
    with torch.no_grad():
        for rollout in rollouts:
            ids, _ = found.likeliest(found.collator.of_rollouts([rollout]), 1)
            drawn = rollout.decisions[0].ids
            allowed = ~torch.isin(ids[:, 0], torch.tensor(sorted(found.encoder.media_ids)))
            assert (ids[:, 0] == drawn)[allowed].all() and allowed.any()


@pytest.mark.parametrize("settings", [{}, {"lora": None, "tower": "full"}], ids=["frozen", "trained"])
def test_each_distinct_medium_is_encoded_once_however_many_prompts_share_it(settings: dict[str, Any]) -> None:
    found = policy(**settings)
    seen: dict[str, list[int]] = {"visual": [], "audio_tower": []}
    found.model.model.visual.patch_embed.register_forward_hook(lambda module, given, output: seen["visual"].append(len(output)))
    found.model.model.audio_tower.ln_post.register_forward_hook(
        lambda module, given, output: seen["audio_tower"].append(len(output))
    )
    shared = ["audio", "image", "video"]
    batch = found.collate([sample(str(n), "yes", *shared, f"{n}?") for n in range(3)])
    found(batch, frozenset())
    assert sorted(seen["visual"]) == [16, 32]  # the picture's 16 patches; 2 pairs of frames of the clip
    assert seen["audio_tower"] == [7]  # 0.3 s: 30 frames, 15 behind the convolution, 7 pairs
    if not settings:  # the reference shares the batch
        found(batch, frozenset())
        assert len(seen["visual"]) == 2 and len(seen["audio_tower"]) == 1


def test_features_of_frozen_towers_come_from_disk(tmp_path: Path) -> None:
    found, plain = policy(cache_features=True), policy()
    items = [sample(what, "yes", *PIECES[what], "?") for what in PIECES]
    found.prepare(items, tmp_path)
    for tower in (found.model.model.visual, found.model.model.audio_tower):
        tower.register_forward_hook(lambda *_: pytest.fail("a tower ran again"))
    torch.testing.assert_close(found(found.collate(items)).log_probs, plain(plain.collate(items)).log_probs)


def test_rate_order_and_pitch_are_noticed() -> None:
    found = wide()
    clips = [medium("video", webp("red", seconds=seconds), "image/webp") for seconds in (1.0, 4.0)]
    sounds = [medium("audio", wav(pitch), "audio/wav") for pitch in (300, 800)]
    items = [sample(str(n), "it is", one, "?") for n, one in enumerate([*clips, *sounds])]
    items += [sample("forth", "it is", "image", "audio", "?"), sample("back", "it is", "audio", "image", "?")]
    quick, slow, low, high, forth, back = found(found.collate(items), frozenset()).log_probs.sum((1, 2)).tolist()
    assert abs(quick - slow) > 1e-3 and abs(low - high) > 1e-3 and abs(forth - back) > 1e-3


def test_a_start_token_without_a_medium_is_a_word_like_others() -> None:
    """The model's own count takes every start token for a medium, and finds none behind it."""
    found = wide()
    item = sample("stray", "yes", "image", "audio", "Is <|audio_bos|> or <|vision_bos|> one?")
    scores = found(found.collate([item]), frozenset())
    assert torch.isfinite(scores.log_probs).all()
    with pytest.raises(ValueError, match="not in list"):
        own_log_probs(found, item, "yes")
    (rollout,) = found.generate([Prompt.of(item.prompt, MEDIA)], temperature=0.0, max_new_tokens=4)
    with torch.no_grad():
        expected = found.likeliest(found.collator.of_rollouts([rollout]), 1)[0][:, 0]
    assert expected.tolist() == rollout.decisions[0].ids.tolist()


@pytest.mark.parametrize("objective", ["sft", "dpo"])
@pytest.mark.parametrize(
    "settings", [{}, {"tower": "full"}, {"lora": None, "tower": "full"}], ids=["lora", "lora-towers", "everything"]
)
def test_steps_move_the_margin_and_reach_every_weight(objective: str, settings: dict[str, Any]) -> None:
    """DPO raises the margin of each pair: a picture's, a clip's, a sound's, and that of all three in one prompt. SFT, which sees
    better answers only, raises each of them, and the mean margin, though what is better here is worse there."""
    found = policy(**settings)
    made, media = records()
    micro = collate_examples([e for record in made if not record.tags for e in VIEWS["pairs"](record, media)], found.collator)
    better, worse = micro.feedback.edges.better, micro.feedback.edges.worse

    def log_probs() -> torch.Tensor:
        with torch.no_grad():
            return found(micro.batch, frozenset()).reduced("sum").mean(-1)

    before = log_probs()
    steps, rate = (6, 1e-3) if objective == "dpo" else (20, 3e-3 if settings else 1e-2)
    reference = AdaptersOff(found) if found.has_adapters else FrozenCopy(found)
    window = WindowLoss(found, *((reference, DPO()) if objective == "dpo" else (None, SFT())), "cpu")
    parameters = trainable(found)
    optimizer = torch.optim.AdamW(parameters.values(), lr=rate, weight_decay=0.0)
    for step in range(steps):
        window.train([micro], lambda value, last: value.backward())
        if step == steps - 1:
            for name, parameter in parameters.items():
                assert parameter.grad is not None and torch.isfinite(parameter.grad).all() and parameter.grad.any(), name
        optimizer.step()
        optimizer.zero_grad()
    gained = log_probs() - before
    if objective == "dpo":
        assert (gained[better] > gained[worse]).all()
    else:
        assert (gained[better] > 0).all() and gained[better].mean() > gained[worse].mean()


def test_without_a_plugin_for_sound_pictures_are_read_and_sound_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*missing: str) -> Any:
        return lambda modality, *rest, **more: None if modality in missing else installed_kind(modality, *rest, **more)

    monkeypatch.setattr(omni, "installed_kind", without("audio", "video"))
    found, whole = policy(lora=None, tower="full"), policy(lora=None)
    assert not any("audio_tower" in name for name in trainable(found)) and any("visual" in name for name in trainable(found))
    item = sample("a", "yes", "image", "?")
    torch.testing.assert_close(found(found.collate([item])).log_probs, whole(whole.collate([item])).log_probs)
    with pytest.raises(RecordError, match="holds a audio part, but this policy reads text and pictures"):
        found.collate([sample("b", "yes", "audio", "?")])
    monkeypatch.setattr(omni, "installed_kind", without("audio", "video", "image"))
    with pytest.raises(ConfigError, match="no plugin that decodes pictures, sound or clips"):
        policy()


def test_a_saved_policy_is_built_again_with_its_processor(tmp_path: Path) -> None:
    first = policy(lora=None)
    first.save(tmp_path / "model")
    again = build(OmniLanguageConfig(base=str(tmp_path / "model"), frames=4, max_length=160, max_response=48, **SIZES))
    items = [sample(what, "yes", *PIECES[what], "What?") for what in PIECES]
    expected, found = (made.eval()(made.collate(items), frozenset()).log_probs for made in (first, again))
    np.testing.assert_allclose(found.detach(), expected.detach(), atol=1e-5)


def test_of_a_whole_omni_model_the_thinker_is_loaded(tmp_path: Path) -> None:
    from transformers import Qwen2_5OmniConfig, Qwen2_5OmniForConditionalGeneration

    model, processor = tiny_thinker()
    whole = Qwen2_5OmniForConditionalGeneration(
        Qwen2_5OmniConfig(thinker_config=model.config.to_dict(), enable_audio_output=False)
    )
    whole.thinker.load_state_dict(model.state_dict())
    whole.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    found = build(OmniLanguageConfig(base=str(tmp_path), frames=4, max_length=160, max_response=48, **SIZES)).eval()
    items = [sample("a", "yes", *PIECES["all"], "What?")]
    expected = policy((model, processor), lora=None).eval()
    torch.testing.assert_close(found(found.collate(items)).log_probs, expected(expected.collate(items)).log_probs)
