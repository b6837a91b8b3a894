"""Sampling text so that a prompt's responses depend on its own key, never on which prompts share the batch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from polyalign.errors import ConfigError
from polyalign.policies.base import Rollout, Rollouts, Tokens, in_batches
from polyalign.randomness import keyed_generator
from polyalign.records.schema import Message, TextPart

if TYPE_CHECKING:
    from polyalign.policies.completion_mask import Encoded
    from polyalign.policies.tokens import TokenPolicy


@dataclass(frozen=True)
class Decoding:
    """``temperature`` 0 is greedy. ``top_p`` keeps the smallest set of tokens whose probability reaches it.
    ``batch_size``: rows generated at once; it changes speed and memory only."""

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    batch_size: int = 32

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.batch_size < 1:
            raise ConfigError(f"max_new_tokens={self.max_new_tokens} and batch_size={self.batch_size} must be at least 1")
        if self.temperature < 0:
            raise ConfigError(f"temperature={self.temperature} must be at least 0 (0 is greedy)")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p} must lie in (0, 1]")


class KeyedSampler:
    """A logits processor that picks each next token by inverting the cumulative distribution at a number drawn beforehand.

    ``uniforms`` ``[R, steps]`` holds one draw on [0, 1) per row and step, so rows do not share a random stream.
    ``never``: ids that are no text (placeholders of media) and are not picked.
    """

    def __init__(self, uniforms: Tensor, decoding: Decoding, never: Sequence[int] = ()) -> None:
        self.uniforms, self.decoding, self.never, self.step = uniforms, decoding, list(never), 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores ``[R, V]`` that leave only the picked token of each row."""
        if self.never:
            scores = scores.index_fill(1, torch.tensor(self.never, device=scores.device), -torch.inf)
        if self.decoding.temperature == 0:
            return scores
        draw = self.uniforms[:, self.step : self.step + 1].to(scores.device)
        self.step += 1
        probabilities = torch.softmax(scores.double() / self.decoding.temperature, -1)
        if self.decoding.top_p < 1:
            probabilities = nucleus(probabilities, self.decoding.top_p)
        cumulative = probabilities.cumsum(-1)
        picked = torch.searchsorted(cumulative, draw * cumulative[:, -1:], right=True).clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, picked, 0.0)


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Return probabilities ``[R, V]`` with those outside the smallest set that reaches ``top_p`` set to 0 (not rescaled).
    Source: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", section 3.1."""
    ordered, index = probabilities.sort(-1, descending=True)
    before = ordered.cumsum(-1) - ordered  # mass of strictly likelier tokens
    return torch.zeros_like(probabilities).scatter(1, index, torch.where(before < top_p, ordered, 0.0))


@torch.no_grad()
def generate(
    policy: TokenPolicy, prompts: Sequence[tuple[Message, ...]], samples_per_prompt: int, seed: int, decoding: Decoding
) -> Rollouts:
    """Return ``len(prompts) * samples_per_prompt`` rollouts, prompt-major, with their log-probabilities."""
    jobs = [(prompt, number) for prompt in prompts for number in range(samples_per_prompt)]
    return in_batches(policy, jobs, decoding.batch_size, lambda part: scored(policy, _sampled(policy, part, seed, decoding)))


def _sampled(policy: TokenPolicy, jobs: Sequence[tuple[Any, int]], seed: int, decoding: Decoding) -> list[Rollout]:
    from transformers import GenerationConfig, LogitsProcessorList

    collator, device = policy.collator, policy.model.device
    rows = [collator.generation_prompt(prompt, decoding.max_new_tokens) for prompt, _ in jobs]
    input_ids, attention_mask = left_padded(rows, collator.pad_id)
    length = input_ids.shape[1]
    stops = sorted(stop_ids(policy))
    uniforms = torch.stack([uniforms_of(job, seed, decoding.max_new_tokens) for job in jobs])
    known = range(policy.model.get_output_embeddings().weight.shape[0])  # some models' placeholders are no words at all
    never = sorted(token for token in policy.encoder.media_ids if token in known)
    sampler = KeyedSampler(uniforms, decoding, never)
    sequences = policy.continued(
        rows,
        input_ids.to(device),
        attention_mask.to(device),
        generation_config=GenerationConfig(
            do_sample=False,  # the sampler has already decided
            num_beams=1,
            max_new_tokens=decoding.max_new_tokens,
            repetition_penalty=1.0,
            eos_token_id=stops,
            pad_token_id=collator.pad_id,
        ),
        logits_processor=LogitsProcessorList([sampler]),
        tokenizer=policy.tokenizer,
    )
    settings = asdict(decoding) | {"seed": seed}
    return [_rollout(policy, job[0], row, stops, settings) for job, row in zip(jobs, sequences[:, length:].cpu())]


