"""Rewards for how well a picture fits its prompt, by CLIP: CLIPScore and PickScore."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from polyalign.encoders import CachedEncoder
from polyalign.records.schema import Message
from polyalign.rewards.base import Judged, Reward
from polyalign_image.clip import ClipEncoder
from polyalign_image.config import ClipScoreConfig, PickScoreConfig
from polyalign_image.judged import caption_of, pictures_of


class ClipScore(Reward):
    """``weight * max(cosine, 0)`` of the embeddings of picture and prompt (Hessel et al., 2021, arXiv 2104.08718, eq. 1).

    The paper's weight is 2.5, which spreads usual values over 0 to 1; the default 1 gives the plain cosine that most
    reinforcement-learning code reports. From 0 to ``weight``.
    """

    name = "clip_score"

    def __init__(self, config: ClipScoreConfig) -> None:
        self.weight = config.weight
        self.cosines = Cosines(ClipEncoder(config))

    def score(self, items: Sequence[Judged]) -> list[float]:
        values: list[float] = (self.weight * self.cosines(items).clamp(min=0)).tolist()
        return values

    def on_tensors(self, media: Tensor, prompts: Sequence[tuple[Message, ...]]) -> Tensor:
        return self.weight * self.cosines.of_tensors(media, prompts).clamp(min=0)


class PickScore(Reward):
    """``exp(logit_scale) * cosine``: the logit of a CLIP tuned to people's picks (Kirstain et al., 2023, arXiv 2305.01569).

    The published weights are a transformers ``CLIPModel`` whose processor lies in another repository. Usual values are
    18 to 24, and only differences under one prompt mean something.
    """

    name = "pick_score"

    def __init__(self, config: PickScoreConfig) -> None:
        encoder = ClipEncoder(config)
        self.logit_scale = encoder.logit_scale
        self.cosines = Cosines(encoder)

    def score(self, items: Sequence[Judged]) -> list[float]:
        values: list[float] = (self.logit_scale * self.cosines(items)).tolist()
        return values

    def on_tensors(self, media: Tensor, prompts: Sequence[tuple[Message, ...]]) -> Tensor:
        return self.logit_scale * self.cosines.of_tensors(media, prompts)


class Cosines:
    """The cosine of each item's picture and prompt, ``[N]``. A prompt that comes back is embedded once."""

    def __init__(self, encoder: ClipEncoder) -> None:
        self.encoder = encoder
        self.texts = CachedEncoder(encoder)

    def __call__(self, items: Sequence[Judged]) -> Tensor:
        pictures = self.encoder.encode_media(pictures_of(items))  # [N, D]
        captions = self.texts.encode_text([caption_of(item.prompt) for item in items])  # [N, D]
        return (pictures * captions).sum(-1)

    def of_tensors(self, media: Tensor, prompts: Sequence[tuple[Message, ...]]) -> Tensor:
        """The same for pictures ``[N, 3, H, W]`` in [0, 1], with their gradient."""
        pictures = self.encoder.embed_tensors(media)
        captions = self.texts.encode_text([caption_of(prompt) for prompt in prompts])
        return (pictures * captions.to(pictures.device)).sum(-1)
