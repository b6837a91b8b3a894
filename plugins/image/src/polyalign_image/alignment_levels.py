"""AlignGPT (arXiv 2405.14129): tell a vision-language model how well each caption fits its picture.

Pre-training gives every picture-caption pair the embedding of its level (`polyalign data levels`), right after the start
token; only these embeddings and the projector train. Instruction tuning puts a mixture in the same place: the embedding of
the best level, global to all tasks, plus the other levels weighted by a gate that looks at how the question relates to
the picture. The rest of the model does not change, so any model that takes embeddings can be tuned this way.

Departures, each with its reason: the gate reads the question alone and not the answer, which is not there when the model
answers; it takes any number of visual tokens (averaged to ``gate_tokens``), where the original is wired to 576.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyalign.assets import resolve_model
from polyalign.errors import ConfigError, TrainingError
from polyalign.evaluation.levels import LEVEL
from polyalign.policies.base import Batch
from polyalign.policies.completion_mask import Encoded, Piece
from polyalign.policies.fingerprint import weights_fingerprint
from polyalign.policies.generation import left_padded_embeddings
from polyalign.policies.media_features import MediaFeatures
from polyalign.policies.media_training import freeze
from polyalign.policies.token_collator import TokenCollator
from polyalign.randomness import keyed_seed
from polyalign.records.samples import MediaSource, Sample
from polyalign.records.schema import Message
from polyalign_image import vision_language
from polyalign_image.config import AlignmentLevelsConfig
from polyalign_image.picture_kind import PictureEncoder
from polyalign_image.vision_language import VisionLanguagePolicy

LEVELS_FILE = "alignment_levels.safetensors"


class LevelEncoder(PictureEncoder):
    """Leaves a place for the level behind the start token (in front, where there is none) of prompts with pictures."""

    needs_level = False
    levels = 0

    def prompt(self, prompt: tuple[Message, ...], media: MediaSource | None) -> Piece:
        piece = super().prompt(prompt, media)
        if not piece.media:
            return piece
        place = self.level_place(piece.ids)
        return Piece((*piece.ids[:place], self.blank_id, *piece.ids[place:]), piece.media)

    def level_place(self, ids: Sequence[int]) -> int:
        return int(bool(ids) and ids[0] == self.tokenizer.bos_token_id)

    @property
    def blank_id(self) -> int:
        return int(self.tokenizer.eos_token_id)  # any id will do: its embedding is not used

    def encode(self, samples: Sequence[Sample], max_length: int, max_response: int) -> list[Encoded]:
        rows = super().encode(samples, max_length, max_response)
        return [replace(row, tag=self._level(sample)) if row.prompt_media else row for row, sample in zip(rows, samples)]

    def _level(self, sample: Sample) -> int | None:
        level = sample.conditions.get(LEVEL)
        if level is None and self.needs_level:
            raise TrainingError(
                f"sample {sample.id!r} has no condition {LEVEL!r}; write levels with `polyalign data levels`, "
                "or set policy.stage: tune"
            )
        if level is not None and not (isinstance(level, int) and 0 <= level < self.levels):
            raise TrainingError(
                f"sample {sample.id!r} has condition {LEVEL!r} {level!r}, expected a whole number from 0 to {self.levels - 1}; "
                "write levels again, or set policy.levels"
            )
        return level


class LevelCollator(TokenCollator):
    """Marks the place and the level: ``level_index`` ``[N, L]`` is -1 at other tokens, ``levels`` where none is known."""

    encoder: LevelEncoder
    levels: int

    def layout(self, samples: Any, rows: Sequence[Encoded], temperature: Tensor, cache_keys: Any) -> Batch:
        batch = super().layout(samples, rows, temperature, cache_keys)
        index = torch.full_like(batch.tensors["input_ids"], -1)
        for number, row in enumerate(rows):
            if row.prompt_media:
                index[number, self.encoder.level_place(row.prompt)] = self.levels if row.tag is None else row.tag
        batch.tensors["level_index"] = index
        question = torch.zeros_like(index, dtype=torch.bool)
        for number, row in enumerate(rows):
            question[number, : len(row.prompt)] = True
        batch.tensors["question"] = question
        return batch


class Levels(nn.Module):
    """Level embeddings ``[N, H]`` and the gate over the local ones: visual tokens -> hidden -> N - 1, softmax."""

    def __init__(self, levels: int, width: int, gate_tokens: int, gate_hidden: int) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(nn.init.xavier_uniform_(torch.empty(levels, width)))
        self.gate = nn.Sequential(nn.Linear(gate_tokens, gate_hidden), nn.GELU(), nn.Linear(gate_hidden, levels - 1))

    def weights(self, question: Tensor, visual: Tensor, scale: float) -> Tensor:
        """Return the weights of the local levels, ``[N - 1]``: of a question ``[H]`` and visual tokens ``[V, H]``."""
        likeness = (visual @ question) * scale  # [V]
        inputs = self.gate[0].in_features
        if len(likeness) != inputs:
            likeness = F.adaptive_avg_pool1d(likeness[None, None], inputs)[0, 0]
        return torch.softmax(self.gate(likeness), -1)


class AlignmentLevelsPolicy(VisionLanguagePolicy):
    """A vision-language policy with level embeddings. ``mixture`` chooses what instruction tuning inserts:

    - ``gate``: the last (global) embedding plus the others weighted by the gate; ``mean``: plus their mean;
    - ``local``: the gate's mixture alone; ``global``: the last embedding alone; ``fixed``: one level for all.
    """

    encoder: LevelEncoder
    config: AlignmentLevelsConfig
    by_token = (*VisionLanguagePolicy.by_token, "level_index", "question")

    def __init__(self, model: Any, encoder: LevelEncoder, config: AlignmentLevelsConfig, seed: int = 0) -> None:
        ((medium, _),) = encoder.probe_media()
        encoder.needs_level = False  # while probing
        super().__init__(model, encoder, config)
        if self.mode != "decoder":
            raise ConfigError(
                f"{type(model).__name__} does not take embeddings for its pictures, so a level embedding has no place in it; "
                "choose a model in which pictures attend causally, such as LLaVA or Qwen2.5-VL"
            )
        if hasattr(self.body, "get_rope_index"):
            raise ConfigError(
                f"{type(model).__name__} counts positions in three directions, which generation from embeddings does not do; "
                "choose a model of the LLaVA kind"
            )
        width = model.config.get_text_config().hidden_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(keyed_seed(seed, "alignment levels"))
            self.levels = Levels(config.levels, width, config.gate_tokens or medium.tokens, config.gate_hidden)
        self.levels.to(model.device)
        self.levels.embeddings.requires_grad_(config.stage == "pretrain")
        self.levels.gate.requires_grad_(config.stage == "tune" and config.mixture in ("gate", "local"))
        self.start = copy.deepcopy(self.levels).requires_grad_(False)
        encoder.needs_level, encoder.levels = config.stage == "pretrain", config.levels
        self.collator = LevelCollator(encoder, config)
        self.collator.levels = config.levels

    def embed(self, batch: Batch, media: MediaFeatures | None) -> Tensor:
        """Return embeddings with the level's in its place."""
        words = super().embed(batch, media)
        index = batch.tensors.get("level_index")
        if index is None or media is None:
            return words
        rows, columns = (index >= 0).nonzero(as_tuple=True)  # [P]: a place per row, or per prompt of a packed row
        inserted = [self.inserted(batch, media, int(row), int(column)) for row, column in zip(rows, columns)]
        if not inserted:
            return words
        return words.index_put((rows, columns), torch.stack(inserted).to(words.dtype))

    def inserted(self, batch: Batch, media: MediaFeatures, row: int, column: int) -> Tensor:
        """Return what stands at a level's place, ``[H]``."""
        table, config = self.levels.embeddings, self.config
        if config.stage == "pretrain":
            known = int(batch.tensors["level_index"][row, column])
            return table[min(known, config.levels - 1)]  # asked without a level: as if for the best
        local, best = table[:-1], table[-1]
        match config.mixture:
            case "global":
                return best
            case "fixed":
                return table[config.fixed_level]
            case "mean":
                return best + local.mean(0)
        weights = self.gate_weights(batch, media, row, column)
        mixed = weights @ local
        return mixed + best if config.mixture == "gate" else mixed

    def gate_weights(self, batch: Batch, media: MediaFeatures, row: int, column: int) -> Tensor:
        """Return the gate's weights, ``[N - 1]``, from the prompt's own words and pictures."""
        tensors = batch.tensors
        own = tensors["question"][row].clone()
        if "owner" in tensors:  # a packed row holds several prompts
            own &= tensors["owner"][row] == tensors["owner"][row, column]
        index = tensors["media_index"][row]
        words = own & (index < 0) & (tensors["level_index"][row] < 0)
        words &= tensors["input_ids"][row] != (self.tokenizer.bos_token_id if self.tokenizer.bos_token_id is not None else -1)
        ids = tensors["input_ids"][row][words]
        question = self.model.get_input_embeddings()(ids).float().sum(0) / (len(ids) + 1e-8)  # [H]
        visual = media.rows[index[own & (index >= 0)]].float()
        scale = visual.shape[-1] ** -0.5 if self.config.scale_gate else 1.0
        return self.levels.weights(question, visual, scale)

    def media_inputs(self, rows: Sequence[Encoded], input_ids: Tensor, attention_mask: Tensor) -> dict[str, Any]:
        return {"inputs_embeds": left_padded_embeddings(self, rows, input_ids)}

    @contextmanager
    def as_reference(self) -> Iterator[None]:
        """Score with adapters off and with the levels as they were at the start."""
        tuned = self.levels
        self.levels = self.start
        try:
            with super().as_reference():
                yield
        finally:
            self.levels = tuned

    def fingerprint(self) -> str:
        start = list(self.start.state_dict().items())
        return weights_fingerprint(start, super().fingerprint(), self.config.model_dump_json())

    def _write(self, folder: Path, model: Any) -> None:
        from safetensors.torch import save_file

        super()._write(folder, model)
        weights = {name: value.detach().cpu().contiguous() for name, value in self.levels.state_dict().items()}
        save_file(weights, folder / LEVELS_FILE)


