"""What `zoo:tiny-any` comes with: tokenizers of pictures and speech and a judge of speech, learnt from real media."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from emoji_any import HELD_OUT_VOICES, RATE, THINGS, VOICES, centred, drawings, placed, spoken
from torch import Tensor

from polyalign_any_to_any.media.base import Codebook
from polyalign_any_to_any.media.drawings import DrawingTokenizer
from polyalign_any_to_any.media.pictures import as_pixels
from polyalign_any_to_any.media.speech import SpeechTokenizer, log_spectra
from polyalign_any_to_any.speech_judge import SpeechJudge
from polyalign_audio.modality import Clip

DECAY, COMMITMENT = 0.98, 0.25  # of the codebook's moving average; weight of the pull towards it
WAYS = ((0.85, -8), (0.95, 8), (1.05, -3), (1.15, 4))  # factors on a voice's own speed, and what is added to its pitch
PLAINLY = ((1.0, 0),)


def clips(
    work: Path, voices: dict[str, tuple[int, int]], ways: tuple[tuple[float, int], ...]
) -> dict[tuple[str, str], list[Clip]]:
    """Return every word in every voice, spoken once in each way and kept in the work folder."""
    found: dict[tuple[str, str], list[Clip]] = {}
    for voice, (speed, pitch) in voices.items():
        path = work / "clips" / f"{voice}-{len(ways)}.npz"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            said = {
                f"{name} {factor} {higher}": spoken(name, voice, round(speed * factor), pitch + higher).samples
                for name in THINGS
                for factor, higher in ways
            }
            np.savez(path, **said)
        with np.load(path) as kept:
            for name in THINGS:
                found[name, voice] = [Clip(kept[f"{name} {factor} {higher}"], RATE) for factor, higher in ways]
    return found


def learn(
    codec: torch.nn.Module, batches: Callable[[int], Tensor], latents: Callable[[Tensor], Tensor],
    decoded: Callable[[Tensor], Tensor], steps: int, rate: float,
) -> None:  # fmt: skip
    """Train an autoencoder around its codebook: a straight-through gradient, the codebook a moving average of what it stands for
    (VQ-VAE, arXiv 1711.00937, appendix A.1); vectors that nothing is near to are put where latents are."""
    codec.train().requires_grad_(True)
    book: Codebook = codec.codebook
    optimizer = torch.optim.AdamW(codec.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=1e-4)
    count, total = torch.ones(len(book.vectors)), book.vectors.clone()
    began, losses = time.time(), []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 100) * (1 - step / steps)
        target = batches(step)
        found = latents(target)
        flat = found.detach().reshape(-1, found.shape[-1])
        if step == 0:
            total = flat[torch.randperm(len(flat))[: len(total)]].clone()
            book.vectors.copy_(total)
        codes = book.nearest(flat)
        quantised = book.vectors[codes].reshape(found.shape)
        drawn = decoded(found + (quantised - found).detach())
        loss = (drawn - target).square().mean() + 0.3 * (drawn - target).abs().mean()
        (loss + COMMITMENT * (found - quantised).square().mean()).backward()
        torch.nn.utils.clip_grad_norm_(codec.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        chosen = torch.nn.functional.one_hot(codes, len(total)).float()
        count = DECAY * count + (1 - DECAY) * chosen.sum(0)
        total = DECAY * total + (1 - DECAY) * chosen.T @ flat
        idle = count < 0.05
        if idle.any() and step < 0.8 * steps:
            total[idle] = flat[torch.randint(len(flat), (int(idle.sum()),))]
            count[idle] = 1.0
        book.vectors.copy_(total / count.clamp(min=1e-3)[:, None])
        losses.append(float(loss.detach()))
        if (step + 1) % 200 == 0:
            used = len(codes.unique())
            print(f"step {step + 1} loss {np.mean(losses[-200:]):.4f} codes {used} {time.time() - began:.0f} s", flush=True)
    codec.eval().requires_grad_(False)


def picture_tokenizer(steps: int) -> DrawingTokenizer:
    """Learn the things of `emoji-any`, in the middle and moved."""
    torch.manual_seed(0)
    tokenizer = DrawingTokenizer()
    things = [one for both in drawings().values() for one in both]
    place = random.Random(0)
    answered = torch.stack([as_pixels(centred(one), tokenizer.side) for one in things])
    asked = torch.stack([as_pixels(placed(one, place), tokenizer.side) for one in things for _ in range(48)])

    def batches(step: int) -> Tensor:
        draw = torch.Generator().manual_seed(step)
        return torch.cat([made[torch.randint(len(made), (16,), generator=draw)] for made in (answered, asked)])

    learn(tokenizer.codec, batches, tokenizer.codec.latents, tokenizer.codec.drawn, steps, 2e-3)
    return tokenizer


def speech_tokenizer(work: Path, steps: int) -> SpeechTokenizer:
    torch.manual_seed(0)
    tokenizer = SpeechTokenizer()
    spectra = [log_spectra(clip) for said in clips(work, VOICES, WAYS).values() for clip in said]
    codec, frames = tokenizer.codec, 32

    def batches(step: int) -> Tensor:
        draw = random.Random(step)
        return torch.stack([stretch(draw.choice(spectra), frames, draw) for _ in range(32)])

    learn(codec, batches, codec.latents, codec.spoken, steps, 2e-3)
    return tokenizer


def stretch(spectra: Tensor, frames: int, draw: random.Random) -> Tensor:
    """Return so many frames from anywhere in the clip; short clips are followed by silence."""
    silence = torch.full((spectra.shape[0], max(0, frames - spectra.shape[1])), float(spectra.min()))
    whole = torch.cat([spectra, silence], 1)
    start = draw.randint(0, whole.shape[1] - frames)
    return whole[:, start : start + frames]


def speech_judge(work: Path, steps: int) -> tuple[SpeechJudge, float]:
    """Return a classifier trained on real clips, and its accuracy on real clips of voices that it never heard."""
    torch.manual_seed(1)
    judge = SpeechJudge(THINGS)
    network = judge.network.train().requires_grad_(True)
    heard = [(name, log_spectra(clip)) for (name, _), said in clips(work, VOICES, WAYS).items() for clip in said]
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.02)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 50) * (1 - step / steps)
        draw = random.Random(step)
        chosen = [draw.choice(heard) for _ in range(32)]
        batch = judge.padded([varied(spectra, draw) for _, spectra in chosen])
        loss = torch.nn.functional.cross_entropy(network(batch), torch.tensor([THINGS.index(name) for name, _ in chosen]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 200 == 0:
            print(f"judge step {step + 1} loss {float(loss.detach()):.3f}", flush=True)
    network.eval().requires_grad_(False)
    unheard = [(name, clip) for (name, _), said in clips(work, HELD_OUT_VOICES, PLAINLY).items() for clip in said]
    named = judge.names_of([clip for _, clip in unheard])
    return judge, float(np.mean([name == found for (name, _), found in zip(unheard, named, strict=True)]))


def varied(spectra: Tensor, draw: random.Random) -> Tensor:
    """Return the spectra later, louder or duller, with a stretch of time or frequency left out now and then."""
    made = (
        torch.roll(spectra, draw.randint(-4, 4), 1) + draw.uniform(-0.5, 0.5) + torch.randn(spectra.shape) * draw.uniform(0, 0.5)
    )
    tilt = torch.linspace(0, draw.uniform(-1, 1), spectra.shape[0])[:, None]
    made = torch.roll(made + tilt, draw.randint(-3, 3), 0)
    if draw.random() < 0.5:
        start = draw.randint(0, made.shape[1] - 1)
        made[:, start : start + 4] = made.mean()
    return made
