"""What holds for every family of pipelines: scores, references, draws and caches."""

from __future__ import annotations

import copy
import io
import math
import pickle
from pathlib import Path
from unittest import mock

import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image

from polyalign.errors import ConfigError, TrainingError
from polyalign.objectives.base import FeedbackTensors, Objective
from polyalign.objectives.config import DPOConfig, InstructEngineConfig
from polyalign.objectives.instruct_engine import InstructEngine
from polyalign.objectives.pairwise import DPO
from polyalign.policies.adapters import trainable
from polyalign.policies.reference import AdaptersOff, CachedScores, FrozenCopy
from polyalign.records.samples import Example
from polyalign.records.views import VIEWS
from polyalign_text_to_image import fixture
from polyalign_text_to_image.fixture import drawings
from polyalign_text_to_image.policy import TextToImagePolicy

XL = pytest.param("unet_xl", marks=pytest.mark.slow)
FAMILIES = ["flow", "unet", XL]
RECORDS, MEDIA = drawings()
PAIRS = [example for record in RECORDS if not record.tags for example in VIEWS["pairs"](record, MEDIA)]
GRIDS = [example for record in RECORDS if record.tags for example in VIEWS["grids"](record, MEDIA)]


def samples_of(examples: list[Example]) -> list:
    return [sample for example in examples for sample in example.samples]


def moved(policy: TextToImagePolicy) -> TextToImagePolicy:
    """Give every trainable weight a small keyed push, so that policy and reference differ."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in trainable(policy).values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return policy


def loss_of(objective: Objective, policy: TextToImagePolicy, examples: list[Example]) -> torch.Tensor:
    batch = policy.collate(samples_of(examples))
    reference = AdaptersOff(policy)(batch)
    terms = objective(policy(batch), {"reference": reference}, FeedbackTensors.of(examples))
    return sum(term.sum for term in terms.values()) / next(iter(terms.values())).weight


@pytest.mark.parametrize(
    ("family", "rate"), [("flow", 1e-2), ("unet", 1e-2), pytest.param("unet_xl", 3e-2, marks=pytest.mark.slow)]
)
def test_loss_at_the_reference_is_ln2_per_preference_and_training_lowers_it(family: str, rate: float) -> None:
    policy = fixture.policy(family)
    assert loss_of(DPO(DPOConfig(beta=5000)), policy, PAIRS[:2]).item() == pytest.approx(math.log(2), abs=1e-6)
    grid_loss = InstructEngine(InstructEngineConfig(beta=2000))
    assert loss_of(grid_loss, policy, GRIDS[:1]).item() == pytest.approx(2 * math.log(2), abs=1e-6)

    optimizer = torch.optim.AdamW(trainable(policy).values(), lr=rate)
    objective = DPO(DPOConfig(beta=5000))
    for _ in range(5):
        optimizer.zero_grad()
        loss = loss_of(objective, policy, PAIRS[:1])
        loss.backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in trainable(policy).values())
        optimizer.step()
    assert loss.item() < math.log(2) - 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_off_equal_the_base_bitwise_and_come_back_on(family: str) -> None:
    base, policy = fixture.policy(family, lora=None), moved(fixture.policy(family))
    base.requires_grad_(False)  # as under adapters: torch multiplies by a weight that needs gradients in another order
    batch = policy.collate(samples_of(PAIRS[:2]))
    with torch.no_grad():
        expected, tuned = base(batch).log_probs, policy(batch).log_probs
    assert torch.equal(AdaptersOff(policy)(batch).log_probs, expected)
    assert not torch.equal(tuned, expected)
    assert torch.equal(policy(batch).log_probs, tuned)
    assert all(parameter.requires_grad for parameter in trainable(policy).values()) and trainable(policy)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_diffusion_dpo_errors_computed_by_hand_with_diffusers(family: str) -> None:
    """The network is called directly, with latents and embeddings from the pipeline's own VAE and encode_prompt."""
    policy = fixture.policy(family, lora=None)
    pipeline, network = policy.frozen.assemble(policy.network), policy.network
    samples = samples_of(PAIRS[:1])
    scores = policy(policy.collate(samples)).log_probs.flatten()
    for row, sample in enumerate(samples):
        vae = policy.frozen.vae
        pixels = pipeline.image_processor.preprocess(_png(sample), height=policy.resolution, width=policy.resolution)
        shift = vae.config.shift_factor or 0
        clean = (vae.encode(pixels).latent_dist.mode() - shift) * vae.config.scaling_factor
        level = policy.collator.level(sample.draw_key, ("epoch 0", 0))
        noise = policy.collator.noise(sample.draw_key, ("epoch 0", 0), clean.shape[1:])[None]
        caption = sample.prompt[-1].parts[0].text
        if family == "flow":
            t = pipeline.scheduler.timesteps.flip(0)[level][None]
            text, _, pooled, _ = pipeline.encode_prompt(caption, None, None, do_classifier_free_guidance=False)
            noised = pipeline.scheduler.scale_noise(clean, t, noise)
            predicted = network(noised, text, pooled, t, return_dict=False)[0]
            target = noise - clean
        else:
            target = noise
            noised = DDPMScheduler.from_config(pipeline.scheduler.config).add_noise(clean, noise, torch.tensor([level]))
            if family == "unet":
                text, _ = pipeline.encode_prompt(caption, "cpu", 1, False)
                added = {}
            else:
                text, _, pooled, _ = pipeline.encode_prompt(caption, do_classifier_free_guidance=False)
                size = torch.tensor([[32.0, 32, 0, 0, 32, 32]])
                added = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": size}}
            predicted = network(noised, level, text, **added, return_dict=False)[0]
        expected = -0.5 * (target - predicted).square().mean()
        torch.testing.assert_close(scores[row], expected, rtol=1e-4, atol=1e-5)


