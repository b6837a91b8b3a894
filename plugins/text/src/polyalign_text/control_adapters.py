"""MEET: parameter-efficient control. One soft prompt per kind of behaviour, in front of the words; the user asks for one.

Stage ``modules``: the model is frozen, and the soft prompt of each label learns by likelihood from the responses that carry the
label (``data.view: controlled`` labels preferred and dispreferred ones "good" and "bad"). Stage ``joint``: model and soft
prompts learn together, by the same likelihood or any other objective. Generation then puts the soft prompt of the wanted
label in front. A joint stage without a first one, on fresh soft prompts, is the ablation that reviewers asked for.

Source: MEET, known to us by its abstract and reviews only. There the modules are soft prompts or LoRA; here soft prompts,
so that one batch may hold every label.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polyalign.assets import resolve_model
from polyalign.errors import ConfigError, RecordError, nearest
from polyalign.policies import generation
from polyalign.policies.base import Batch, Rollouts
from polyalign.policies.completion_mask import Encoded, PromptResponseEncoder
from polyalign.policies.fingerprint import weights_fingerprint
from polyalign.policies.token_collator import TokenCollator
from polyalign.randomness import keyed_generator
from polyalign.records.samples import Sample
from polyalign.records.schema import Message
from polyalign.records.views import CONTROL
from polyalign_text import policy as text
from polyalign_text.config import ControlAdaptersConfig

MODULES_FILE = "control_modules.safetensors"
Labels = tuple[str, ...]


class ControlEncoder(PromptResponseEncoder):
    """Leaves places for soft prompts in front of everything, ``length`` for each label of a sample's condition "control"."""

    def __init__(self, tokenizer: Any, config: ControlAdaptersConfig) -> None:
        super().__init__(tokenizer, config.chat_template)
        self.labels, self.length, self.default = config.labels, config.length, self.read(config.control, config.labels)

    def encode(self, samples: Sequence[Sample], max_length: int, max_response: int) -> list[Encoded]:
        wanted = [self.labels_of(sample) for sample in samples]
        rows: dict[int, Encoded] = {}
        for labels in dict.fromkeys(wanted):
            chosen = [number for number, found in enumerate(wanted) if found == labels]
            room = max_length - self.length * len(labels)
            plain = super().encode([samples[number] for number in chosen], room, max_response)
            rows |= {number: self.with_places(row, labels) for number, row in zip(chosen, plain, strict=True)}
        return [rows[number] for number in range(len(samples))]

    def with_places(self, row: Encoded, labels: Labels) -> Encoded:
        blank = (int(self.tokenizer.eos_token_id),) * (self.length * len(labels))  # any id will do: its embedding is not used
        return replace(row, prompt=blank + row.prompt, tag=labels)

    def labels_of(self, sample: Sample) -> Labels:
        asked = sample.conditions.get(CONTROL)
        if asked is None:
            return self.default
        try:
            return self.read(str(asked), self.labels)
        except ValueError as error:
            raise RecordError(f"sample {sample.id!r} has condition {CONTROL!r} {asked!r}: {error}") from error

    @staticmethod
    def read(asked: str, labels: Labels) -> Labels:
        """Return the labels of ``good`` or ``helpful+harmless``. Raises `ValueError` for one that is not known."""
        named = tuple(asked.split("+"))
        for label in named:
            if label not in labels:
                raise ValueError(
                    f"no control module {label!r}.{nearest(label, labels)} Known (policy.labels): {', '.join(labels)}"
                )
        return named


class ControlCollator(TokenCollator):
    """Marks the places: ``control_index`` ``[N, L]`` is a row of the table of soft prompts, and -1 at ordinary tokens."""

    encoder: ControlEncoder
    asked: Labels  # what prompts to generate from are given

    def generation_prompt(self, prompt: tuple[Message, ...], max_new_tokens: int) -> Encoded:
        places = self.encoder.length * len(self.asked)
        row = super().generation_prompt(prompt, max_new_tokens + places)
        return self.encoder.with_places(row, self.asked)

    def layout(self, samples: Any, rows: Sequence[Encoded], temperature: Tensor, cache_keys: Any) -> Batch:
        batch = super().layout(samples, rows, temperature, cache_keys)
        index = torch.full_like(batch.tensors["input_ids"], -1)
        length, labels = self.encoder.length, self.encoder.labels
        for number, row in enumerate(rows):
            for turn, label in enumerate(row.tag or ()):  # type: ignore[arg-type, var-annotated]
                first = labels.index(label) * length
                index[number, turn * length : (turn + 1) * length] = torch.arange(first, first + length)
        batch.tensors["control_index"] = index
        return batch


