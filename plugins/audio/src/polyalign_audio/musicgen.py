"""The parts of a MusicGen that alignment does not touch: text encoder, codec, tokenizer; and putting the whole together."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polyalign.errors import ConfigError
from polyalign.policies.feature_cache import Features
from polyalign.policies.fingerprint import weights_fingerprint
from polyalign.policies.pipelines.frozen import description_of
from polyalign_audio.modality import Clip


class FrozenParts:
    """A `MusicgenForConditionalGeneration` without its decoder. Never copied and never trained: a frozen twin of the policy
    shares it. Raises `ConfigError` for codecs that do not give one table of codes per clip."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        codec, decoder = model.audio_encoder, model.decoder
        if getattr(codec.config, "normalize", False) or getattr(codec.config, "chunk_length_s", None):
            raise ConfigError("this model's codec cuts or rescales clips (48 kHz EnCodec); take one with a 24 or 32 kHz codec")
        if decoder.config.audio_channels != 1:
            raise ConfigError(f"this model makes sound of {decoder.config.audio_channels} channels; take a mono model")
        self.text_encoder, self.codec, self.tokenizer = model.text_encoder, codec, tokenizer
        for module in self.modules():
            module.requires_grad_(False).eval()
        self.codec.float()  # encoding happens once, so exactness is cheap
        self._shell = copy.copy(model)
        self._shell._modules = {name: part for name, part in model._modules.items() if name in ("text_encoder", "audio_encoder")}
        self.rate: int = codec.config.sampling_rate
        self.samples_per_frame: int = codec.config.hop_length

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenParts:
        return self

    def modules(self) -> tuple[nn.Module, nn.Module]:
        return self.text_encoder, self.codec

    def frames(self, seconds: float) -> int:
        """Return how many frames of the codec last so long, at least 1."""
        return max(1, round(seconds * self.rate / self.samples_per_frame))

    def assemble(self, decoder: nn.Module, projection: nn.Module | None) -> Any:
        """Return the whole model around a decoder."""
        whole = copy.copy(self._shell)
        whole._modules = {**self._shell._modules, "decoder": decoder}
        if projection is not None:
            whole._modules["enc_to_dec_proj"] = projection
        return whole

    def encode_texts(self, captions: Sequence[str], device: torch.device) -> list[Features]:
        """Return the hidden states ``text`` ``[L, E]`` of each caption."""
        read = self.tokenizer(list(captions), padding=True, truncation=True, return_tensors="pt").to(device)
        hidden = self.text_encoder(input_ids=read["input_ids"], attention_mask=read["attention_mask"]).last_hidden_state
        lengths = read["attention_mask"].sum(1).tolist()
        return [{"text": row[:length].float()} for row, length in zip(hidden, lengths)]

    def encode_clip(self, clip: Clip, frames: int, books: int, device: torch.device) -> Features:
        """Return the ``codes`` ``[K, F]`` of a clip, its first ``frames`` frames at most."""
        samples = torch.from_numpy(clip.at(self.rate).samples[: frames * self.samples_per_frame])
        bandwidth = self.codec.config.target_bandwidths
        found = next(
            (
                codes
                for width in bandwidth
                if (codes := self.codec.encode(samples[None, None].to(device), bandwidth=width).audio_codes[0, 0]).shape[0]
                >= books
            ),
            None,
        )
        if found is None:
            raise ConfigError(f"the codec never gives {books} codebooks, which the decoder has; bandwidths: {bandwidth}")
        return {"codes": found[:books]}

    def decode(self, codes: Tensor) -> list[Clip]:
        """Return the clips of codes ``[B, K, F]``, on the device of the codec."""
        sounds = self.codec.decode(codes[None], [None]).audio_values[:, 0]
        return [Clip(sound.float().cpu().numpy(), self.rate) for sound in sounds]

    def codec_fingerprint(self, seconds: float, books: int) -> str:
        """Return a hash of all that cached codes depend on besides the clip."""
        return weights_fingerprint(
            self.codec.state_dict().items(), description_of(self.codec.config.to_dict()), repr(seconds), str(books)
        )

    def text_fingerprint(self) -> str:
        """Return a hash of all that cached embeddings depend on besides the caption."""
        vocabulary = repr(sorted(self.tokenizer.get_vocab().items()))
        return weights_fingerprint(
            self.text_encoder.state_dict().items(), description_of(self.text_encoder.config.to_dict()), vocabulary
        )

    def save(self, folder: Path) -> None:
        """Write tokenizer and feature extractor, which make a processor together."""
        from transformers import EncodecFeatureExtractor

        self.tokenizer.save_pretrained(folder)
        EncodecFeatureExtractor(feature_size=1, sampling_rate=self.rate).save_pretrained(folder)
