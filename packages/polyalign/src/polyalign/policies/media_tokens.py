"""Token policies that read media: a tower and a projector turn each medium into features that stand among the text tokens.

Made for the layout that transformers' image-text-to-text models share: ``get_<modality>_features``, placeholder tokens in
the text, a decoder that takes embeddings. What a model allows is found out by trying it on a small example when the policy
is built, best first:

- ``decoder``: features are put among the embeddings here and the decoder runs on them; responses may share rows;
- ``base``: the model's own body runs on plain rows, with the features given to it (media that attend in both directions);
- ``logits``: the model's own forward, which also makes the logits of every position.

In every mode each distinct medium of a batch is encoded once, and once for policy and reference together as far as the parts
that encode it do not train.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from polyalign.errors import TrainingError
from polyalign.policies.base import Batch
from polyalign.policies.completion_mask import Encoded, Medium, PromptResponseEncoder
from polyalign.policies.config import MediaTokensConfig
from polyalign.policies.feature_cache import FeatureCache
from polyalign.policies.fingerprint import weights_fingerprint
from polyalign.policies.frozen_tower import FrozenTower
from polyalign.policies.tokens import TokenPolicy
from polyalign.records.samples import Sample

logger = logging.getLogger(__name__)
Mode = Literal["decoder", "base", "logits"]
Part = Literal["tower", "projector", "language"]
NOT_ENCODER_INPUTS = ("key", "tokens")
ENCODED_AT_ONCE = 16


@dataclass(frozen=True)
class MediaFeatures:
    """Features of the distinct media of a batch, one after another: ``rows`` ``[S, H]``, and ``deep``, one ``[S, H]`` for
    each decoder layer that gets some too (Qwen3-VL's DeepStack)."""

    rows: Tensor
    deep: tuple[Tensor, ...] = ()


class MediaTokenPolicy(TokenPolicy):
    """A token policy over one modality besides text; ``modality`` names it as transformers does ("image").

    What trains is decided before: parameters that require gradients train, the others never change.
    """

    modality: ClassVar[str]
    config: MediaTokensConfig
    mode: Mode

    def __init__(
        self, model: Any, encoder: PromptResponseEncoder, config: MediaTokensConfig, *, value_head: bool = False
    ) -> None:
        parts = parts_of(model, self.modality)
        training = {parts[name] for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.media_are_frozen = not training & {"tower", "projector"}
        self.tower = None if "tower" in training else FrozenTower(model.get_encoder(modality=self.modality))
        self.feature_cache: FeatureCache | None = None
        self.output_layout: Any = None  # how the model's own encoder call returns features, seen at the probe
        self.deep_layers = 0
        self._media_fingerprint: str | None = None
        super().__init__(model, encoder, config, value_head=value_head)

    # media to features

    def encode_media(self, batch: Batch) -> MediaFeatures | None:
        """Return the features of each distinct medium of the batch; None where it holds text only."""
        media = batch.tensors.get("media")
        if not media:
            return None
        if not self.media_are_frozen:
            if self.tower is None:
                return self._encoded(media)
            with self.tower.shared(batch.memo.setdefault("tower", [])):
                return self._encoded(media)
        if "media" not in batch.memo:
            with torch.no_grad():
                batch.memo["media"] = self._encoded(media) if self.feature_cache is None else self._from_cache(media)
        return batch.memo["media"]  # type: ignore[no-any-return]

    def _encoded(self, media: Sequence[Mapping[str, Any]]) -> MediaFeatures:
        """Encode media together whose inputs have one shape, and put the features into the media's order."""
        shapes: dict[Any, list[int]] = {}
        for number, medium in enumerate(media):
            inputs = {name: tuple(value.shape[1:]) for name, value in _inputs(medium).items()}
            shapes.setdefault(tuple(sorted(inputs.items())), []).append(number)
        found: dict[int, list[Tensor]] = {}
        for numbers in shapes.values():
            for start in range(0, len(numbers), ENCODED_AT_ONCE):
                chunk = [media[number] for number in numbers[start : start + ENCODED_AT_ONCE]]
                lengths = [int(medium["tokens"]) for medium in chunk]
                layers = [torch.split(layer, lengths) for layer in self._features_of(chunk, sum(lengths))]
                for place, number in enumerate(numbers[start : start + ENCODED_AT_ONCE]):
                    found[number] = [layer[place] for layer in layers]
        rows, *deep = (torch.cat(layer) for layer in zip(*(found[number] for number in range(len(media)))))
        return MediaFeatures(rows, tuple(deep))

    def _features_of(self, media: Sequence[Mapping[str, Any]], tokens: int) -> list[Tensor]:
        """Call the model's own encoder; return its features and the deep ones, each ``[tokens, H]``."""
        encode = getattr(self.body, f"get_{self.modality}_features")
        inputs = {name: torch.cat([medium[name] for medium in media]) for name in _inputs(media[0])}
        output = encode(**_accepted(encode, inputs), return_dict=True)
        deep = [_flat(layer) for layer in getattr(output, "deepstack_features", None) or ()]
        layers = [_flat(output.pooler_output), *deep]
        self.output_layout, self.deep_layers = (type(output), isinstance(output.pooler_output, Tensor)), len(deep)
        if len(layers[0]) != tokens:
            raise TrainingError(
                f"the model made {len(layers[0])} features of {len(media)} {self.modality} inputs, but {tokens} placeholders "
                f"stand for them; processor and model do not fit together ({', '.join(m['key'][:12] for m in media[:4])})"
            )
        return layers

    # rows to states

    @property
    def body(self) -> Any:
        """The model without its language-model head."""
        return self.model.model

    def rows(self, batch: Batch) -> Batch:
        positions = self._multimodal_positions(batch)
        return super().rows(batch if positions is None else replace(batch, tensors={**batch.tensors, "position_ids": positions}))

    def _multimodal_positions(self, batch: Batch) -> Tensor | None:
        """Return positions ``[3, N, L]`` in time, height and width where the model counts so (Qwen-VL), of plain rows."""
        if not batch.tensors.get("media") or not hasattr(self.body, "get_rope_index"):
            return None
        if "positions" not in batch.memo:
            tensors = batch.tensors
            inputs = {name: tensors[name] for name in ("input_ids", "attention_mask")} | self._by_occurrence(batch)
            inputs["mm_token_type_ids"] = (tensors["media_index"] >= 0).int()
            batch.memo["positions"] = self.body.get_rope_index(**_accepted(self.body.get_rope_index, inputs))[0]
        return batch.memo["positions"]  # type: ignore[no-any-return]

    def _by_occurrence(self, batch: Batch) -> dict[str, Tensor]:
        """Return the encoder inputs besides the pixels, one entry for every time a medium stands in a row."""
        media = batch.tensors["media"]
        order = [media[number] for row in batch.tensors["row_media"] for number in row]
        names = [name for name in _inputs(media[0]) if name.endswith("_grid_thw")]
        return {name: torch.cat([medium[name] for medium in order]) for name in names}

    def states(self, batch: Batch) -> Tensor:
        if self.mode == "decoder":
            return super().states(batch)
        output = self.body(**self._row_inputs(self.body, batch), **self._given_media(batch), use_cache=False, return_dict=True)
        return output.last_hidden_state  # type: ignore[no-any-return]

    def whole(self, batch: Batch) -> tuple[Tensor, Tensor]:
        output = self.model(
            **self._row_inputs(self.model, batch), **self._given_media(batch),
            output_hidden_states=True, use_cache=False, return_dict=True,
        )  # fmt: skip
        return output.hidden_states[-1], output.logits

    def embed(self, batch: Batch, media: MediaFeatures | None) -> Tensor:
        """Return input embeddings ``[R, L, H]`` with the media's features at their places."""
        ids, index = batch.tensors["input_ids"], batch.tensors.get("media_index")
        if media is None or index is None:
            return super().embed(batch, None)
        here = index >= 0  # [R, L]
        words: Tensor = self.model.get_input_embeddings()(
            ids.masked_fill(here, 0)
        )  # some placeholders are outside the vocabulary
        batch.tensors["deep_media"] = [layer[index[here]] for layer in media.deep]  # for `_row_inputs` of the decoder
        return words.masked_scatter(here[..., None], media.rows[index[here]].to(words.dtype))

    def _row_inputs(self, module: nn.Module, batch: Batch) -> dict[str, Any]:
        inputs, tensors = super()._row_inputs(module, batch), batch.tensors
        here = tensors["media_index"] >= 0 if "media_index" in tensors else torch.zeros_like(tensors["input_ids"]).bool()
        if module is self.model.get_decoder():
            if tensors.get("deep_media"):
                deep = {"visual_pos_masks": here, "deepstack_visual_embeds": tensors["deep_media"]}
                inputs |= _accepted(module.forward, deep)
            return inputs
        inputs["input_ids"] = tensors["input_ids"]
        inputs.pop("position_ids", None)  # the model's own forward counts for itself
        more = {"mm_token_type_ids": here.long(), "token_type_ids": self._token_types(batch, here)}
        if tensors.get("media"):
            more |= self._by_occurrence(batch)
        return inputs | _accepted(module.forward, more)

    def _token_types(self, batch: Batch, here: Tensor) -> Tensor:
        """Return 1 at media; for PaliGemma, whose whole prompt attends in both directions, 1 at responses."""
        if self.model.config.model_type != "paligemma":
            return here.long()
        tensors = batch.tensors
        first: Tensor = tensors["predictors"][:, :1] if tensors["predictors"].shape[1] else tensors["last"][:, None]
        places = torch.arange(here.shape[1], device=here.device)[None]
        return (places > first).long()

    def _given_media(self, batch: Batch) -> dict[str, Any]:
        """Return the features in the form in which transformers' own forward takes encoded media."""
        features = self.encode_media(batch)
        if features is None:
            return {}
        order = [number for row in batch.tensors["row_media"] for number in row]
        return {"mm_encoder_outputs": self._as_output(features, [int(m["tokens"]) for m in batch.tensors["media"]], order)}

    def _as_output(self, features: MediaFeatures, tokens: Sequence[int], order: Sequence[int]) -> dict[str, Any]:
        kind, stacked = self.output_layout

        def pick(layer: Tensor) -> list[Tensor]:
            pieces = list(torch.split(layer, list(tokens)))
            return [pieces[number] for number in order]

        chosen = pick(features.rows)
        made: dict[str, Any] = {"pooler_output": torch.stack(chosen) if stacked else chosen}
        if features.deep:
            made["deepstack_features"] = [pick(layer) for layer in features.deep]
        return {self.modality: kind(**made)}

    def media_inputs(self, rows: Sequence[Encoded], input_ids: Tensor, attention_mask: Tensor) -> dict[str, Any]:
        batch = self.collator.layout((), rows, torch.ones(len(rows)), None).to(input_ids.device)
        here = torch.isin(input_ids, torch.tensor(sorted(self.encoder.media_ids), device=input_ids.device))
        padded = replace(batch, tensors={**batch.tensors, "input_ids": input_ids, "attention_mask": attention_mask,
                                         "media_index": here.long() - 1})  # fmt: skip
        inputs = self._row_inputs(self.model, padded) | self._given_media(batch)
        return {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}

    # what the model allows

    @torch.no_grad()
    def _split_is_exact(self) -> bool:
        """Choose the mode: the first whose logits are those of the model's own forward on raw inputs."""
        name, training = type(self.model).__name__, self.training
        self.eval()
        try:
            expected = self._own_logits(self.probe(1)).float()
            precise = self.model.dtype == torch.float32
            for mode in ("decoder", "base"):
                self.mode = mode
                try:
                    found = self.head(self.states(self.rows_of_probe())).float()
                except (AttributeError, TypeError, ValueError, RuntimeError, KeyError, IndexError) as error:
                    logger.info("%s does not run in mode %r: %s", name, mode, error)
                    continue
                if torch.allclose(found, expected, rtol=1e-4 if precise else 0.05, atol=1e-4 if precise else 0.05):
                    if mode != "decoder":
                        logger.warning("%s: media attend in both directions; the model's own body runs, on plain rows", name)
                    return True
            self.mode = "logits"
            logger.warning(
                "%s: logits are more than a head over the model's states; its own forward runs, which needs memory for every "
                "position x vocabulary",
                name,
            )
            return False
        finally:
            self.train(training)

    def rows_of_probe(self) -> Batch:
        """Return the one-sample probe as `rows` would give it."""
        probe = self.probe(1)
        positions = self._multimodal_positions(probe)
        return probe if positions is None else replace(probe, tensors={**probe.tensors, "position_ids": positions})

    def _own_logits(self, batch: Batch) -> Tensor:
        """Return the logits of the model's own forward on pixels and all, as anybody would call it."""
        (medium,) = batch.tensors["media"]
        raw = {name: value for name, value in _inputs(medium).items() if not name.endswith("_grid_thw")}
        inputs = self._row_inputs(self.model, batch) | _accepted(self.model.forward, raw)
        logits: Tensor = self.model(**inputs, use_cache=False, return_dict=True).logits
        return logits

    def _sharing_is_exact(self) -> bool:
        return self.mode == "decoder" and super()._sharing_is_exact()

    def probe(self, samples: int) -> Batch:
        """Return a small batch with one medium in its prompt."""
        medium, block = self.probe_medium()
        draw = torch.Generator().manual_seed(0)
        plain = [token for token in range(min(1000, self.vocabulary_size)) if token not in self.encoder.media_ids]
        ids = [plain[int(place)] for place in torch.randint(len(plain), (6 + 4 * samples,), generator=draw)]
        prompt = (*ids[:3], *block, *ids[3:6])
        rows = [
            Encoded(prompt, tuple(ids[6 + 4 * n : 9 + 4 * n + n]), prompt_media=(medium,)) for n in range(samples)
        ]  # fmt: skip
        return self.collator.layout((), rows, torch.ones(samples), None).to(self.model.device)

    def probe_medium(self) -> tuple[Medium, tuple[int, ...]]:
        """Return a small medium and the ids that stand for it in a row."""
        raise NotImplementedError

    # caches, and what trains how fast

    def prepare(self, samples: Sequence[Sample], cache: Path, progress: Any = None) -> None:
        """Check that the media of every sample fit its row; fill the feature cache if the recipe asks for one."""
        super().prepare(samples, cache, progress)
        if not self.config.cache_features:
            return
        if not self.media_are_frozen:
            raise TrainingError(
                "policy.cache_features keeps features of frozen parts, but tower or projector train; set it to false"
            )
        media = {medium.key: medium for row in self.collator.encode_all(samples) for medium in row.media}
        width = self.model.config.get_text_config().hidden_size * (1 + self.deep_layers)
        size = sum(medium.tokens for medium in media.values()) * width * self.model.dtype.itemsize
        logger.warning("caching features of %d media: %.0f MB in %s", len(media), size / 2**20, cache / "features")
        self.feature_cache = FeatureCache(cache / "features")
        missing = [medium for medium in media.values() if self._cache_key(medium.key) not in self.feature_cache]
        for start in range(0, len(missing), ENCODED_AT_ONCE):
            self._fill([self._loaded(medium) for medium in missing[start : start + ENCODED_AT_ONCE]])

    @torch.no_grad()
    def _fill(self, media: Sequence[Mapping[str, Any]]) -> None:
        assert self.feature_cache is not None
        features = self._encoded(media)
        lengths = [int(medium["tokens"]) for medium in media]
        layers = [torch.split(layer, lengths) for layer in (features.rows, *features.deep)]
        for number, medium in enumerate(media):
            entry = {str(depth): layer[number] for depth, layer in enumerate(layers)}
            self.feature_cache.store(self._cache_key(medium["key"]), entry, f"{self.modality} {medium['key'][:12]}")

    def _loaded(self, medium: Medium) -> dict[str, Any]:
        inputs = {name: value.to(self.model.device) for name, value in medium.load().items()}
        return {"key": medium.key, "tokens": medium.tokens, **inputs}

    def _from_cache(self, media: Sequence[Mapping[str, Any]]) -> MediaFeatures:
        assert self.feature_cache is not None
        missing = [medium for medium in media if self._cache_key(medium["key"]) not in self.feature_cache]
        if missing:
            self._fill(missing)
        entries = [self.feature_cache.load(self._cache_key(medium["key"])) for medium in media]
        rows, *deep = (
            torch.cat([entry[str(depth)] for entry in entries]).to(self.model.device) for depth in range(len(entries[0]))
        )
        return MediaFeatures(rows, tuple(deep))

    def _cache_key(self, key: str) -> str:
        if self._media_fingerprint is None:
            parts = parts_of(self.model, self.modality)
            weights = [(name, value) for name, value in self.model.named_parameters() if parts[name] != "language"]
            self._media_fingerprint = weights_fingerprint(weights, self.encoder.settings)
        return hashlib.blake2b(f"{key}/{self._media_fingerprint}".encode(), digest_size=20).hexdigest()

    def learning_rate_scales(self) -> dict[str, float]:
        scales = self.config.learning_rate_scale
        parts = parts_of(self.model, self.modality)
        return {f"model.{name}": scales[part] for name, part in parts.items() if part in scales}


def parts_of(model: Any, modality: str) -> dict[str, Part]:
    """Return the part that each parameter belongs to. The language part is the decoder with its embeddings and head; what
    belongs to neither decoder nor tower, and a merger inside the tower, is the projector."""
    language = {
        id(parameter)
        for module in (model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings())
        for parameter in module.parameters()
    }
    tower = {id(parameter) for parameter in model.get_encoder(modality=modality).parameters()} - language

    def part(name: str, parameter: nn.Parameter) -> Part:
        if id(parameter) in language:
            return "language"
        return "tower" if id(parameter) in tower and "merger" not in name else "projector"

    return {name: part(name, parameter) for name, parameter in model.named_parameters()}


def _inputs(medium: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in medium.items() if name not in NOT_ENCODER_INPUTS}


def _accepted(function: Callable[..., Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs that the function takes by name."""
    names = inspect.signature(function).parameters
    return {name: value for name, value in inputs.items() if name in names}


def _flat(features: Any) -> Tensor:
    """Return features as ``[tokens, H]``, however the model groups them by medium."""
    if isinstance(features, Tensor):
        return features.reshape(-1, features.shape[-1])
    return torch.cat([item.reshape(-1, item.shape[-1]) for item in features])
