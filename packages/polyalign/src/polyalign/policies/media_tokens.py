"""Token policies that read media: a tower and a projector turn each medium into features that stand among the text tokens.

Made for the layout that transformers' image-text-to-text models share: ``get_<modality>_features``, placeholder tokens in
the text, a decoder that takes embeddings. What a model allows is found out by trying it on a small example when the policy
is built, best first:

- ``decoder``: features are put among the embeddings here and the decoder runs on them; responses may share rows;
- ``base``: the model's own body runs on plain rows, with the features given to it (media that attend in both directions);
- ``logits``: the model's own forward, which also makes the logits of every position.

In every mode each distinct medium of a batch is encoded once (`media_features`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from polyalign.errors import ConfigError
from polyalign.policies.base import Batch, evaluating
from polyalign.policies.completion_mask import Encoded
from polyalign.policies.config import MediaTokensConfig
from polyalign.policies.media_features import MediaEncoder, MediaFeatures, accepted, encoder_inputs, parts_of
from polyalign.policies.processor_encoder import ProcessorEncoder
from polyalign.policies.tokens import TokenPolicy
from polyalign.records.samples import Sample

logger = logging.getLogger(__name__)
Mode = Literal["decoder", "base", "logits"]
TYPES = {"image": 1, "video": 2, "audio": 3}  # the numbers of mm_token_type_ids
BESIDES = {
    "base": "%s: media do more than stand among the embeddings (attend in both directions, say); "
    "the model's own body runs, on plain rows: one row per response",
    "logits": "%s: logits are more than a head over the model's states; its own forward runs, on plain rows: one row per "
    "response, and memory for every position x vocabulary",
}


class MediaTokenPolicy(TokenPolicy):
    """A token policy over text and the modalities that its encoder reads, named as transformers does ("image", "video").

    What trains is decided before: parameters that require gradients train, the others never change.
    """

    media_encoder: ClassVar[type[MediaEncoder]] = MediaEncoder
    layout: ClassVar[frozenset[str]] = frozenset({"second_per_grid_ts"})  # what positions depend on, beside *_grid_thw
    config: MediaTokensConfig
    encoder: ProcessorEncoder
    mode: Mode
    plain_head = False  # the wrapper leaves out the scaling of logits that its language model has (Aya Vision, Command A Vision)

    def __init__(self, model: Any, encoder: ProcessorEncoder, config: MediaTokensConfig, *, value_head: bool = False) -> None:
        self.modalities = tuple(encoder.ids_by_modality)
        self.media: MediaEncoder = self.media_encoder(model, self.modalities, encoder.settings)
        super().__init__(model, encoder, config, value_head=value_head)

    def encode_media(self, batch: Batch) -> MediaFeatures | None:
        """Return the features of each distinct medium of the batch; None where it holds text only."""
        return self.media(batch)

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
            count = self.body.get_rope_index
            batch.memo["positions"] = count(**accepted(count, self.position_inputs(batch)))[0]
        return batch.memo["positions"]  # type: ignore[no-any-return]

    def position_inputs(self, batch: Batch) -> dict[str, Tensor]:
        """Return what a model counts positions from, by the names of its ``get_rope_index``."""
        tensors = batch.tensors
        inputs = {name: tensors[name] for name in ("input_ids", "attention_mask")} | self.by_occurrence(batch)
        inputs["mm_token_type_ids"] = self._media_types(tensors["input_ids"], tensors["media_index"] >= 0).int()
        return inputs

    def by_occurrence(self, batch: Batch) -> dict[str, Tensor]:
        """Return the encoder inputs besides the pixels, one entry for every time a medium stands in a row."""
        found: dict[str, list[Tensor]] = {}
        for number in (number for row in batch.tensors["row_media"] for number in row):
            for name, value in encoder_inputs(batch.tensors["media"][number]).items():
                if self._is_layout(name):
                    found.setdefault(name, []).append(value)
        return {name: torch.cat(values) for name, values in found.items()}

    def _media_types(self, ids: Tensor, here: Tensor) -> Tensor:
        """Return what transformers calls the type of each token, ``[N, L]``: 0 text, else the modality's number."""
        types = here.long()
        for modality, token in self.encoder.ids_by_modality.items():
            types[here & (ids == token)] = TYPES[modality]
        return types

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
        known = ids.masked_fill(here, 0)  # some placeholders are outside the vocabulary
        words: Tensor = self.model.get_input_embeddings()(known)
        batch.tensors["deep_media"] = [layer[index[here]] for layer in media.deep]  # for `_row_inputs` of the decoder
        return words.masked_scatter(here[..., None], media.rows[index[here]].to(words.dtype))

    def _row_inputs(self, module: nn.Module, batch: Batch) -> dict[str, Any]:
        inputs, tensors = super()._row_inputs(module, batch), batch.tensors
        here = tensors["media_index"] >= 0 if "media_index" in tensors else torch.zeros_like(tensors["input_ids"]).bool()
        if module is self.model.get_decoder():
            if tensors.get("deep_media"):
                deep = {"visual_pos_masks": here, "deepstack_visual_embeds": tensors["deep_media"]}
                inputs |= accepted(module.forward, deep)
            return inputs
        inputs["input_ids"] = tensors["input_ids"]
        inputs.pop("position_ids", None)  # the model's own forward counts for itself
        more = {
            "mm_token_type_ids": self._media_types(tensors["input_ids"], here),
            "token_type_ids": self._token_types(batch, here),
        }
        if tensors.get("media"):
            more |= self.by_occurrence(batch)
        return inputs | accepted(module.forward, more)

    def _token_types(self, batch: Batch, here: Tensor) -> Tensor:
        """Return 1 at media; for PaliGemma, whose whole prompt attends in both directions, 1 at responses."""
        if self.model.config.model_type != "paligemma":
            return here.long()
        prompts: Tensor = batch.tensors["prompt"]  # [N]
        return (torch.arange(here.shape[1], device=here.device)[None] >= prompts[:, None]).long()

    def head(self, states: Tensor) -> Tensor:
        if not self.plain_head:
            return super().head(states)
        logits: Tensor = self.model.get_output_embeddings()(states)
        return logits

    def _given_media(self, batch: Batch) -> dict[str, Any]:
        """Return the features in the form in which transformers' own forward takes encoded media."""
        features = self.encode_media(batch)
        if features is None:
            return {}
        order = [number for row in batch.tensors["row_media"] for number in row]
        return {"mm_encoder_outputs": self.media.as_output(features, batch.tensors["media"], order)}

    def media_inputs(self, rows: Sequence[Encoded], input_ids: Tensor, attention_mask: Tensor) -> dict[str, Any]:
        batch = self.collator.layout((), rows, torch.ones(len(rows)), None).to(input_ids.device)
        here = torch.isin(input_ids, torch.tensor(sorted(self.encoder.media_ids), device=input_ids.device))
        moved = {
            "input_ids": input_ids, "attention_mask": attention_mask, "media_index": here.long() - 1,
            "prompt": torch.full((len(rows),), input_ids.shape[1], device=input_ids.device),
        }  # fmt: skip
        left = replace(batch, tensors={**batch.tensors, **moved})
        inputs = self._row_inputs(self.model, left) | self._given_media(batch)
        return {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}

    # what the model allows

    @torch.no_grad()
    def _split_is_exact(self) -> bool:
        """Choose the mode: the first whose logits are those of the model's own forward on raw inputs."""
        name = type(self.model).__name__
        with evaluating(self):
            expected = self._own_logits(self.probe(1)).float()
            for self.mode in ("decoder", "base", "logits"):
                try:
                    found = self._logits_of_probe(expected)
                except (AttributeError, TypeError, ValueError, RuntimeError, KeyError, IndexError) as error:
                    logger.info("%s does not run in mode %r: %s", name, self.mode, error)
                    continue
                if self._equal(found, expected):
                    if self.mode != "decoder":
                        logger.warning(BESIDES[self.mode], name)
                    return self.mode != "logits"
        raise ConfigError(
            f"{name} makes other logits from features that are handed to it than from a medium of its own, in every way that is "
            f"known here (get_{self.modalities[0]}_features, mm_encoder_outputs); this architecture needs a policy of its own"
        )

    def _logits_of_probe(self, expected: Tensor) -> Tensor:
        """Return the probe's logits ``[1, L, V]`` in the mode that is set, with the head that suits."""
        probe = self.rows_of_probe()
        if self.mode == "logits":
            return self.whole(probe)[1].float()
        states = self.states(probe)
        for self.plain_head in (False, True):
            found = self.head(states).float()
            if self._equal(found, expected):
                break
        return found

    def _equal(self, found: Tensor, expected: Tensor) -> bool:
        precise = self.model.dtype == torch.float32
        return torch.allclose(found, expected, rtol=1e-4 if precise else 0.05, atol=1e-4 if precise else 0.05)

    def rows_of_probe(self) -> Batch:
        """Return the one-sample probe as `rows` would give it."""
        probe = self.probe(1)
        positions = self._multimodal_positions(probe)
        return probe if positions is None else replace(probe, tensors={**probe.tensors, "position_ids": positions})

    def _own_logits(self, batch: Batch) -> Tensor:
        """Return the logits of the model's own forward on pixels and all, as anybody would call it."""
        inputs_of = [encoder_inputs(medium).items() for medium in batch.tensors["media"]]
        raw = {name: value for items in inputs_of for name, value in items if not self._is_layout(name)}
        inputs = self._row_inputs(self.model, batch) | accepted(self.model.forward, raw)
        logits: Tensor = self.model(**inputs, use_cache=False, return_dict=True).logits
        return logits

    def _sharing_is_exact(self) -> bool:
        if self.mode != "decoder" and self.config.rows in ("shared", "packed"):
            raise ConfigError(
                f"policy.rows={self.config.rows!r}: {BESIDES[self.mode] % type(self.model).__name__}; use auto or plain"
            )
        return self.mode == "decoder" and super()._sharing_is_exact()

    def probe(self, samples: int) -> Batch:
        """Return a small batch with one medium of each modality in its prompt."""
        media = self.encoder.probe_media()
        draw = torch.Generator().manual_seed(0)
        plain = [token for token in range(min(1000, self.vocabulary_size)) if token not in self.encoder.media_ids]
        ids = [plain[int(place)] for place in torch.randint(len(plain), (6 + 4 * samples,), generator=draw)]
        prompt = (*ids[:3], *(token for _, block in media for token in (*block, *ids[3:6])))
        shown = tuple(medium for medium, _ in media)
        rows = [
            Encoded(prompt, tuple(ids[6 + 4 * n : 9 + 4 * n + n]), prompt_media=shown) for n in range(samples)
        ]  # fmt: skip
        return self.collator.layout((), rows, torch.ones(samples), None).to(self.model.device)

    # caches, and what trains how fast

    def prepare(self, samples: Sequence[Sample], cache: Path, progress: Any = None) -> None:
        """Check that the media of every sample fit its row; fill the feature cache if the recipe asks for one."""
        super().prepare(samples, cache, progress)
        if not self.config.cache_features:
            return
        media = [medium for row in self.collator.encode_all(samples) for medium in row.media]
        self.media.cache_in(cache / "features", media)

    def _write(self, folder: Path, model: Any) -> None:
        super()._write(folder, model)
        self.encoder.processor.save_pretrained(folder)

    def learning_rate_scales(self) -> dict[str, float]:
        scales = self.config.learning_rate_scale
        parts = parts_of(self.model, self.modalities)
        return {f"model.{name}": scales[part] for name, part in parts.items() if part in scales}

    def _is_layout(self, name: str) -> bool:
        """Return whether an encoder input says where features lie in space and time, which positions depend on too."""
        return name.endswith("_grid_thw") or name in self.layout
