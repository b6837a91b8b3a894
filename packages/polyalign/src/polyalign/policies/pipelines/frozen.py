"""The parts of a diffusers pipeline that training does not touch: VAE, text encoders, tokenizers, scheduler."""

from __future__ import annotations

import inspect
import json
from typing import Any

import torch
from torch import Tensor, nn

from polyalign.policies.fingerprint import weights_fingerprint
from polyalign.policies.pipelines.families import PipelineFamily


class FrozenPipeline:
    """A diffusers pipeline without its denoiser. Never copied and never trained: a frozen twin of the policy shares it."""

    def __init__(self, pipeline: Any, family: type[PipelineFamily]) -> None:
        self.kind, self.denoiser, self.text_parts = type(pipeline), family.denoiser, family.text_parts
        self.parts = {name: part for name, part in pipeline.components.items() if name != self.denoiser}
        parameters = inspect.signature(self.kind.__init__).parameters
        settings = set(parameters) & set(pipeline.config) - set(pipeline.components)
        self.settings = {name: pipeline.config[name] for name in settings}
        for module in self.modules().values():
            module.requires_grad_(False).eval()
        self.vae = self.parts["vae"].float()  # half precision VAEs overflow; encoding happens once, so exactness is cheap

    def modules(self) -> dict[str, nn.Module]:
        return {name: part for name, part in self.parts.items() if isinstance(part, nn.Module)}

    def text_modules(self) -> dict[str, nn.Module]:
        return {name: module for name, module in self.modules().items() if name.startswith(self.text_parts)}

    def assemble(self, network: nn.Module) -> Any:
        """Return a working pipeline around ``network``, with a scheduler of its own."""
        scheduler = self.parts["scheduler"]
        parts = {**self.parts, "scheduler": type(scheduler).from_config(scheduler.config)}
        pipeline = self.kind(**parts, **self.settings, **{self.denoiser: network})
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenPipeline:
        return self

    def latent_scaling(self, dimensions: int) -> tuple[Tensor | float, Tensor | float]:
        """Return ``(shift, scale)``: the denoiser works on ``(latents - shift) * scale`` of the VAE's latents.

        A VAE has either one shift and one scale, or a mean and a standard deviation per channel, as tensors that broadcast
        against latents of ``dimensions`` dimensions without the batch; some (LTX) keep those as buffers.
        """
        config, buffers = self.vae.config, dict(self.vae.named_buffers())
        mean, std = (buffers.get(name, config.get(name)) for name in ("latents_mean", "latents_std"))
        scale = config.get("scaling_factor") or 1.0
        if mean is None or std is None:
            return config.get("shift_factor") or 0.0, scale
        shape = (-1, *(1,) * (dimensions - 1))
        return torch.as_tensor(mean).reshape(shape), scale / torch.as_tensor(std).reshape(shape)

    def latent_fingerprint(self, *settings: str) -> str:
        """Return a hash of everything a cached latent depends on besides the media: VAE, and ``settings`` of the reading."""
        return weights_fingerprint(self.vae.state_dict().items(), description_of(dict(self.vae.config)), *settings)

    def text_fingerprint(self, length: int | None) -> str:
        """Return a hash of everything a cached prompt embedding depends on besides the caption."""
        tensors: list[tuple[str, Tensor]] = []
        texts = [self.kind.__name__, str(length)]
        for name, module in sorted(self.text_modules().items()):
            tensors += [(f"{name}.{key}", value) for key, value in module.state_dict().items()]
            config: Any = module.config
            texts.append(description_of(config.to_dict() if hasattr(config, "to_dict") else dict(config)))
        for name, part in sorted(self.parts.items()):
            if name.startswith("tokenizer") and part is not None:
                texts += [name, str(part.model_max_length), _tokenizer_description(part)]
        return weights_fingerprint(tensors, *texts)


def description_of(config: dict[str, Any]) -> str:
    """Return the settings as text, without those that only say where or by what version the files were written."""
    return json.dumps(_kept(config), sort_keys=True, default=str)


def _kept(config: dict[str, Any]) -> dict[str, Any]:
    ignored = ("transformers_version", "architectures", "dtype", "torch_dtype", "model_type")
    named = {name: value for name, value in config.items() if not str(name).startswith("_") and name not in ignored}
    return {name: _kept(value) if isinstance(value, dict) else value for name, value in named.items()}


def _tokenizer_description(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return json.dumps(tokenizer.get_vocab(), sort_keys=True)
    settings = json.loads(backend.to_str())
    for changes_with_each_call in ("padding", "truncation"):
        settings.pop(changes_with_each_call, None)
    return json.dumps(settings, sort_keys=True)
