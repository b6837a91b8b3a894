"""The CPU side of token policies: samples or rollouts to right-padded rows, with the positions that are scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import LongTensor, Tensor

from polyalign.errors import ConfigError
from polyalign.policies.base import Batch, Collator, Kind, Rollout, Tokens
from polyalign.policies.completion_mask import Encoded, Medium, Piece, PromptResponseEncoder
from polyalign.policies.config import TokensConfig
from polyalign.policies.shared_prefix import Costs, Line, group_by_prefix, group_length, share_rows
from polyalign.records.samples import Prompt, Sample
from polyalign.records.schema import Message


class Taught(Protocol):
    """Adds target distributions to a batch, by the token ids of its rows. Picklable."""

    def attach(self, batch: Batch, rows: Sequence[Encoded]) -> Batch: ...


@dataclass(frozen=True)
class Truncation:
    """How many of ``samples`` lost prompt tokens or response tokens to the length limits, and how many tokens that was."""

    samples: int
    prompts: int
    prompt_tokens: int
    responses: int
    response_tokens: int


class TokenCollator(Collator):
    """Tokenises and pads. Picklable: the tokenizer is inside.

    Rows are laid out ``[prompt | response | padding]``. With N rows of L tokens and T scored tokens in the longest row,
    ``Batch.tensors`` holds

    - ``input_ids``, ``attention_mask``, ``position_ids`` ``[N, L]`` long; ``row`` ``[N]``, here 0 to N - 1;
    - ``prompt`` ``[N]``: how many tokens of a row are its prompt;
    - ``predictors`` ``[N, T]``: where in its row the hidden state stands that predicts the t-th scored token;
    - ``targets`` ``[N, T]``: the scored tokens; ``last`` ``[N]``: position of the row's last real token;
    - ``temperature`` ``[N]`` float32: logits are divided by it (1 for samples, the decoding temperature for rollouts);
    - ``truncated`` ``[N, 2]``: prompt tokens dropped and response tokens cut;
    - ``shared``, where samples have equal prompts: the same tokens in fewer rows (`shared_prefix.share_rows`);
    - ``media``, where there are any: the encoder inputs of each distinct medium, and ``media_index`` ``[N, L]``: which of
      their features, one after another, stands at a token (-1: none).
    """

    pads: ClassVar[bool] = True
    taught: Taught | None = None  # with a teacher's stored distributions, every batch carries those of its samples

    def __init__(self, encoder: PromptResponseEncoder, config: TokensConfig) -> None:
        self.encoder = encoder
        self.max_length, self.max_response = config.max_length, config.max_response
        self.rows = config.rows
        self.costs: Costs | None = None  # with rows "auto": see `group_by_prefix`
        tokenizer = encoder.tokenizer
        self.pad_id = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        keys, rows = tuple(sample.content_key() for sample in samples), self.encode_all(samples)
        batch = self.layout(tuple(samples), rows, torch.ones(len(samples)), keys)
        return self.taught.attach(batch, rows) if self.taught is not None else batch

    def encode(self, sample: Sample) -> Encoded:
        """Return the token ids of one sample, within the length limits."""
        return self.encode_all([sample])[0]

    def encode_all(self, samples: Sequence[Sample]) -> list[Encoded]:
        return self.encoder.encode(samples, self.max_length, self.max_response)

    def cost(self, sample: Sample) -> int:
        """Return the sample's tokens, prompt and response together."""
        return len(self.encode(sample))

    def row_costs(self, samples: Sequence[Sample]) -> list[int]:
        """Return the length of each row: a shared prompt counts once."""
        lines = [self._line(row) for row in self.encode_all(samples)]
        if self.rows == "plain":
            return [line.prompt + line.response for line in lines]
        return [group_length(lines, group) for group in group_by_prefix(lines, self.costs)]

    def truncation(self, samples: Sequence[Sample]) -> Truncation:
        """Count what the length limits take from these samples."""
        rows = self.encode_all(samples)
        return Truncation(
            samples=len(rows),
            prompts=sum(row.dropped > 0 for row in rows),
            prompt_tokens=sum(row.dropped for row in rows),
            responses=sum(row.cut > 0 for row in rows),
            response_tokens=sum(row.cut for row in rows),
        )

    def generation_prompt(self, prompt: tuple[Message, ...], max_new_tokens: int) -> Encoded:
        """Return what to generate from, with an empty response: the newest ids that leave room for ``max_new_tokens``."""
        room = self.max_length - max_new_tokens
        if room < 1:
            raise ConfigError(
                f"max_new_tokens={max_new_tokens} leaves no room for the prompt within max_length={self.max_length}; "
                "lower max_new_tokens or raise policy.max_length"
            )
        piece = self.encoder.prompt(prompt, prompt.media if isinstance(prompt, Prompt) else None)
        return self.encoder.fit(piece, Piece(()), room, 0, "the prompt to generate from")

    def of_rollouts(self, rollouts: Sequence[Rollout]) -> Batch:
        """Return a batch that scores exactly the generated ids (never the re-tokenised text) at their decoding temperature.

        Greedy rollouts (temperature 0) are scored at temperature 1.
        """
        samples, rows, temperatures = [], [], []
        prompts: dict[tuple[tuple[Message, ...], int], Encoded] = {}  # a prompt is rendered once for its whole group
        for number, rollout in enumerate(rollouts):
            (decision,) = (decision for decision in rollout.decisions if isinstance(decision, Tokens))
            asked = rollout.prompt, int(rollout.decoding["max_new_tokens"])
            if asked not in prompts:
                prompts[asked] = self.generation_prompt(*asked)
            rows.append(replace(prompts[asked], response=tuple(decision.ids.tolist())))
            temperatures.append(float(rollout.decoding.get("temperature", 1.0)) or 1.0)
            samples.append(Sample(f"rollout-{number}", rollout.prompt, rollout.parts, f"rollout-{number}"))
        return self.layout(tuple(samples), rows, torch.tensor(temperatures), None)

    def layout(
        self, samples: tuple[Sample, ...], rows: Sequence[Encoded], temperature: Tensor, cache_keys: tuple[str, ...] | None
    ) -> Batch:
        """Pad the rows on the right, mark what is scored, and find out which rows could be one."""
        lines = [self._line(row) for row in rows]
        count, length = len(rows), max(map(len, rows), default=0)
        scored = max((len(line.scored) for line in lines), default=0)
        input_ids = torch.full((count, length), self.pad_id)
        attention_mask = torch.zeros(count, length, dtype=torch.long)
        predictors = torch.zeros(count, scored, dtype=torch.long)
        targets = torch.full((count, scored), self.pad_id)
        mask = torch.zeros(count, 1, scored, dtype=torch.bool)
        for number, (row, line) in enumerate(zip(rows, lines)):
            tokens = len(line.scored)
            places = torch.tensor(line.scored, dtype=torch.long)
            input_ids[number, : len(row)] = torch.tensor(row.prompt + row.response)
            attention_mask[number, : len(row)] = 1
            predictors[number, :tokens] = places + (line.prompt - 1)
            targets[number, :tokens] = torch.tensor(row.response, dtype=torch.long)[places]
            mask[number, 0, :tokens] = True
        tensors: dict[str, Any] = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": (attention_mask.cumsum(1) - 1).clamp(min=0),
            "row": torch.arange(count),
            "prompt": torch.tensor([line.prompt for line in lines], dtype=torch.long),
            "predictors": predictors,
            "targets": targets,
            "last": torch.tensor([len(row) - 1 for row in rows], dtype=torch.long),
            "temperature": temperature.float(),
            "truncated": torch.tensor([[row.dropped, row.cut] for row in rows], dtype=torch.long).reshape(count, 2),
        }
        if self.rows != "plain" and (self.rows == "packed" or len(group_by_prefix(lines, self.costs)) < count):
            tensors["shared"] = share_rows(lines, self.rows == "packed", self.costs)
        tensors |= self._media(rows, input_ids)
        return Batch(
            samples=samples,
            tensors=tensors,
            mask=mask,  # type: ignore[arg-type]
            kind=torch.full((count, scored), int(Kind.TOKEN)),  # type: ignore[arg-type]
            cache_keys=cache_keys,
        )

    def _line(self, row: Encoded) -> Line:
        media = tuple(medium.key for medium in row.prompt_media)
        scored = tuple(offset for offset, token in enumerate(row.response) if token not in self.encoder.unscored_ids)
        return Line(len(row.prompt), len(row.response), scored, (row.prompt, media, row.tag))

    def _media(self, rows: Sequence[Encoded], input_ids: Tensor) -> dict[str, Any]:
        """Number the features of each distinct medium, in order of appearance, and say where they stand."""
        distinct: dict[str, Medium] = {}
        first: dict[str, int] = {}
        total = 0
        for medium in (medium for row in rows for medium in row.media):
            if medium.key not in distinct:
                distinct[medium.key], first[medium.key] = medium, total
                total += medium.tokens
        if not distinct:
            return {}
        index = torch.full(input_ids.shape, -1)
        placeholders = torch.isin(input_ids, torch.tensor(sorted(self.encoder.media_ids)))
        for number, row in enumerate(rows):
            placeholders[number, len(row) :] = False  # padding may have any id
            numbers = [
                torch.arange(first[medium.key], first[medium.key] + medium.tokens) for medium in row.media if medium.placed
            ]
            index[number, placeholders[number]] = torch.cat(numbers) if numbers else torch.zeros(0, dtype=torch.long)
        media = [
            {"key": medium.key, "tokens": medium.tokens, "modality": medium.modality, **medium.load()}
            for medium in distinct.values()
        ]
        place = {key: number for number, key in enumerate(distinct)}
        return {"media": media, "media_index": index, "row_media": [[place[medium.key] for medium in row.media] for row in rows]}