def _png(sample):  # type: ignore[no-untyped-def]
    return Image.open(io.BytesIO(sample.media.read(sample.response[0].media))).convert("RGB")


def test_swapping_chosen_and_rejected_flips_the_margin() -> None:
    policy = moved(fixture.policy("flow"))
    better, worse = PAIRS[0].samples

    def margin(first, second):  # type: ignore[no-untyped-def]
        batch = policy.collate([first, second])
        return -(policy(batch).log_probs - AdaptersOff(policy)(batch).log_probs).flatten().diff()

    there = margin(better, worse)
    assert there.abs() > 1e-5
    torch.testing.assert_close(there, -margin(worse, better), rtol=0, atol=1e-6)


def test_frozen_encoders_are_neither_parameters_nor_copied() -> None:
    policy = fixture.policy("flow", lora=None)
    assert {name.split(".")[0] for name, _ in policy.named_parameters()} == {"network"}
    twin = copy.deepcopy(policy)
    assert twin.frozen is policy.frozen and twin.network is not policy.network
    assert not any(p.requires_grad for module in policy.frozen.modules().values() for p in module.parameters())
    assert all(p.requires_grad for p in policy.network.parameters())


@pytest.mark.parametrize("family", ["flow", "unet"])
def test_no_vae_and_no_text_encoder_runs_in_a_training_step_with_warm_caches(family: str, tmp_path: Path) -> None:
    policy = fixture.policy(family)
    policy.collator.features = type(policy.collator.features)()
    samples = samples_of([*PAIRS, *GRIDS])
    with counted(policy) as calls:
        policy.prepare(samples, tmp_path)
    # 12 distinct pictures, 12 captions (6 of the pairs, 6 of the grids): one pass each, 16 at a time
    assert calls == {"vae": 1, **dict.fromkeys(policy.frozen.text_modules(), 1)}
    collator = pickle.loads(pickle.dumps(policy.collator))
    with counted(policy) as calls:
        for example in (*PAIRS[:2], *GRIDS[:1]):
            policy(collator(example.samples)).log_probs.sum().backward()
    assert calls == {}


class counted:
    """Count the calls of VAE encoder and text encoders."""

    def __init__(self, policy: TextToImagePolicy) -> None:
        self.modules = {"vae": policy.frozen.vae.encoder, **policy.frozen.text_modules()}
        self.calls: dict[str, int] = {}

    def __enter__(self) -> dict[str, int]:
        def count(name: str):  # type: ignore[no-untyped-def]
            return lambda *_: self.calls.__setitem__(name, self.calls.get(name, 0) + 1)

        self.hooks = [module.register_forward_hook(count(name)) for name, module in self.modules.items()]
        return self.calls

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()


