"""From media to features by the model's own encoder: each distinct medium of a batch once, and from disk where recipes say so."""

from __future__ import annotations

import hashlib
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from polyalign.errors import TrainingError
from polyalign.policies.base import Batch
from polyalign.policies.completion_mask import Medium
from polyalign.policies.feature_cache import FeatureCache
from polyalign.policies.fingerprint import weights_fingerprint
from polyalign.policies.frozen_tower import FrozenTower, trains

logger = logging.getLogger(__name__)
Part = Literal["tower", "projector", "language"]
NOT_ENCODER_INPUTS = ("key", "tokens", "modality")
ENCODED_AT_ONCE = 16
OF_THE_TOWER = ("last_hidden_state", "hidden_states", "attentions")  # nothing that the language model is given


@dataclass(frozen=True)
class MediaFeatures:
    """Features of the distinct media of a batch, one after another: ``rows`` ``[S, H]``, and ``deep``, one ``[S, H]`` for
    each decoder layer that gets some too (Qwen3-VL's DeepStack).

    ``more``: what the encoder returns besides, the same whatever the media (Ovis2's embeddings of its indicator tokens).
    """

    rows: Tensor
    deep: tuple[Tensor, ...] = ()
    more: Mapping[str, Any] = field(default_factory=dict)


class MediaEncoder:
    """Calls ``get_<modality>_features`` of a model for the media of batches; media that name no modality are of the first.

    What of tower and projector does not train is computed once for policy and reference together: they share the batch. A
    projector that trains inside its tower (Qwen-VL's merger) is the exception: then each runs the tower for itself.
    """

    def __init__(self, model: Any, modalities: Sequence[str], settings: str) -> None:
        self.model, self.modalities, self.settings = model, tuple(modalities), settings
        parts = parts_of(model, modalities)
        training = {parts[name] for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.frozen = not training & {"tower", "projector"}
        self.towers = [FrozenTower(tower) for tower in towers_of(model, modalities) if not trains(tower)]
        self.cache: FeatureCache | None = None
        self._kinds: dict[str, Any] = {}  # of the model's own output for each modality, seen at the first call
        self._deep = 0
        self._fingerprint: str | None = None

    def __call__(self, batch: Batch) -> MediaFeatures | None:
        """Return the features of each distinct medium of the batch; None where it holds text only."""
        media = batch.tensors.get("media")
        if not media:
            return None
        if not self.frozen:
            with ExitStack() as stack:
                for number, tower in enumerate(self.towers):
                    stack.enter_context(tower.shared(batch.memo.setdefault(f"tower {number}", [])))
                return self._encoded(media)
        if "media" not in batch.memo:
            with torch.no_grad():
                batch.memo["media"] = self._encoded(media) if self.cache is None else self._from_cache(media)
        return batch.memo["media"]  # type: ignore[no-any-return]

    def _encoded(self, media: Sequence[Mapping[str, Any]]) -> MediaFeatures:
        """Encode media together whose inputs have one shape, and put the features into the media's order."""
        shapes: dict[Any, list[int]] = {}
        for number, medium in enumerate(media):
            shape = {name: tuple(value.shape[1:]) for name, value in encoder_inputs(medium).items()}
            shapes.setdefault((self._modality(medium), *sorted(shape.items())), []).append(number)
        found: dict[int, list[Tensor]] = {}
        more: dict[str, Any] = {}
        for numbers in shapes.values():
            for start in range(0, len(numbers), ENCODED_AT_ONCE):
                chosen = numbers[start : start + ENCODED_AT_ONCE]
                lengths = [int(media[number]["tokens"]) for number in chosen]
                together, besides = self._call([media[number] for number in chosen], sum(lengths))
                more |= besides
                layers = [torch.split(layer, lengths) for layer in together]
                for place, number in enumerate(chosen):
                    found[number] = [layer[place] for layer in layers]
        rows, *deep = (torch.cat(layer) for layer in zip(*(found[number] for number in range(len(media)))))
        return MediaFeatures(rows, tuple(deep), more)

    def _call(self, media: Sequence[Mapping[str, Any]], tokens: int) -> tuple[list[Tensor], Mapping[str, Any]]:
        """Call the model's own encoder; return its features and the deep ones, each ``[tokens, H]``, and what comes besides."""
        modality = self._modality(media[0])
        encode = getattr(self.model.model, f"get_{modality}_features")
        inputs = {name: torch.cat([medium[name] for medium in media]) for name in encoder_inputs(media[0])}
        output = encode(**accepted(encode, inputs), return_dict=True)
        layers = [_flat(layer) for layer in (output.pooler_output, *(getattr(output, "deepstack_features", None) or ()))]
        self._kinds[modality] = type(output), isinstance(output.pooler_output, Tensor)
        self._deep = len(layers) - 1
        if len(layers[0]) != tokens:
            raise TrainingError(
                f"the model made {len(layers[0])} features of {len(media)} {modality} inputs, but {tokens} placeholders "
                f"stand for them; processor and model do not fit together ({', '.join(m['key'][:12] for m in media[:4])})"
            )
        known = (*OF_THE_TOWER, "pooler_output", "deepstack_features")
        return layers, {name: value for name, value in output.items() if name not in known}

    def as_output(self, features: MediaFeatures, media: Sequence[Mapping[str, Any]], order: Sequence[int]) -> dict[str, Any]:
        """Return the features of ``media`` as transformers' own forward takes encoded media: of those numbered in ``order``."""
        tokens = [int(medium["tokens"]) for medium in media]

        def pick(layer: Tensor, chosen: Sequence[int]) -> list[Tensor]:
            pieces = torch.split(layer, tokens)
            return [pieces[number] for number in chosen]

        outputs = {}
        for modality in dict.fromkeys(self._modality(media[number]) for number in order):
            kind, one_tensor = self._kinds[modality]
            chosen = [number for number in order if self._modality(media[number]) == modality]
            rows = pick(features.rows, chosen)
            made: dict[str, Any] = {"last_hidden_state": None, **features.more}
            made["pooler_output"] = torch.cat(rows)[None] if one_tensor else rows
            if features.deep:
                made["deepstack_features"] = [pick(layer, chosen) for layer in features.deep]
            outputs[modality] = kind(**made)
        return outputs

    def _modality(self, medium: Mapping[str, Any]) -> str:
        return medium["modality"] or self.modalities[0]

    # the cache on disk

    def cache_in(self, folder: Path, media: Sequence[Medium]) -> None:
        """Keep the features of these media, and of those to come, in ``folder``."""
        if not self.frozen:
            raise TrainingError(
                "policy.cache_features keeps features of frozen parts, but tower or projector train; set it to false"
            )
        distinct = {medium.key: medium for medium in media}
        width = self.model.config.get_text_config().hidden_size * (1 + self._deep)
        size = sum(medium.tokens for medium in distinct.values()) * width * self.model.dtype.itemsize
        logger.warning("caching features of %d media: %.0f MB in %s", len(distinct), size / 2**20, folder)
        self.cache = FeatureCache(folder)
        missing = [medium for medium in distinct.values() if self._key(medium.key) not in self.cache]
        for start in range(0, len(missing), ENCODED_AT_ONCE):
            self._fill([self._loaded(medium) for medium in missing[start : start + ENCODED_AT_ONCE]])

    @torch.no_grad()
    def _fill(self, media: Sequence[Mapping[str, Any]]) -> None:
        assert self.cache is not None
        features = self._encoded(media)
        lengths = [int(medium["tokens"]) for medium in media]
        layers = [torch.split(layer, lengths) for layer in (features.rows, *features.deep)]
        for number, medium in enumerate(media):
            entry = {str(depth): layer[number] for depth, layer in enumerate(layers)}
            entry |= {f"more {name}": value for name, value in features.more.items()}
            self.cache.store(self._key(medium["key"]), entry, f"{self._modality(medium)} {medium['key'][:12]}")

    def _loaded(self, medium: Medium) -> dict[str, Any]:
        inputs = {name: value.to(self.model.device) for name, value in medium.load().items()}
        return {"key": medium.key, "tokens": medium.tokens, "modality": medium.modality, **inputs}

    def _from_cache(self, media: Sequence[Mapping[str, Any]]) -> MediaFeatures:
        assert self.cache is not None
        missing = [medium for medium in media if self._key(medium["key"]) not in self.cache]
        if missing:
            self._fill(missing)
        entries = [self.cache.load(self._key(medium["key"])) for medium in media]
        device = self.model.device
        more = {name.removeprefix("more "): value.to(device) for name, value in entries[0].items() if name.startswith("more ")}
        depths = sorted((name for name in entries[0] if name.isdigit()), key=int)
        rows, *deep = (torch.cat([entry[depth] for entry in entries]).to(device) for depth in depths)
        return MediaFeatures(rows, tuple(deep), more)

    def _key(self, key: str) -> str:
        if self._fingerprint is None:
            parts = parts_of(self.model, self.modalities)
            weights = [(name, value) for name, value in self.model.named_parameters() if parts[name] != "language"]
            self._fingerprint = weights_fingerprint(weights, self.settings)
        return hashlib.blake2b(f"{key}/{self._fingerprint}".encode(), digest_size=20).hexdigest()


def towers_of(model: Any, modalities: Sequence[str]) -> list[nn.Module]:
    """Return the encoders of these modalities, each once: pictures and clips often share one."""
    found = [model.get_encoder(modality=modality) for modality in modalities]
    return list({id(tower): tower for tower in found}.values())


def parts_of(model: Any, modalities: Sequence[str]) -> dict[str, Part]:
    """Return the part that each parameter belongs to, by every name it has (a tied head has two). The language part is the
    decoder with its embeddings and head; what belongs to neither decoder nor tower, and a merger inside the tower, is the
    projector."""
    language = {
        id(parameter)
        for module in (model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings())
        for parameter in module.parameters()
    }
    tower = {id(parameter) for tower in towers_of(model, modalities) for parameter in tower.parameters()} - language

    def part(name: str, parameter: nn.Parameter) -> Part:
        if id(parameter) in language:
            return "language"
        return "tower" if id(parameter) in tower and "merger" not in name else "projector"

    return {name: part(name, parameter) for name, parameter in model.named_parameters(remove_duplicate=False)}


def encoder_inputs(medium: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in medium.items() if name not in NOT_ENCODER_INPUTS}


def accepted(function: Callable[..., Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs that the function takes by name."""
    names = inspect.signature(function).parameters
    return {name: value for name, value in inputs.items() if name in names}


def _flat(features: Any) -> Tensor:
    """Return features as ``[tokens, H]``, however the model groups them by medium."""
    if isinstance(features, Tensor):
        return features.reshape(-1, features.shape[-1])
    return torch.cat([item.reshape(-1, item.shape[-1]) for item in features])
