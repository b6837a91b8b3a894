"""A finished run's reward model as a reward: in reports, as the signal of an online run, or from Python."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from polyalign.errors import RewardError
from polyalign.objectives.reward_modeling.base import Reader, RewardModel
from polyalign.objectives.reward_modeling.pal import PAL
from polyalign.objectives.reward_modeling.saved import load_head, reward_model_in
from polyalign.plugins.registry import registry
from polyalign.plugins.specs import ModalitySpec
from polyalign.records.principles import with_principles
from polyalign.records.samples import Example, MediaSource, Sample
from polyalign.records.schema import MediaPart, TextPart
from polyalign.records.store import JoinedMedia, MemoryMedia
from polyalign.rewards.base import Judged, Reward, Scored
from polyalign.rewards.reward_model_config import RewardModelRewardConfig

if TYPE_CHECKING:
    from polyalign.policies.base import Policy, Scores


class RewardModelReward(Reward):
    """Scores responses with the model that a run of a reward-model objective left behind.

    ``annotator`` (PAL) and ``aspect`` say whose judgement and about what; unless told, the average annotator's and the weighted
    sum. ``principles`` and ``negated`` (SALMON) go into every prompt as text, as in training. Aspects come with `evaluate`.
    """

    name = "reward_model"

    def __init__(self, config: RewardModelRewardConfig) -> None:
        self.config = config
        self.policy, self.model, self.inputs = _finished(Path(config.run))
        self.reader = Reader(config.annotator, config.aspect)

    def score(self, items: Sequence[Judged]) -> list[float]:
        return self.evaluate(items).values

    def evaluate(self, items: Sequence[Judged]) -> Scored:
        values: list[float] = []
        parts: dict[str, list[float]] = {}
        for scores in self.scored([self._sample(item, number) for number, item in enumerate(items)]):
            with torch.no_grad():
                values += self.model.rewards(scores, self.reader).tolist()
                for name, column in self.model.parts(scores).items():
                    parts.setdefault(name, []).extend(column.tolist())
        return Scored(values, parts)

    def scored(self, samples: Sequence[Sample]) -> Iterator[Scores]:
        """Yield the features of ``samples``, a batch at a time, in order."""
        for start in range(0, len(samples), self.config.batch_size):
            batch = self.policy.collate(samples[start : start + self.config.batch_size]).to(self.device)
            with torch.no_grad():
                yield self.policy(batch, self.model.wants)

    def adapt(self, annotator: str, examples: Sequence[Example]) -> list[float]:
        """Learn how ``annotator`` judges from a few examples with comparisons (PAL), all else fixed; score as they would from now
        on. Returns their weights of the prototypes. Raises `RewardError` for other models, and without comparisons."""
        from polyalign.objectives.base import FeedbackTensors
        from polyalign.objectives.margins import rows

        if not isinstance(self.model, PAL):
            raise RewardError(f"the reward model in {self.config.run!r} knows no annotators; train pal_a or pal_b")
        edges = rows(FeedbackTensors.of(examples).to(self.device))
        if not float(edges.weight.sum()):
            raise RewardError(f"the examples give annotator {annotator!r} no comparison to be known by")
        scores = joined(list(self.scored([sample for example in examples for sample in example.samples])), self.model.wants)
        weights = self.model.adapt(annotator, scores, edges)
        self.reader = Reader(annotator, self.config.aspect)
        return [float(weight) for weight in weights]

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _sample(self, item: Judged, number: int) -> Sample:
        prompt = with_principles(item.prompt, self.config.principles, self.config.negated)
        response, media = self._parts(item.output)
        source: Any = JoinedMedia(media, item.media) if item.media is not None else media
        return Sample(f"judged-{number}", prompt, response, f"judged-{number}", source, dict(item.conditions))

    def _parts(self, output: Any) -> tuple[tuple[TextPart | MediaPart, ...], MediaSource]:
        """Return a decoded response as parts, with what opens them. A medium is encoded as the model's inputs are stored."""
        media = MemoryMedia()
        if isinstance(output, str):
            return (TextPart(text=output),), media
        kinds = sorted(self.inputs - {"text"})
        if len(kinds) != 1:
            reads = " and ".join(sorted(self.inputs)) or "nothing"
            raise RewardError(
                f"reward {self.name!r} got a {type(output).__name__}, but the model in {self.config.run!r} reads {reads}"
            )
        spec = registry().get("modalities", kinds[0])
        assert isinstance(spec, ModalitySpec)
        data = spec.load()().encode(output, spec.mimes[0])
        return (MediaPart(media=media.add(data, kinds[0], spec.mimes[0])),), media


def _finished(run: Path) -> tuple[Policy, RewardModel, frozenset[str]]:
    """Return the policy and the reward model of a finished run, frozen, and the modalities that the policy reads."""
    from polyalign.config import load_recipe
    from polyalign.training import checkpoint
    from polyalign.training.run import build

    if not (run / "config.yaml").is_file():
        raise RewardError(f"{str(run)!r} is no run folder: it has no config.yaml; give the folder that `polyalign train` wrote")
    resolved = load_recipe(str(run))
    policy, objective = build(resolved)
    model = reward_model_in(objective)
    if model is None:
        raise RewardError(f"{str(run)!r} trained {resolved.recipe.objective.name!r}, which is no reward model")
    path, messages = checkpoint.newest(run / "checkpoints")
    if path is None:
        raise RewardError(f"{str(run)!r} holds no usable checkpoint. {' '.join(messages)}".rstrip())
    checkpoint.load_policy(policy, path)
    load_head(model, run / "model")
    device = next((parameter.device for parameter in policy.parameters()), torch.device("cpu"))
    policy.eval().requires_grad_(False)
    model.to(device).eval().requires_grad_(False)
    return policy, model, policy.inputs | policy.outputs


def joined(parts: Sequence[Scores], features: frozenset[str]) -> Scores:
    """Return per-sample features of several batches as one; log-probabilities are left out."""
    from polyalign.policies.base import Scores

    count = sum(len(part.log_probs) for part in parts)
    device = parts[0].log_probs.device
    mask = torch.zeros(count, 1, 0, dtype=torch.bool, device=device)
    extras = {name: torch.cat([part.extras[name] for part in parts]) for name in features}
    return Scores(torch.zeros(mask.shape, device=device), mask, torch.zeros(count, 0, dtype=torch.long, device=device), extras)  # type: ignore[arg-type]