def test_cached_features_give_the_scores_of_fresh_ones(tmp_path: Path) -> None:
    """One by one or sixteen at a time, from memory or from disk: 1e-6."""
    policy, alone = fixture.policy("flow"), fixture.policy("flow", encode_batch=1)
    policy.collator.features, alone.collator.features = (type(policy.collator.features)() for _ in range(2))
    samples = samples_of(PAIRS[:3])
    policy.prepare(samples, tmp_path)
    policy.collator.features.clear_memory()
    cached, fresh = policy(policy.collator(samples)).log_probs, alone(alone.collate(samples)).log_probs
    torch.testing.assert_close(cached, fresh, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["flow", "unet"])
def test_bank_reference_from_disk_equals_the_live_one(family: str, tmp_path: Path) -> None:
    policy = moved(fixture.policy(family, bank=2, draws=1))
    live, cached = AdaptersOff(policy), CachedScores(AdaptersOff(policy), tmp_path, policy.fingerprint())
    batch = policy.collate(samples_of(PAIRS[:2]))
    first = cached(batch)
    cached.save()
    stored = CachedScores(None, tmp_path, policy.fingerprint())(batch)
    assert torch.equal(stored.log_probs, live(batch).log_probs) and torch.equal(stored.log_probs, first.log_probs)


def test_fingerprint_is_stable_under_training_and_tells_settings_apart() -> None:
    names = [
        fixture.policy("flow", **settings).fingerprint()
        for settings in ({}, {"reduction": "sum"}, {"timesteps": "logit_normal"}, {"latents": "sample"}, {"resolution": 8})
    ]
    names.append(fixture.policy("unet").fingerprint())
    assert len(set(names)) == 6
    assert moved(fixture.policy("flow")).fingerprint() == names[0]
    assert moved(fixture.policy("flow", lora=None)).fingerprint() == names[0]


def test_latents_of_another_encoder_or_resolution_are_never_read() -> None:
    sample = PAIRS[0].samples[0]
    first, second = fixture.policy("flow"), fixture.policy("flow", resolution=8)
    assert first.collator.latent_key(sample) != second.collator.latent_key(sample)
    assert first.collator.condition_key(sample) == second.collator.condition_key(sample)
    assert first.collator.condition_key(sample) != fixture.policy("unet").collator.condition_key(sample)


def test_a_vae_that_overflows_is_reported_with_the_sample() -> None:
    policy = fixture.policy("flow")
    policy.collator.features = type(policy.collator.features)()
    broken = mock.Mock(latent_dist=mock.Mock(mean=torch.full((2, 4, 16, 16), math.nan)))
    with mock.patch.object(policy.frozen.vae, "encode", return_value=broken), pytest.raises(TrainingError, match="pair-red#0"):
        policy.collate(PAIRS[0].samples)


def test_bfloat16_weights_learn_through_float32_adapters() -> None:
    policy = fixture.policy("flow", dtype="float32")
    policy.network.to(torch.bfloat16)
    for parameter in trainable(policy).values():
        parameter.data = parameter.data.float()
    scores = policy(policy.collate(PAIRS[0].samples))
    assert scores.log_probs.dtype == torch.float32
    scores.log_probs.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in trainable(policy).values())


def test_gradient_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for checkpointing in (False, True):
        policy = moved(fixture.policy("flow"))
        policy.train()
        if checkpointing:
            policy.enable_gradient_checkpointing()
        policy(policy.collate(PAIRS[0].samples)).log_probs.sum().backward()
        gradients.append([parameter.grad for parameter in trainable(policy).values()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-5, atol=1e-7)


def test_full_fine_tuning_has_no_adapters_and_takes_a_frozen_copy() -> None:
    policy = fixture.policy("flow", lora=None)
    assert not policy.has_adapters
    with pytest.raises(TrainingError, match="has no adapters to switch off"), policy.as_reference():
        pass
    batch = policy.collate(PAIRS[0].samples)
    reference = FrozenCopy(policy)
    before = policy(batch).log_probs.detach()
    moved(policy)
    assert torch.equal(reference(batch).log_probs, before)


def test_budget_counts_pixels() -> None:
    assert fixture.policy("flow", draws=3).collator.cost(PAIRS[0].samples[0]) == 16 * 16 * 3


def test_resolution_must_fit_the_vae() -> None:
    with pytest.raises(ConfigError, match=r"policy\.resolution=33 is not a multiple of 2"):
        fixture.policy("unet", resolution=33)