class ControlAdaptersPolicy(text.TextPolicy):
    """A language model with a table of soft prompts, ``[labels x length, H]``."""

    by_token = (*text.TextPolicy.by_token, "control_index")
    encoder: ControlEncoder
    collator: ControlCollator
    config: ControlAdaptersConfig

    def __init__(self, model: Any, encoder: ControlEncoder, config: ControlAdaptersConfig, seed: int = 0) -> None:
        super().__init__(model, encoder, config)
        if config.stage == "modules":
            model.requires_grad_(False)
        measured = self.collator.costs
        self.collator = ControlCollator(encoder, config)
        self.collator.costs = measured
        self.collator.asked = encoder.default
        words = model.get_input_embeddings().weight
        count = len(config.labels) * config.length
        drawn = torch.randint(len(words), (count,), generator=keyed_generator(seed, "control modules"))
        self.modules_table = nn.Parameter(words.detach()[drawn.to(words.device)].float().clone())  # starts as words at random
        self.start = copy.deepcopy(self.modules_table).requires_grad_(False)

    def embed(self, batch: Batch, media: Any) -> Tensor:
        """Return embeddings with soft prompts in their places."""
        words = super().embed(batch, media)
        index = batch.tensors.get("control_index")  # not there while the model is probed
        if index is None:
            return words
        places = (index >= 0).nonzero(as_tuple=True)
        return words.index_put(places, self.modules_table[index[places]].to(words.dtype))

    def media_inputs(self, rows: Sequence[Encoded], input_ids: Tensor, attention_mask: Tensor) -> dict[str, Any]:
        return {"inputs_embeds": generation.left_padded_embeddings(self, rows, input_ids)}

    def generate(
        self,
        prompts: Sequence[tuple[Message, ...]],
        *,
        samples_per_prompt: int = 1,
        seed: int = 0,
        control: str | None = None,
        **decoding: Any,
    ) -> Rollouts:
        """Return text rollouts as `TokenPolicy.generate`, under the module ``control`` names; default: ``policy.control``."""
        try:
            asked = self.encoder.read(control, self.encoder.labels) if control is not None else self.encoder.default
        except ValueError as error:
            raise ConfigError(str(error)) from error
        self.collator.asked = asked
        try:
            return super().generate(prompts, samples_per_prompt=samples_per_prompt, seed=seed, **decoding)
        finally:
            self.collator.asked = self.encoder.default

    def learning_rate_scales(self) -> dict[str, float]:
        return {"modules_table": self.config.modules_rate_scale}

    @contextmanager
    def as_reference(self) -> Iterator[None]:
        """Score with adapters off and with the soft prompts as they were at the start."""
        tuned = self.modules_table
        self.modules_table = self.start
        try:
            with super().as_reference():
                yield
        finally:
            self.modules_table = tuned

    def fingerprint(self) -> str:
        layout = [self.config.labels, self.config.length, self.config.control]
        return weights_fingerprint([("start", self.start)], super().fingerprint(), json.dumps(layout))

    def save_modules(self, folder: Path) -> None:
        """Write the soft prompts alone."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        labels = {"labels": json.dumps(self.config.labels)}
        save_file({"table": self.modules_table.detach().cpu().contiguous()}, folder / MODULES_FILE, metadata=labels)

    def _write(self, folder: Path, model: Any) -> None:
        super()._write(folder, model)
        self.save_modules(folder)


def build(config: ControlAdaptersConfig, *, device: str | torch.device = "cpu", seed: int = 0) -> ControlAdaptersPolicy:
    """Return the policy at its starting weights; soft prompts come from ``policy.modules``, or from the base."""
    folder = Path(resolve_model(config.base))
    model, tokenizer, within = text.loaded(config, device, seed)
    policy = ControlAdaptersPolicy(model, ControlEncoder(tokenizer, within), within, seed)
    policy.merged_base = text.is_adapter(str(folder))
    if config.modules is not None:
        restore(policy, Path(config.modules))
    elif (folder / MODULES_FILE).is_file():
        restore(policy, folder)
    return policy


def restore(policy: ControlAdaptersPolicy, folder: Path) -> None:
    """Read soft prompts that `ControlAdaptersPolicy.save_modules` wrote. Raises `ConfigError` where they do not fit."""
    from safetensors import safe_open

    path = folder / MODULES_FILE
    if not path.is_file():
        raise ConfigError(
            f"policy.modules: {str(folder)!r} holds no {MODULES_FILE}; name the model folder of a control-adapters run"
        )
    with safe_open(path, framework="pt") as file:
        labels, table = tuple(json.loads(file.metadata()["labels"])), file.get_tensor("table")
    wanted = (policy.config.labels, tuple(policy.modules_table.shape))
    if (labels, tuple(table.shape)) != wanted:
        raise ConfigError(
            f"{path} holds modules for {', '.join(labels)} of shape {tuple(table.shape)}, the recipe wants "
            f"{', '.join(wanted[0])} of shape {wanted[1]}; set policy.labels and policy.length accordingly"
        )
    with torch.no_grad():
        for values in (policy.modules_table, policy.start):
            values.copy_(table)
