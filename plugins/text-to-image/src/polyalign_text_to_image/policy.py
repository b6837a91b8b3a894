"""The text-to-image policy: one class for every family of diffusers pipelines."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from pydantic import ValidationError
from torch import Tensor

from polyalign.assets import resolve_model
from polyalign.errors import ConfigError
from polyalign.policies.adapters import ADAPTER, adapters_off, add_lora, trainable
from polyalign.policies.base import Rollout, Rollouts
from polyalign.policies.denoising import DenoisingPolicy
from polyalign.policies.feature_cache import Features
from polyalign.policies.fingerprint import weights_fingerprint
from polyalign.policies.samplers import Grid
from polyalign.policies.sampling import rollouts_of
from polyalign.randomness import keyed_generator
from polyalign.records.samples import Sample
from polyalign.records.schema import Message
from polyalign_text_to_image.collator import TextToImageCollator, hash_of
from polyalign_text_to_image.config import DecodingConfig, TextToImageConfig
from polyalign_text_to_image.frozen import FrozenPipeline, description_of
from polyalign_text_to_image.pictures import caption_of, open_picture, to_pictures, to_pixels
from polyalign_text_to_image.pipelines import PipelineFamily, family_of, grid_of_scheduler, schedule_of


class TextToImagePolicy(DenoisingPolicy):
    """The denoiser of a diffusers pipeline. VAE, text encoders and tokenizers stay outside the module tree, frozen."""

    inputs = frozenset({"text"})
    outputs = frozenset({"image"})
    provides = frozenset({"log_probs", "predictions", "sample_grad"})

    def __init__(self, pipeline: DiffusionPipeline, config: TextToImageConfig, seed: int = 0) -> None:
        family = family_of(type(pipeline).__name__, config.base)
        network = getattr(pipeline, family.denoiser)
        frozen = FrozenPipeline(pipeline, family.denoiser)
        schedule = schedule_of(pipeline.scheduler, config.prediction)
        resolution = config.resolution or network.config.sample_size * frozen.pixels_per_latent
        if resolution % frozen.pixels_per_latent:
            raise ConfigError(
                f"policy.resolution={resolution} is not a multiple of {frozen.pixels_per_latent}, "
                "the pixels per latent of this VAE; give one that is"
            )
        fingerprints = frozen.latent_fingerprint(resolution, config.latents), frozen.text_fingerprint(config.max_sequence_length)
        super().__init__(TextToImageCollator(schedule, config, seed, resolution, fingerprints))
        self.frozen, self.config, self.resolution = frozen, config, resolution
        self.family_of_pipeline: PipelineFamily = family(frozen.pixels_per_latent)
        self.encode_batch = config.encode_batch
        self.base_fingerprint = weights_fingerprint(
            network.state_dict().items(), description_of(dict(network.config)), *fingerprints
        )
        self.network = network
        if config.lora is None:
            network.requires_grad_(True)
        else:
            add_lora(network, config.lora, seed)
            for parameter in trainable(network).values():
                parameter.data = parameter.data.float()  # a bfloat16 base still learns in float32

    # scoring

    def denoise(self, noised: Tensor, timesteps: Tensor, conditions: dict[str, Tensor]) -> Tensor:
        dtype = self.network.dtype
        conditions = {name: value.to(dtype) for name, value in conditions.items()}
        return self.family_of_pipeline.denoise(self.network, noised.to(dtype), timesteps, conditions)

    @property
    def has_adapters(self) -> bool:
        return self.config.lora is not None

    @contextmanager
    def as_reference(self) -> Iterator[None]:
        if not self.has_adapters:
            with super().as_reference():
                yield
        with adapters_off(self.network):
            yield

    def fingerprint(self) -> str:
        return hash_of(self.base_fingerprint, self.score_description())

    def enable_gradient_checkpointing(self) -> None:
        self.network.enable_gradient_checkpointing()

    # frozen encoders

    @contextmanager
    def encoders(self) -> Iterator[None]:
        """Have VAE and text encoders on the policy's device inside; elsewhere they leave its memory to training."""
        modules = self.frozen.modules().values()
        for module in modules:
            module.to(self.device)
        try:
            yield
        finally:
            for module in modules:
                module.to("cpu")

    def encode_latents(self, samples: Sequence[Sample]) -> list[Features]:
        vae = self.frozen.vae
        shift, scale = vae.config.get("shift_factor") or 0.0, vae.config.scaling_factor
        pixels = torch.stack([to_pixels(open_picture(sample), self.resolution) for sample in samples])
        posterior = vae.encode(pixels.to(self.device)).latent_dist
        entries = [{"mean": mean} for mean in (posterior.mean - shift) * scale]
        if self.config.latents == "sample":
            entries = [{**entry, "std": std} for entry, std in zip(entries, posterior.std * scale, strict=True)]
        return entries

    def encode_conditions(self, samples: Sequence[Sample]) -> list[Features]:
        return self._encode_captions([caption_of(sample.prompt) for sample in samples])

    def _encode_captions(self, captions: list[str]) -> list[Features]:
        pipeline = self.frozen.assemble(self.network)
        encoded = self.family_of_pipeline.encode_text(pipeline, captions, self.device, self.config.max_sequence_length)
        return [{name: value[row] for name, value in encoded.items()} for row in range(len(captions))]

    def _embed(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Return the embeddings of captions, batch first, on the device; from the cache where it has them."""
        features = self.collator.features
        missing = list(dict.fromkeys(caption for caption in captions if self.collator.caption_key(caption) not in features))
        for start in range(0, len(missing), self.encode_batch):
            chunk = missing[start : start + self.encode_batch]
            for caption, entry in zip(chunk, self._encode_captions(chunk), strict=True):
                features.store(self.collator.caption_key(caption), entry, f"the caption {caption!r}")
        entries = [features.load(self.collator.caption_key(caption)) for caption in captions]
        dtype = self.network.dtype
        return {name: torch.stack([entry[name] for entry in entries]).to(self.device, dtype) for name in entries[0]}

    # drawing pictures

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[tuple[Message, ...]], *, samples_per_prompt: int = 1, seed: int = 0, **decoding: Any
    ) -> Rollouts:
        """Return pictures (PIL, RGB). The noise of a picture is keyed by (seed, caption, its number under that caption), so
        it does not depend on what else is drawn. ``decoding``: fields of `DecodingConfig`. By default the pipeline's own
        sampler draws; ``sampler`` (fields of `SamplerConfig`) draws rollouts that can be scored again, to train on."""
        settings = decoding_of(decoding)
        if settings.sampler is not None:
            return rollouts_of(self, prompts, samples_per_prompt, seed, settings.sampler)
        captions = [caption_of(prompt) for prompt in prompts for _ in range(samples_per_prompt)]
        seen: Counter[str] = Counter()
        keys = []
        for caption in captions:
            keys.append((seed, "generate", caption, seen[caption]))
            seen[caption] += 1
        training = self.training
        self.eval()
        try:
            with self.encoders():
                pictures = [
                    picture
                    for start in range(0, len(captions), settings.batch_size)
                    for picture in self._draw(
                        captions[start : start + settings.batch_size], keys[start : start + settings.batch_size], settings
                    )
                ]
        finally:
            self.train(training)
        used = {**settings.model_dump(), "seed": seed}
        asked = [prompt for prompt in prompts for _ in range(samples_per_prompt)]
        return tuple(Rollout(prompt, picture, decoding=used) for prompt, picture in zip(asked, pictures, strict=True))

    def _draw(self, captions: list[str], keys: list[tuple[int, str, str, int]], settings: DecodingConfig) -> list[Any]:
        pipeline = self.frozen.assemble(self.network)
        arguments = self._embed(captions)
        if settings.guidance_scale > 1:
            blank = self._embed([settings.negative_prompt or ""] * len(captions))
            if settings.negative_prompt is None and self.frozen.settings.get("force_zeros_for_empty_prompt"):
                blank = {name: torch.zeros_like(value) for name, value in blank.items()}
            arguments |= {f"negative_{name}": value for name, value in blank.items()}
        latents = pipeline(
            **arguments,
            height=self.resolution,
            width=self.resolution,
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            generator=[keyed_generator(*key) for key in keys],
            output_type="latent",
        ).images
        return self.outputs_of(self.decode_latents(latents))

    def latent_shape(self, prompt: tuple[Message, ...]) -> tuple[int, ...]:
        side = self.resolution // self.frozen.pixels_per_latent
        return self.network.config.in_channels, side, side

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Return pictures ``[N, 3, H, W]`` in [0, 1]. The VAE comes to the latents' device, and stays in float32."""
        vae = self.frozen.vae.to(latents.device)
        shift = vae.config.get("shift_factor") or 0.0
        with torch.autocast(latents.device.type, enabled=False):
            decoded = vae.decode(latents.float() / vae.config.scaling_factor + shift, return_dict=False)[0]
        return (decoded / 2 + 0.5).clamp(0, 1)

    def outputs_of(self, decoded: Tensor) -> list[Any]:
        return to_pictures(decoded)

    def sampling_grid(self, steps: int) -> Grid:
        return grid_of_scheduler(self.frozen.parts["scheduler"], steps, self.latent_shape(()), self.network.config)

    def noise_key(self, prompt: tuple[Message, ...]) -> str:
        return caption_of(prompt)

    def encode_blank(self) -> None:
        key = self.collator.blank_key()
        if key in self.collator.features:
            return
        with torch.no_grad(), self.encoders():
            (entry,) = self._encode_captions([""])
        if self.frozen.settings.get("force_zeros_for_empty_prompt"):
            entry = {name: torch.zeros_like(value) for name, value in entry.items()}
        self.collator.features.store(key, entry, "the empty prompt")

    # files

    def save(self, folder: Path) -> None:
        """Write a whole diffusers pipeline; with LoRA only ``pytorch_lora_weights.safetensors``, for ``load_lora_weights``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self.config.lora is None:
            self.frozen.assemble(self.network).save_pretrained(folder)
            return
        from peft import get_peft_model_state_dict

        layers = get_peft_model_state_dict(self.network, adapter_name=ADAPTER)
        settings = self.network.peft_config[ADAPTER].to_dict()
        name = self.frozen.denoiser
        self.frozen.kind.save_lora_weights(folder, **{f"{name}_lora_layers": layers, f"{name}_lora_adapter_metadata": settings})

    def save_merged(self, folder: Path) -> None:
        network = self.network
        if self.config.lora is not None:
            network = copy.deepcopy(network)
            network.fuse_lora(adapter_names=[ADAPTER])
            network.unload_lora()
        self.frozen.assemble(network).save_pretrained(folder)


def decoding_of(options: dict[str, Any]) -> DecodingConfig:
    """Read decoding options. Raises `ConfigError` naming each that is wrong."""
    try:
        return DecodingConfig(**options)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"decoding options: {problems}. Known: {', '.join(DecodingConfig.model_fields)}") from error


def build(config: TextToImageConfig, *, device: str = "cpu", seed: int = 0) -> TextToImagePolicy:
    """Return the policy on ``device``. ``seed`` keys its noise and the first LoRA weights."""
    base = resolve_model(config.base)
    try:
        kind = DiffusionPipeline.load_config(base)["_class_name"]
        family_of(kind, config.base)
        dtype = getattr(torch, config.dtype)
        more = {"safety_checker": None, "requires_safety_checker": False} if kind == "StableDiffusionPipeline" else {}
        pipeline = DiffusionPipeline.from_pretrained(
            base, dtype={"default": dtype, "vae": torch.float32}, use_safetensors=True, **more
        )
    except (OSError, KeyError) as error:
        raise ConfigError(
            f"policy.base={config.base!r} is not a diffusers pipeline with safetensors weights ({error}); "
            "give a folder with model_index.json, a hub id, zoo:NAME or asset:NAME"
        ) from error
    policy = TextToImagePolicy(pipeline, config, seed)
    policy.to(device)
    return policy