def build(config: AlignmentLevelsConfig, *, device: str | torch.device = "cpu", seed: int = 0) -> AlignmentLevelsPolicy:
    """Return the policy at its starting weights; levels and gate of an earlier stage are read from the base's folder."""
    folder = resolve_model(config.base)
    model, processor, within = vision_language.loaded(config, device)
    freeze(model, within, ("image",), seed)
    policy = AlignmentLevelsPolicy(
        model, LevelEncoder(processor, model.config.image_token_id, config.chat_template), within, seed
    )
    restore(policy, Path(folder))
    return policy


def restore(policy: AlignmentLevelsPolicy, folder: Path) -> None:
    """Read level embeddings (and the gate, where its shape fits) that an earlier stage saved."""
    from safetensors.torch import load_file

    path = folder / LEVELS_FILE
    if not path.is_file():
        if policy.config.stage == "tune":
            raise ConfigError(
                f"policy.base {policy.config.base!r} holds no {LEVELS_FILE}; run the pretrain stage and name its model folder"
            )
        return
    stored = load_file(path)
    if stored["embeddings"].shape != policy.levels.embeddings.shape:
        raise ConfigError(
            f"{path} holds level embeddings {tuple(stored['embeddings'].shape)}, the recipe wants "
            f"{tuple(policy.levels.embeddings.shape)}; set policy.levels to {len(stored['embeddings'])}"
        )
    for levels in (policy.levels, policy.start):
        levels.load_state_dict(stored)
