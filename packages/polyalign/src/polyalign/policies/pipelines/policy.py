"""The policy behind every family of diffusers pipelines; a plugin's subclass reads and makes its medium."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from polyalign.assets import resolve_model
from polyalign.errors import ConfigError
from polyalign.policies.adapters import ADAPTER, add_lora, trainable
from polyalign.policies.base import Rollout, Rollouts, evaluating
from polyalign.policies.config import decoding_of, decoding_of_round
from polyalign.policies.denoising import DenoisingPolicy
from polyalign.policies.feature_cache import Features
from polyalign.policies.fingerprint import weights_fingerprint
from polyalign.policies.pipelines.collator import PipelineCollator, caption_of, hash_of
from polyalign.policies.pipelines.config import DecodingConfig, PipelineConfig
from polyalign.policies.pipelines.families import PipelineFamily, family_of
from polyalign.policies.pipelines.frozen import FrozenPipeline, description_of
from polyalign.policies.pipelines.schedulers import grid_of_scheduler, schedule_of
from polyalign.policies.samplers import Grid
from polyalign.policies.sampling import rollouts_of
from polyalign.randomness import keyed_generator
from polyalign.records.samples import Sample
from polyalign.records.schema import Message


class PipelinePolicy(DenoisingPolicy):
    """The denoiser of a diffusers pipeline. VAE, text encoders and tokenizers stay outside the module tree, frozen.

    A subclass names its ``families`` and ``modality`` and says how big its media are (`media_size`), how one is read
    (`read_media`) and made (`finished`, `outputs_of`). ``reading`` describes `read_media`; it enters the key of cached latents.
    """

    families: ClassVar[tuple[type[PipelineFamily], ...]]
    modality: ClassVar[str]
    reading: ClassVar[str]
    inputs = frozenset({"text"})
    provides = frozenset({"log_probs", "predictions", "sample_grad"})

    def __init__(self, pipeline: Any, config: PipelineConfig, seed: int = 0) -> None:
        family = family_of(self.families, type(pipeline).__name__, config.base)
        network = getattr(pipeline, family.denoiser)
        if config.lora is not None and not hasattr(network, "add_adapter"):
            raise ConfigError(
                f"diffusers has no LoRA for {type(network).__name__}; drop policy.lora, to train the whole denoiser"
            )
        frozen = FrozenPipeline(pipeline, family)
        media, latents, cost = self.media_size(pipeline, network, config)
        fingerprints = (
            frozen.latent_fingerprint(self.reading, *(str(value) for value in media.values()), config.latents),
            frozen.text_fingerprint(config.max_sequence_length),
        )
        schedule = schedule_of(pipeline.scheduler, config.prediction)
        super().__init__(PipelineCollator(schedule, config, seed, self.modality, cost, fingerprints))
        self.frozen, self.config = frozen, config
        self.call_size, self.shape_of_latents = media, latents
        self.family_of_pipeline = family(pipeline)
        self.encode_batch = config.encode_batch  # type: ignore[misc]
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

    # what a subclass says of its medium

    @abstractmethod
    def media_size(self, pipeline: Any, network: Any, config: Any) -> tuple[dict[str, Any], tuple[int, ...], int]:
        """Return what the pipeline's own call is told of the size of a response (``height`` ...), the shape of its latents
        ``(C, ...)`` and its cost in a budget. Raises `ConfigError` for sizes that the VAE cannot make."""

    @abstractmethod
    def read_media(self, sample: Sample) -> Tensor:
        """Return the response as the VAE reads it, ``[C, ...]`` float32."""

    @abstractmethod
    def finished(self, decoded: Tensor) -> Tensor:
        """Return what the VAE made as responses ``[N, ...]`` that `outputs_of` and rewards take; keeps the gradient."""

    # scoring

    def denoise(self, noised: Tensor, timesteps: Tensor, conditions: dict[str, Tensor]) -> Tensor:
        dtype = self.network.dtype
        conditions = {name: _cast(value, dtype) for name, value in conditions.items()}
        return self.family_of_pipeline.denoise(self.network, noised.to(dtype), timesteps, conditions)

    @property
    def adapted(self) -> Any:
        return self.network if self.config.lora is not None else None

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
        media = torch.stack([self.read_media(sample) for sample in samples]).to(self.device)
        posterior = self.frozen.vae.encode(media).latent_dist
        mean = posterior.mean
        shift, scale = (_on(value, mean.device) for value in self.frozen.latent_scaling(mean.ndim - 1))
        entries = [{"mean": row} for row in (mean - shift) * scale]
        if self.settings.latents == "sample":
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
        collator = self.collator
        assert isinstance(collator, PipelineCollator)
        features = collator.features
        missing = list(dict.fromkeys(caption for caption in captions if collator.caption_key(caption) not in features))
        for start in range(0, len(missing), self.encode_batch):
            chunk = missing[start : start + self.encode_batch]
            for caption, entry in zip(chunk, self._encode_captions(chunk), strict=True):
                features.store(collator.caption_key(caption), entry, f"the caption {caption!r}")
        entries = [features.load(collator.caption_key(caption)) for caption in captions]
        dtype = self.network.dtype
        return {name: _cast(torch.stack([entry[name] for entry in entries]).to(self.device), dtype) for name in entries[0]}

    # drawing

    @torch.no_grad()
    def decoding_at(self, decoding: dict[str, Any], round_number: int) -> dict[str, Any]:
        return decoding_of_round(DecodingConfig, decoding, round_number)

    def generate(
        self, prompts: Sequence[tuple[Message, ...]], *, samples_per_prompt: int = 1, seed: int = 0, **decoding: Any
    ) -> Rollouts:
        """Return responses as `outputs_of` makes them. The noise of a response is keyed by (seed, caption, its number under
        that caption), so it does not depend on what else is drawn. ``decoding``: fields of `DecodingConfig`. By default the
        pipeline's own sampler draws; ``sampler`` (fields of `SamplerConfig`) draws rollouts that can be scored again."""
        settings = decoding_of(DecodingConfig, decoding)
        if settings.sampler is not None:
            return rollouts_of(self, prompts, samples_per_prompt, seed, settings.sampler)
        captions = [caption_of(prompt) for prompt in prompts for _ in range(samples_per_prompt)]
        seen: Counter[str] = Counter()
        keys = []
        for caption in captions:
            keys.append((seed, "generate", caption, seen[caption]))
            seen[caption] += 1
        with evaluating(self), self.encoders():
            outputs = [
                output
                for start in range(0, len(captions), settings.batch_size)
                for output in self._draw(
                    captions[start : start + settings.batch_size], keys[start : start + settings.batch_size], settings
                )
            ]
        used = {**settings.model_dump(), "seed": seed}
        asked = [prompt for prompt in prompts for _ in range(samples_per_prompt)]
        return tuple(Rollout(prompt, output, decoding=used) for prompt, output in zip(asked, outputs, strict=True))

    def _draw(self, captions: list[str], keys: list[tuple[int, str, str, int]], settings: DecodingConfig) -> list[Any]:
        pipeline, family = self.frozen.assemble(self.network), self.family_of_pipeline
        arguments = self._embed(captions)
        if settings.guidance_scale > 1:
            blank = self._embed([settings.negative_prompt or ""] * len(captions))
            if settings.negative_prompt is None and self.frozen.settings.get("force_zeros_for_empty_prompt"):
                blank = {name: torch.zeros_like(value) for name, value in blank.items()}
            arguments |= {f"negative_{name}": value for name, value in blank.items()}
        generators = [keyed_generator(*key) for key in keys]  # the steps of a sampler with noise go on where the start ended
        start = torch.stack([torch.randn(self.shape_of_latents, generator=generator) for generator in generators])
        drawn = pipeline(
            **arguments,
            **self.call_size,
            latents=family.to_call(start.to(self.device, self.network.dtype), self.network),
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            generator=generators,
            output_type="latent",
        )
        latents = family.from_call(getattr(drawn, family.result), self.shape_of_latents, self.network)
        return self.outputs_of(self.decode_latents(latents))

    def latent_shape(self, prompt: tuple[Message, ...]) -> tuple[int, ...]:
        return self.shape_of_latents

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Return responses ``[N, ...]``. The VAE comes to the latents' device, and stays in float32."""
        vae = self.frozen.vae.to(latents.device)
        shift, scale = (_on(value, latents.device) for value in self.frozen.latent_scaling(latents.ndim - 1))
        with torch.autocast(latents.device.type, enabled=False):
            return self.finished(self.family_of_pipeline.decode(vae, latents.float() / scale + shift))

    def sampling_grid(self, steps: int) -> Grid:
        scheduler, family = self.frozen.parts["scheduler"], self.family_of_pipeline
        dynamic = scheduler.config.get("use_dynamic_shifting")
        patches = family.patches(self.shape_of_latents, self.network) if dynamic else None
        return grid_of_scheduler(scheduler, steps, patches, family.levels(steps))

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
        """Write a whole diffusers pipeline; with LoRA only ``pytorch_lora_weights.safetensors``, for the pipeline's
        ``load_lora_weights`` or, where it has none, the denoiser's ``load_lora_adapter``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        kind, name = self.frozen.kind, self.frozen.denoiser
        if self.config.lora is None:
            self.frozen.assemble(self.network).save_pretrained(folder)
        elif not hasattr(kind, "save_lora_weights"):
            self.network.save_lora_adapter(folder, adapter_name=ADAPTER)
        else:
            from peft import get_peft_model_state_dict

            layers = get_peft_model_state_dict(self.network, adapter_name=ADAPTER)
            settings = self.network.peft_config[ADAPTER].to_dict()
            kind.save_lora_weights(folder, **{f"{name}_lora_layers": layers, f"{name}_lora_adapter_metadata": settings})

    def save_merged(self, folder: Path) -> None:
        network = self.network
        if self.config.lora is not None:
            network = copy.deepcopy(network)
            network.fuse_lora(adapter_names=[ADAPTER])
            network.unload_lora()
        self.frozen.assemble(network).save_pretrained(folder)


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return embeddings in the network's precision; masks stay what they are."""
    return value.to(dtype) if value.is_floating_point() else value


def _on(value: Tensor | float, device: torch.device) -> Tensor | float:
    return value.to(device) if isinstance(value, Tensor) else value


def load_pipeline(config: PipelineConfig, families: Sequence[type[PipelineFamily]], **more: dict[str, Any]) -> Any:
    """Return the diffusers pipeline that ``config.base`` names. ``more``: arguments of its loading, by class name of the
    pipeline. Raises `ConfigError` for what is no pipeline, or none of these families."""
    from diffusers import DiffusionPipeline

    base = resolve_model(config.base)
    try:
        kind = DiffusionPipeline.load_config(base)["_class_name"]
        family_of(families, kind, config.base)
        dtype = {"default": getattr(torch, config.dtype), "vae": torch.float32}
        return DiffusionPipeline.from_pretrained(base, dtype=dtype, use_safetensors=True, **more.get(kind, {}))
    except (OSError, KeyError) as error:
        raise ConfigError(
            f"policy.base={config.base!r} is not a diffusers pipeline with safetensors weights ({error}); "
            "give a folder with model_index.json, a hub id, zoo:NAME or asset:NAME"
        ) from error
