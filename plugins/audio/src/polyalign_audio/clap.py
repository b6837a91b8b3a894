"""CLAP: embeddings of sound and text in one space, and how well a clip fits its prompt by them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polyalign.assets import resolve_model
from polyalign.encoders import Encoder
from polyalign.errors import PolyalignError
from polyalign.policies.fingerprint import weights_fingerprint
from polyalign.rewards.base import Judged, Reward, asked
from polyalign_audio.generation_config import ClapConfig
from polyalign_audio.judged_clips import clip_of, content_key
from polyalign_audio.modality import Clip


class ClapEncoder(Encoder):
    """Rows of unit length: the dot product of a clip's row and a text's row is their cosine.

    Any `transformers.ClapModel` (laion/clap-htsat-unfused ...). Clips are resampled, and of those that are longer than the
    model hears (10 s) the beginning is read: the processor's own random cut would give other numbers each time.
    """

    name = "clap"

    def __init__(self, config: ClapConfig) -> None:
        from transformers import AutoFeatureExtractor, AutoTokenizer, ClapModel

        source = resolve_model(config.model)
        try:
            self.model = ClapModel.from_pretrained(source).eval().requires_grad_(False)
            self.tokenizer: Any = AutoTokenizer.from_pretrained(source)
            self.extractor: Any = AutoFeatureExtractor.from_pretrained(source)
        except (OSError, ValueError) as error:
            raise PolyalignError(
                f"CLAP model {config.model!r} cannot be loaded: {error}. Give a folder, zoo:NAME or a model hub id with a "
                "ClapModel, its tokenizer and its feature extractor"
            ) from error
        self.device = torch.device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model.to(self.device)
        self.batch_size = config.batch_size
        self._fingerprint = ""

    @torch.no_grad()
    def encode_media(self, media: Sequence[Clip]) -> Tensor:
        """Return ``[N, D]`` float32 of unit rows for clips."""
        return self._in_batches(media, self._sounds)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Return ``[N, D]`` float32 of unit rows."""
        return self._in_batches(texts, self._texts)

    def _sounds(self, clips: Sequence[Clip]) -> Any:
        rate = self.extractor.sampling_rate
        heard = [clip.at(rate).samples[: self.extractor.nb_max_samples] for clip in clips]
        return self.model.get_audio_features(**self.extractor(heard, sampling_rate=rate, return_tensors="pt").to(self.device))

    def _texts(self, texts: Sequence[str]) -> Any:
        limit = self.model.config.text_config.max_position_embeddings - 2  # RoBERTa's positions begin at 2
        read = self.tokenizer(list(texts), padding=True, truncation=True, max_length=limit, return_tensors="pt").to(self.device)
        return self.model.get_text_features(input_ids=read["input_ids"], attention_mask=read["attention_mask"])

    def _in_batches(self, items: Sequence[Any], embed: Callable[[Sequence[Any]], Any]) -> Tensor:
        found = [embed(items[start : start + self.batch_size]) for start in range(0, len(items), self.batch_size)]
        if not found:
            return torch.empty(0, 0)
        rows = torch.cat([getattr(one, "pooler_output", one) for one in found])  # transformers 5 returns an output object
        return nn.functional.normalize(rows.float(), dim=-1).cpu()

    def fingerprint(self) -> str:
        if not self._fingerprint:
            settings = f"{self.extractor.to_json_string()} {sorted(self.tokenizer.get_vocab().items())}"
            self._fingerprint = weights_fingerprint(self.model.state_dict().items(), settings)
        return self._fingerprint

    def content_key(self, medium: Clip) -> str:
        return content_key(medium)


class ClapScore(Reward):
    """The cosine of a clip's and its prompt's embeddings, as TangoFlux and AudioCaps report it."""

    name = "clap"

    def __init__(self, config: ClapConfig) -> None:
        self.encoder = ClapEncoder(config)

    def score(self, items: Sequence[Judged]) -> list[float]:
        sounds = self.encoder.encode_media([clip_of(item, self.name) for item in items])
        texts = self.encoder.encode_text([asked(item.prompt) for item in items])
        return [float(cosine) for cosine in (sounds * texts).sum(-1)]
