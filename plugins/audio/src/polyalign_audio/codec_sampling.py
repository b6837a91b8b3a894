"""Drawing codec tokens step by step, so that a clip depends on its own key, never on which prompts share the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from polyalign.policies.base import Rollout, Rollouts, Tokens, evaluating
from polyalign.policies.generation import KeyedSampler
from polyalign.policies.pipelines.collator import caption_of
from polyalign.randomness import keyed_generator
from polyalign.records.samples import Sample
from polyalign.records.schema import Message
from polyalign_audio.delay_pattern import flattened, said, undelayed
from polyalign_audio.generation_config import CodecDecodingConfig

if TYPE_CHECKING:
    from polyalign_audio.codec_tokens import CodecTokenPolicy

Job = tuple[tuple[Message, ...], int]  # prompt, sample number


@torch.no_grad()
def generate(
    policy: CodecTokenPolicy, prompts: Sequence[tuple[Message, ...]], each: int, seed: int, decoding: CodecDecodingConfig
) -> Rollouts:
    """Return ``len(prompts) * each`` rollouts, prompt-major, with clips and log-probabilities."""
    jobs = [(prompt, number) for prompt in prompts for number in range(each)]
    samples = [Sample(f"prompt-{row}", prompt, (), f"prompt-{row}") for row, (prompt, _) in enumerate(jobs)]
    policy.encode_missing(samples)
    rollouts: list[Rollout] = []
    with evaluating(policy):
        for start in range(0, len(jobs), decoding.batch_size):
            part = slice(start, start + decoding.batch_size)
            rollouts += _drawn(policy, jobs[part], samples[part], seed, decoding)
    return tuple(rollouts)


def _drawn(
    policy: CodecTokenPolicy, jobs: Sequence[Job], samples: Sequence[Sample], seed: int, decoding: CodecDecodingConfig
) -> list[Rollout]:
    frames, books = policy.frozen.frames(decoding.seconds), policy.books
    steps = frames + books - 1
    uniforms = torch.cat(
        [
            torch.rand(books, steps, generator=keyed_generator(seed, "generate", caption_of(prompt), number), dtype=torch.float64)
            for prompt, number in jobs
        ]
    )
    tensors = {name: value.to(policy.device) for name, value in policy.collator.texts(samples).items()}
    codes = undelayed(_columns(policy, policy.texts(tensors), frames, uniforms, decoding))  # [B, K, F]
    with policy.encoders():
        clips = policy.frozen.decode(codes)
    settings = {**decoding.model_dump(), "seed": seed}
    rollouts = [
        Rollout(prompt, clip, (Tokens(flattened(one)),), decoding=settings)
        for (prompt, _), clip, one in zip(jobs, clips, codes.cpu(), strict=True)
    ]
    scores = policy(policy.collator.of_rollouts(rollouts).to(policy.device))
    log_probs, mask = scores.log_probs[:, 0].cpu(), scores.mask[:, 0].cpu()
    return [replace(rollout, old_log_probs=log_probs[row][mask[row]]) for row, rollout in enumerate(rollouts)]


def _columns(
    policy: CodecTokenPolicy, text: tuple[Tensor, Tensor], frames: int, uniforms: Tensor, decoding: CodecDecodingConfig
) -> Tensor:
    """Return what the decoder says at each step, ``[B, K, S]``. ``uniforms`` ``[B K, S]``."""
    from transformers import DynamicCache, EncoderDecoderCache

    from polyalign_audio.codec_tokens import guide

    count, books = len(text[0]), policy.books
    guided = decoding.guidance > 1
    reads = [text, policy.no_text(count)] if guided else [text]
    pasts = [EncoderDecoderCache(DynamicCache(), DynamicCache()) for _ in reads]
    sampler = KeyedSampler(uniforms, decoding)  # type: ignore[arg-type]
    column = torch.full((count, books), policy.collator.start, device=policy.device)
    silent = column.clone()
    columns = []
    for step in range(frames + books - 1):
        heard = [policy.hear(column[..., None], *read, past)[:, -1] for read, past in zip(reads, pasts)]
        logits = [torch.stack([head(state) for head in policy.model.lm_heads], 1) for state in heard]  # [B, K, V] each
        scores = (guide(*logits, decoding.guidance) if guided else logits[0]).float()
        picked = sampler(column, scores.flatten(0, 1)).argmax(-1).view(count, books)
        column = torch.where(said(step, books, frames).to(policy.device), picked, silent)
        columns.append(column)
    return torch.stack(columns, -1)
