"""The CPU side of token policies: samples or rollouts to right-padded rows, with the positions that are scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import LongTensor, Tensor

from polyalign.errors import ConfigError
from polyalign.policies.base import Batch, Collator, Kind, Rollout, Tokens
from polyalign.policies.completion_mask import Encoded, PromptResponseEncoder
from polyalign.policies.config import TokensConfig
from polyalign.records.samples import Sample
from polyalign.records.schema import Message


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

    - ``input_ids``, ``attention_mask``, ``position_ids`` ``[N, L]`` long;
    - ``predictors`` ``[N, T]``: where in its row the hidden state stands that predicts the t-th scored token;
    - ``targets`` ``[N, T]``: the scored tokens; ``last`` ``[N]``: position of the row's last real token;
    - ``temperature`` ``[N]`` float32: logits are divided by it (1 for samples, the decoding temperature for rollouts);
    - ``truncated`` ``[N, 2]``: prompt tokens dropped and response tokens cut.
    """

    def __init__(self, encoder: PromptResponseEncoder, config: TokensConfig) -> None:
        self.encoder = encoder
        self.max_length, self.max_response = config.max_length, config.max_response
        tokenizer = encoder.tokenizer
        self.pad_id = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        prompts: dict[tuple[Message, ...], tuple[int, ...]] = {}  # a prompt shared by candidates is rendered once
        rows = []
        for sample in samples:
            if sample.prompt not in prompts:
                prompts[sample.prompt] = self.encoder.prompt_ids(sample.prompt)
            rows.append(self._fit(prompts[sample.prompt], self.encoder.response_ids(sample.response)))
        keys = tuple(sample.content_key() for sample in samples)
        return self.layout(tuple(samples), rows, torch.ones(len(rows)), keys)

    def encode(self, sample: Sample) -> Encoded:
        """Return the token ids of one sample, within the length limits."""
        return self._fit(self.encoder.prompt_ids(sample.prompt), self.encoder.response_ids(sample.response))

    def cost(self, sample: Sample) -> int:
        """Return the sample's tokens, prompt and response together."""
        return len(self.encode(sample))

    def truncation(self, samples: Sequence[Sample]) -> Truncation:
        """Count what the length limits take from these samples."""
        rows = [self.encode(sample) for sample in samples]
        return Truncation(
            samples=len(rows),
            prompts=sum(row.dropped > 0 for row in rows),
            prompt_tokens=sum(row.dropped for row in rows),
            responses=sum(row.cut > 0 for row in rows),
            response_tokens=sum(row.cut for row in rows),
        )

    def generation_prompt(self, prompt: tuple[Message, ...], max_new_tokens: int) -> tuple[int, ...]:
        """Return the ids to generate from: the newest that leave room for ``max_new_tokens``."""
        room = self.max_length - max_new_tokens
        if room < 1:
            raise ConfigError(
                f"max_new_tokens={max_new_tokens} leaves no room for the prompt within max_length={self.max_length}; "
                "lower max_new_tokens or raise policy.max_length"
            )
        return self.encoder.prompt_ids(prompt)[-room:]

    def of_rollouts(self, rollouts: Sequence[Rollout]) -> Batch:
        """Return a batch that scores exactly the generated ids (never the re-tokenised text) at their decoding temperature.

        Greedy rollouts (temperature 0) are scored at temperature 1.
        """
        samples, rows, temperatures = [], [], []
        for number, rollout in enumerate(rollouts):
            (decision,) = (decision for decision in rollout.decisions if isinstance(decision, Tokens))
            prompt = self.generation_prompt(rollout.prompt, int(rollout.decoding["max_new_tokens"]))
            rows.append(Encoded(prompt, tuple(decision.ids.tolist())))
            temperatures.append(float(rollout.decoding.get("temperature", 1.0)) or 1.0)
            samples.append(Sample(f"rollout-{number}", rollout.prompt, rollout.parts, f"rollout-{number}"))
        return self.layout(tuple(samples), rows, torch.tensor(temperatures), None)

    def layout(
        self, samples: tuple[Sample, ...], rows: Sequence[Encoded], temperature: Tensor, cache_keys: tuple[str, ...] | None
    ) -> Batch:
        """Pad the rows on the right and mark what is scored."""
        count, length = len(rows), max(map(len, rows), default=0)
        scored = max((len(row.response) for row in rows), default=0)
        input_ids = torch.full((count, length), self.pad_id)
        attention_mask = torch.zeros(count, length, dtype=torch.long)
        predictors = torch.zeros(count, scored, dtype=torch.long)
        targets = torch.full((count, scored), self.pad_id)
        mask = torch.zeros(count, 1, scored, dtype=torch.bool)
        for number, row in enumerate(rows):
            tokens = len(row.response)
            input_ids[number, : len(row)] = torch.tensor(row.prompt + row.response)
            attention_mask[number, : len(row)] = 1
            predictors[number, :tokens] = torch.arange(len(row.prompt) - 1, len(row) - 1)
            targets[number, :tokens] = torch.tensor(row.response)
            mask[number, 0, :tokens] = True
        return Batch(
            samples=samples,
            tensors={
                "input_ids": input_ids,
                "attention_mask": attention_mask,
                "position_ids": (attention_mask.cumsum(1) - 1).clamp(min=0),
                "predictors": predictors,
                "targets": targets,
                "last": torch.tensor([len(row) - 1 for row in rows], dtype=torch.long),
                "temperature": temperature.float(),
                "truncated": torch.tensor([[row.dropped, row.cut] for row in rows], dtype=torch.long).reshape(count, 2),
            },
            mask=mask,  # type: ignore[arg-type]
            kind=torch.full((count, scored), int(Kind.TOKEN)),  # type: ignore[arg-type]
            cache_keys=cache_keys,
        )

    def _fit(self, prompt: tuple[int, ...], response: tuple[int, ...]) -> Encoded:
        return self.encoder.fit(prompt, response, self.max_length, self.max_response)


def with_token_targets(batch: Batch, ids: LongTensor, values: Tensor) -> Batch:
    """Return the batch with target distributions for ``want={"token_targets"}``.

    ``ids`` ``[N, T, K]``: K token ids per scored position; ``values`` ``[N, T, K]``: their weights, such as a teacher's
    top-K probabilities. Positions where the batch's mask is False are ignored.
    """
    expected = (*batch.mask.shape[::2], ids.shape[-1])
    if ids.shape != expected or values.shape != expected:
        raise ValueError(f"ids and values must both be [N, T, K] = {expected}; got {tuple(ids.shape)} and {tuple(values.shape)}")
    return replace(batch, tensors={**batch.tensors, "target_ids": ids, "target_values": values.float()})