def left_padded(rows: Sequence[Encoded], pad_id: int) -> tuple[Tensor, Tensor]:
    """Return ids and attention mask ``[R, L]`` of prompts: every row's next token stands in the same column."""
    length = max(map(len, rows))
    input_ids = torch.full((len(rows), length), pad_id)
    attention_mask = torch.zeros(len(rows), length, dtype=torch.long)
    for number, row in enumerate(rows):
        input_ids[number, length - len(row) :] = torch.tensor(row.prompt)
        attention_mask[number, length - len(row) :] = 1
    return input_ids, attention_mask


def left_padded_embeddings(policy: TokenPolicy, rows: Sequence[Encoded], input_ids: Tensor) -> Tensor:
    """Return what left-padded rows ``[R, L]`` look like to the model, ``[R, L, H]``: for policies that put more than words into
    their prompts, so that generation starts from the very embeddings that scoring reads."""
    batch = policy.collator.layout((), rows, torch.ones(len(rows)), None).to(input_ids.device)
    plain = replace(batch, tensors={name: value for name, value in batch.tensors.items() if name != "shared"})
    embeddings = policy.embed(plain, policy.encode_media(plain))  # right-padded
    padded = torch.zeros(*input_ids.shape, embeddings.shape[-1], dtype=embeddings.dtype, device=embeddings.device)
    for number, row in enumerate(rows):
        padded[number, input_ids.shape[1] - len(row) :] = embeddings[number, : len(row)]
    return padded


def _rollout(
    policy: TokenPolicy, prompt: tuple[Message, ...], generated: Tensor, stops: Sequence[int], settings: dict[str, Any]
) -> Rollout:
    """Cut the row after its first stop token: what follows is padding, which may well have the same id."""
    ends = torch.isin(generated, torch.tensor(stops)).nonzero()
    ids = generated[: int(ends[0]) + 1] if len(ends) else generated
    text = policy.tokenizer.decode(ids.tolist(), skip_special_tokens=True)
    return Rollout(prompt, text, (Tokens(ids),), decoding=settings, parts=(TextPart(text=text),))


def scored(policy: TokenPolicy, rollouts: list[Rollout]) -> list[Rollout]:
    """Return the rollouts with their log-probabilities."""
    scores = policy(policy.collator.of_rollouts(rollouts).to(policy.model.device))
    log_probs, mask = scores.log_probs[:, 0].cpu(), scores.mask[:, 0].cpu()
    return [replace(rollout, old_log_probs=log_probs[row][mask[row]]) for row, rollout in enumerate(rollouts)]


def stop_ids(policy: TokenPolicy) -> set[int]:
    """Return every token that ends a turn: the tokenizer's, the template's and those the model's own settings name."""
    named = policy.model.generation_config.eos_token_id if policy.model.generation_config is not None else None
    own = named if isinstance(named, list) else [named] if named is not None else []
    return {policy.tokenizer.eos_token_id, policy.encoder.end_ids[-1], *own}


def uniforms_of(job: tuple[tuple[Message, ...], int], seed: int, steps: int) -> Tensor:
    """Return the draws ``[steps]`` of one answer, on [0, 1): of this prompt's answer with this number, whatever else is asked."""
    prompt, number = job
    content = json.dumps([message.model_dump() for message in prompt], sort_keys=True)
    return torch.rand(steps, generator=keyed_generator(seed, "generate", content, number), dtype=torch.float64)
