"""A judge of style: do pictures look like those that people preferred?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL.Image import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from polyalign.cache import cache_folder
from polyalign.encoders import CachedEncoder, build_encoder
from polyalign.evaluation.base import Evaluator, Verdict
from polyalign.evaluation.intervals import bootstrap
from polyalign.randomness import keyed_seed
from polyalign.rewards.base import Judged
from polyalign_image.autoencode import ThroughAutoencoder
from polyalign_image.clip import picture_key
from polyalign_image.comparisons import Comparison, compared_pictures
from polyalign_image.config import StyleRateConfig
from polyalign_image.judged import pictures_of
from polyalign_image.soften import soften


@dataclass(frozen=True)
class Fitted:
    """The classifier, and what it says of the held-out pictures, in words for the report."""

    classifier: Pipeline
    notes: dict[str, str]


class StyleRate(Evaluator):
    """1 where a picture looks like the preferred ones of a data set rather than the rejected ones, else 0.

    A logistic regression on frozen features, fitted once on the pictures of the data set's ``fit`` split: sharp, softened
    and, if one is configured, redrawn by the policy's autoencoder, lest the judge take a decoder's smear for style. Its own
    accuracy on the ``test`` split, which it was not fitted on, goes into the notes, per kind of picture. Deterministic.
    """

    def __init__(self, config: StyleRateConfig) -> None:
        self.config = config
        self.encoder = build_encoder(config.encoder)
        folder = cache_folder() / "embeddings"
        self.known = CachedEncoder(self.encoder, folder)
        redrawn = ThroughAutoencoder(self.encoder, config.autoencoder) if config.autoencoder else None
        self.redrawn = CachedEncoder(redrawn, folder) if redrawn else None

    def judge(self, items: Sequence[Judged]) -> list[Verdict]:
        """Return the verdict ``style_rate``: 1.0 or 0.0 per item."""
        probabilities = self.probabilities(pictures_of(items))
        notes = {"mean probability": f"{probabilities.mean():.3f}"} if len(items) else {}
        return [Verdict("style_rate", tuple((probabilities > 0.5).astype(float).tolist()), notes | self.fitted.notes)]

    def probabilities(self, pictures: Sequence[Image]) -> np.ndarray:
        """Return ``[N]``, the probability that each picture is one of the preferred."""
        if not pictures:
            return np.zeros(0)
        probabilities: np.ndarray = self.fitted.classifier.predict_proba(self.encoder.encode_media(pictures).numpy())[:, 1]
        return probabilities

    @cached_property
    def fitted(self) -> Fitted:
        config = self.config
        fit = compared_pictures(config.data, config.fit, config.tags)
        if config.limit is not None:  # from all over the data set: files are often sorted by topic
            order = np.random.default_rng(keyed_seed("fit", config.seed)).permutation(len(fit))
            fit = [fit[index] for index in sorted(order[: config.limit])]
        features = self._features(_pictures(fit), range(config.softened))
        regression = LogisticRegression(C=config.c, max_iter=2000, random_state=config.seed)
        classifier = make_pipeline(StandardScaler(), regression)
        rows = np.concatenate(list(features.values()))  # better, worse, better, worse ...
        classifier.fit(rows, np.tile([1, 0], len(rows) // 2))
        return Fitted(classifier, self._measured(classifier, len(fit)))

    def _features(self, pictures: Sequence[Image], copies: Sequence[int | str]) -> dict[str, np.ndarray]:
        """Return ``[N, D]`` per kind of picture; the softened copies come one after the other, ``[copies * N, D]``."""
        features = {"": self.known.encode_media(pictures).numpy()}
        softened = [self._softened(picture, copy) for copy in copies for picture in pictures]
        if softened:
            features["softened "] = self.known.encode_media(softened).numpy()
        if self.redrawn:
            features["redrawn "] = self.redrawn.encode_media(pictures).numpy()
        return features

    def _measured(self, classifier: Pipeline, fitted_on: int) -> dict[str, str]:
        config = self.config
        pictures = _pictures(compared_pictures(config.data, config.test, config.tags))
        notes = {"judge": f"{config.encoder.name} + logistic regression, fitted on {fitted_on} pairs"}
        for kind, rows in self._features(pictures, ["test"]).items():
            called = classifier.predict(rows).reshape(-1, 2)  # [pairs, (better, worse)]
            accuracy = bootstrap(called == np.array([1, 0]), seed=config.seed)
            better, worse = called.mean(0)
            notes[f"accuracy on {len(called)} held-out {kind}pairs"] = str(accuracy)
            notes[f"rate on held-out {kind}preferred, rejected"] = f"{better:.3f}, {worse:.3f}"
        return notes

    def _softened(self, picture: Image, copy: int | str) -> Image:
        return soften(picture, self.config.seed, copy, picture_key(picture))


def _pictures(comparisons: Sequence[Comparison]) -> list[Image]:
    """Better, worse, better, worse ..."""
    return [picture for comparison in comparisons for picture in (comparison.better, comparison.worse)]
