"""Sampling responses of text and media: constrained span by span, guided inside media."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from polyalign.errors import ConfigError
from polyalign.policies.base import Rollout, Rollouts, Tokens, in_batches
from polyalign.policies.completion_mask import Encoded
from polyalign.policies.generation import (
    Decoding,
    KeyedSampler,
    left_padded,
    left_padded_embeddings,
    scored,
    stop_ids,
    uniforms_of,
)
from polyalign.records.schema import Message, TextPart
from polyalign_any_to_any.encoder import decoded_parts
from polyalign_any_to_any.spans import Writing, pieces

if TYPE_CHECKING:
    from polyalign_any_to_any.policy import MixedTokenPolicy


@dataclass(frozen=True)
class MixedDecoding(Decoding):
    """``respond``: the response is one medium of this modality, or "text"; None leaves it to the model, and parts may mix.

    ``guidance``: codes are drawn from ``unconditional + guidance * (conditional - unconditional)`` logits, where the second
    prompt has lost its messages (classifier-free guidance, arXiv 2207.12598); 1: off. Like top_p it shapes what is drawn and
    not what is scored.
    """

    respond: str | None = None
    guidance: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.guidance < 0:
            raise ConfigError(f"guidance={self.guidance} must be at least 0 (1 is off)")


@torch.no_grad()
def generate(
    policy: MixedTokenPolicy, prompts: Sequence[tuple[Message, ...]], samples_per_prompt: int, seed: int, decoding: MixedDecoding
) -> Rollouts:
    """Return ``len(prompts) * samples_per_prompt`` rollouts, prompt-major, with their log-probabilities."""
    vocabulary = policy.vocabulary
    if decoding.respond is not None and decoding.respond not in policy.outputs:
        raise ConfigError(f"respond={decoding.respond!r}: this policy writes {', '.join(sorted(policy.outputs))}")
    span = vocabulary.span(decoding.respond or "text")
    if span is not None and not span.writable:
        raise ConfigError(f"respond={decoding.respond!r}: this model's {decoding.respond} codes cannot be made media again")
    least = span.length + len(policy.encoder.end_ids) if span is not None else 1
    if decoding.max_new_tokens < least:
        raise ConfigError(f"max_new_tokens={decoding.max_new_tokens} cannot hold {decoding.respond}: it takes {least}; raise it")
    jobs = [(prompt, number) for prompt in prompts for number in range(samples_per_prompt)]
    return in_batches(policy, jobs, decoding.batch_size, lambda part: scored(policy, _sampled(policy, part, seed, decoding)))


def _sampled(policy: MixedTokenPolicy, jobs: Sequence[tuple[Any, int]], seed: int, decoding: MixedDecoding) -> list[Rollout]:
    encoder, steps = policy.encoder, decoding.max_new_tokens
    rows = [policy.collator.generation_prompt(prompt, steps) for prompt, _ in jobs]
    guided = decoding.guidance != 1.0
    stream = Stream(policy, [*rows, *map(policy.without_messages, rows)] if guided else rows)
    writings = [Writing(policy.vocabulary, encoder.end_ids, decoding.respond, steps) for _ in rows]
    sampler = KeyedSampler(torch.stack([uniforms_of(job, seed, steps) for job in jobs]), decoding)
    stops = torch.tensor(sorted(stop_ids(policy)))
    pad, taken = policy.collator.pad_id, torch.zeros(len(rows), 0, dtype=torch.long)
    over = torch.zeros(len(rows), dtype=torch.bool)
    for _ in range(steps):
        logits = stream.logits()
        if guided:
            conditional, unconditional = logits.chunk(2)
            inside = torch.tensor([writing.in_medium for writing in writings], device=logits.device)[:, None]
            moved = unconditional + decoding.guidance * (conditional - unconditional)
            logits = torch.where(inside, moved, conditional)
        reachable = torch.stack([_reachable(writing, policy.vocabulary.size) for writing in writings])
        picked = sampler(taken, logits.masked_fill(~reachable.to(logits.device), -torch.inf)).argmax(-1).cpu()
        picked[over] = pad
        for number in (~over).nonzero().flatten().tolist():
            writings[number].write(int(picked[number]))
        taken = torch.cat([taken, picked[:, None]], 1)
        over |= torch.isin(picked, stops) & torch.tensor([not writing.forced for writing in writings])
        if over.all():
            break
        stream.take(torch.cat([picked, picked]) if guided else picked)
    settings = asdict(decoding) | {"seed": seed}
    return [_rollout(policy, job[0], ids, stops, settings) for job, ids in zip(jobs, taken)]


def _reachable(writing: Writing, size: int) -> Tensor:
    mask = writing.mask()
    if mask is None:
        mask = torch.zeros(size, dtype=torch.bool)
        mask[writing.forced[0]] = True
    return mask


class Stream:
    """A model reading rows token by token: the prompts first, then what `take` gives it."""

    def __init__(self, policy: MixedTokenPolicy, rows: Sequence[Encoded]) -> None:
        from transformers import DynamicCache

        self.policy, device = policy, policy.model.device
        self.decoder, self.cache = policy.model.get_decoder(), DynamicCache()
        input_ids, mask = left_padded(rows, policy.collator.pad_id)
        self.mask = mask.to(device)
        embeddings = left_padded_embeddings(policy, rows, input_ids.to(device))
        self.states = self._read(embeddings, (self.mask.cumsum(1) - 1).clamp(min=0))

    def logits(self) -> Tensor:
        """Return the logits of what comes next, ``[R, V]``."""
        return self.policy.head(self.states).float()

    def take(self, ids: Tensor) -> None:
        """Read one more token per row, ``[R]``."""
        ids = ids.to(self.mask.device)[:, None]
        positions = self.mask.sum(1, keepdim=True)
        self.mask = torch.cat([self.mask, torch.ones_like(ids)], 1)
        self.states = self._read(self.policy.embed_ids(ids), positions)

    def _read(self, embeddings: Tensor, positions: Tensor) -> Tensor:
        output = self.decoder(
            inputs_embeds=embeddings, attention_mask=self.mask, position_ids=positions, past_key_values=self.cache,
            use_cache=True, return_dict=True,
        )  # fmt: skip
        return output.last_hidden_state[:, -1]  # type: ignore[no-any-return]


def _rollout(policy: MixedTokenPolicy, prompt: Any, generated: Tensor, stops: Tensor, settings: dict[str, Any]) -> Rollout:
    """Cut the row after its first stop token; what follows is padding."""
    ends = torch.isin(generated, stops).nonzero()
    ids = generated[: int(ends[0]) + 1] if len(ends) else generated
    output, modalities = decoded_parts(policy.encoder.decode(pieces(policy.vocabulary, ids.tolist())))
    parts = (TextPart(text=output),) if modalities == ("text",) else ()
    return Rollout(prompt, output, (Tokens(ids),), decoding=settings, parts=parts, modalities=modalities)
