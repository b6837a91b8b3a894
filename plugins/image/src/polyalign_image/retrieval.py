"""A judge of content: can an encoder that is not the policy's tell the picture's caption from others?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from torch import Tensor
from torch.nn.functional import normalize

from polyalign.cache import cache_folder
from polyalign.encoders import CachedEncoder, build_encoder
from polyalign.errors import RecordError
from polyalign.evaluation.base import Evaluator, Verdict
from polyalign.evaluation.intervals import bootstrap
from polyalign.randomness import keyed_seed
from polyalign.records.dataset import ExampleDataset
from polyalign.rewards.base import Judged
from polyalign.training.config import SourceConfig
from polyalign_image.comparisons import compared_pictures
from polyalign_image.config import CaptionRetrievalConfig
from polyalign_image.judged import caption_of, pictures_of


class CaptionRetrieval(Evaluator):
    """1 where the picture's own caption is among the ``k`` of ``pool`` captions that fit it best, else 0.

    The pool is the picture's own caption and ``pool - 1`` others of the data set, drawn anew for each caption but the
    same in every run. Fit is the cosine of the embeddings; a tie counts against the picture.
    """

    def __init__(self, config: CaptionRetrievalConfig) -> None:
        self.config = config
        self.encoder = build_encoder(config.encoder)
        self.known = CachedEncoder(self.encoder, cache_folder() / "embeddings")

    def judge(self, items: Sequence[Judged]) -> list[Verdict]:
        """Return the verdict ``caption_retrieval``: 1.0 or 0.0 per item."""
        captions = [caption_of(item.prompt) for item in items]
        values = self._found(self.encoder.encode_media(pictures_of(items)), captions) if items else []
        return [Verdict("caption_retrieval", tuple(values), dict(self.notes))]

    @cached_property
    def captions(self) -> list[str]:
        """The distinct captions of the data set's split, in order of appearance."""
        source = SourceConfig(path=self.config.data, split=self.config.split)
        prompts = ExampleDataset([source], "pairs", tags=self.config.tags).prompts()
        captions = list(dict.fromkeys(caption_of(prompt) for prompt in prompts))
        if len(captions) < self.config.pool:
            raise RecordError(
                f"{self.config.data} (split {self.config.split!r}) has {len(captions)} distinct captions, fewer than the pool of "
                f"{self.config.pool}; set pool to {len(captions)} or less, or choose another split"
            )
        return captions

    @cached_property
    def notes(self) -> dict[str, str]:
        config = self.config
        real = compared_pictures(config.data, config.split, config.tags)
        pictures = [picture for comparison in real for picture in (comparison.better, comparison.worse)]
        captions = [comparison.caption for comparison in real for _ in range(2)]
        found = np.array(self._found(self.known.encode_media(pictures), captions)).reshape(-1, 2)  # [pairs, 2]
        return {
            "judge": f"{config.encoder.name}, own caption in the best {config.k} of {config.pool}",
            "by chance": f"{config.k / config.pool:.3f}",
            f"on {found.size} real pictures": str(bootstrap(found, seed=config.seed)),
        }

    def pool_of(self, caption: str) -> list[str]:
        """Return the other captions that this one has to beat, ``pool - 1`` of them."""
        others = [other for other in self.captions if other != caption]
        rng = np.random.default_rng(keyed_seed("pool", self.config.seed, caption))
        return [others[index] for index in rng.permutation(len(others))[: self.config.pool - 1]]

    def _found(self, pictures: Tensor, captions: Sequence[str]) -> list[float]:
        """``pictures``: ``[N, D]``, one row per caption. Returns 1.0 or 0.0 each."""
        known = list(dict.fromkeys([*self.captions, *captions]))
        place = {caption: index for index, caption in enumerate(known)}
        texts = normalize(self.known.encode_text(known), dim=-1)  # [T, D]
        values = []
        for picture, caption in zip(normalize(pictures, dim=-1), captions, strict=True):
            others = texts[[place[other] for other in self.pool_of(caption)]]  # [pool - 1, D]
            rank = 1 + int((others @ picture >= texts[place[caption]] @ picture).sum())
            values.append(float(rank <= self.config.k))
        return values
