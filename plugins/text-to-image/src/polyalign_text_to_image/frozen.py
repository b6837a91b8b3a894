"""The parts of a diffusers pipeline that training does not touch: VAE, text encoders, tokenizers, scheduler."""

from __future__ import annotations

import inspect
import json
from typing import Any

from diffusers import DiffusionPipeline
from torch import Tensor, nn

from polyalign.policies.fingerprint import weights_fingerprint
from polyalign_text_to_image.pictures import PREPROCESSING


class FrozenPipeline:
    """A diffusers pipeline without its denoiser. Never copied and never trained: a frozen twin of the policy shares it."""

    def __init__(self, pipeline: DiffusionPipeline, denoiser: str) -> None:
        self.kind, self.denoiser = type(pipeline), denoiser
        self.parts = {name: part for name, part in pipeline.components.items() if name != denoiser}
        settings = set(inspect.signature(self.kind.__init__).parameters) & set(pipeline.config) - set(pipeline.components)
        self.settings = {name: pipeline.config[name] for name in settings}
        for module in self.modules().values():
            module.requires_grad_(False).eval()
        self.vae = self.parts["vae"].float()  # half precision VAEs overflow; encoding happens once, so exactness is cheap
        self.pixels_per_latent: int = pipeline.vae_scale_factor

    def modules(self) -> dict[str, nn.Module]:
        return {name: part for name, part in self.parts.items() if isinstance(part, nn.Module)}

    def text_modules(self) -> dict[str, nn.Module]:
        return {name: module for name, module in self.modules().items() if name.startswith("text_encoder")}

    def assemble(self, network: nn.Module) -> Any:
        """Return a working pipeline around ``network``, with a scheduler of its own."""
        scheduler = self.parts["scheduler"]
        parts = {**self.parts, "scheduler": type(scheduler).from_config(scheduler.config)}
        pipeline = self.kind(**parts, **self.settings, **{self.denoiser: network})
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenPipeline:
        return self

    def latent_fingerprint(self, resolution: int, latents: str) -> str:
        """Return a hash of everything a cached latent depends on besides the picture."""
        settings = (description_of(dict(self.vae.config)), PREPROCESSING, str(resolution), latents)
        return weights_fingerprint(self.vae.state_dict().items(), *settings)

    def text_fingerprint(self, length: int | None) -> str:
        """Return a hash of everything a cached prompt embedding depends on besides the caption."""
        tensors: list[tuple[str, Tensor]] = []
        texts = [self.kind.__name__, str(length)]
        for name, module in sorted(self.text_modules().items()):
            tensors += [(f"{name}.{key}", value) for key, value in module.state_dict().items()]
            texts.append(description_of(module.config.to_dict()))
        for name, part in sorted(self.parts.items()):
            if name.startswith("tokenizer") and part is not None:
                texts += [name, str(part.model_max_length), _tokenizer_description(part)]
        return weights_fingerprint(tensors, *texts)


def description_of(config: dict[str, Any]) -> str:
    """Return the settings as text, without those that only say where or by what version the files were written."""
    ignored = ("transformers_version", "architectures", "dtype", "torch_dtype", "model_type")
    kept = {name: value for name, value in config.items() if not name.startswith("_") and name not in ignored}
    return json.dumps(kept, sort_keys=True, default=str)


def _tokenizer_description(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return json.dumps(tokenizer.get_vocab(), sort_keys=True)
    settings = json.loads(backend.to_str())
    for changes_with_each_call in ("padding", "truncation"):
        settings.pop(changes_with_each_call, None)
    return json.dumps(settings, sort_keys=True)