# Tensors of a batch that speak of target distributions and come back among the extras of its scores.
TARGETS_GIVEN = ("target_values", "teacher_log_probs", "teacher_reference_log_probs")


def with_token_targets(
    batch: Batch, ids: LongTensor, values: Tensor, *, teacher: Tensor | None = None, teacher_reference: Tensor | None = None
) -> Batch:
    """Return the batch with target distributions for ``want={"token_targets"}``.

    ``ids`` ``[N, T, K]``: K distinct token ids per scored position; ``values`` ``[N, T, K]``: their weights, such as a
    teacher's top-K probabilities. ``teacher`` and ``teacher_reference`` ``[N, T, K + 1]``: log-probabilities of those ids under
    a teacher, and under what it was before it learned preferences; last the log of what all other ids hold. Positions
    where the batch's mask is False are ignored.
    """
    expected = (*batch.mask.shape[::2], ids.shape[-1])
    if ids.shape != expected or values.shape != expected:
        raise ValueError(f"ids and values must both be [N, T, K] = {expected}; got {tuple(ids.shape)} and {tuple(values.shape)}")
    tensors: dict[str, Any] = {"target_ids": ids, "target_values": values.float()}
    for name, given in (("teacher_log_probs", teacher), ("teacher_reference_log_probs", teacher_reference)):
        if given is None:
            continue
        if given.shape != (*expected[:2], expected[2] + 1):
            raise ValueError(f"{name} must be [N, T, K + 1] = {(*expected[:2], expected[2] + 1)}; got {tuple(given.shape)}")
        tensors[name] = given.float()
    return replace(batch, tensors={**batch.tensors, **tensors})
