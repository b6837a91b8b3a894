"""Text as hashed counts of words: a baseline encoder without weights."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from polyalign.encoders import Encoder
from polyalign.policies.encoder_features_config import HashedWordsConfig
from polyalign.randomness import keyed_seed


class HashedWords(Encoder):
    """Each word (and pair of neighbours) adds +1 or -1 to one column, by its hash; rows are scaled to length 1.

    Feature hashing (Weinberger et al. 2009, arXiv 0902.2206). Words are runs of letters and digits, lower-cased.
    """

    name = "hashed-words"

    def __init__(self, config: HashedWordsConfig | None = None) -> None:
        self.config = config or HashedWordsConfig()

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        rows = torch.zeros(len(texts), self.config.width)
        for row, text in zip(rows, texts, strict=True):
            words = re.findall(r"\w+", text.lower())
            for word in (*words, *(map(" ".join, pairwise(words)) if self.config.pairs else ())):
                number = keyed_seed("hashed-words", word)
                row[number // 2 % self.config.width] += 1.0 if number % 2 else -1.0
        return torch.nn.functional.normalize(rows, dim=1)

    def fingerprint(self) -> str:
        return hashlib.blake2b(repr(self.config).encode(), digest_size=16).hexdigest()
