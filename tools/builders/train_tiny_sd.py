"""Train `zoo:tiny-sd`: a StableDiffusion3Pipeline of under 10M parameters that draws emoji in two styles at 64x64.

    python3 tools/dev.py zoo tiny-sd                 # all stages, about 95 minutes on 2 cores
    python3 tools/dev.py zoo tiny-sd vae --minutes 20
    python3 tools/dev.py zoo tiny-sd denoiser --minutes 75
    python3 tools/dev.py zoo tiny-sd export
    python3 tools/dev.py zoo tiny-sd adopt           # puts the shipped weights into --work: the next stages improve them

Stages: a VAE (64x64 pixels to 8x8x8 latents); a rectified-flow transformer on its cached latents, trained together with
its two CLIP text encoders; export of the averaged weights in half precision. VAE and denoiser continue from what is in
`--work`, or start from random weights. The learning rate falls linearly to zero over a stage's minutes, so the minutes, not the
steps, are what a rerun repeats.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusion3Pipeline
from emoji_table import STYLES, Emoji, load_table
from tiny_sd_model import (
    LATENT_CHANNELS,
    RepeatedEmptyToken,
    TextToLatents,
    new_tokenizer,
    new_vae,
    pipeline,
    sample_grid,
    styled,
    tokenize,
)
from torch import nn
from transformers import CLIPTokenizer

ROOT = Path(__file__).resolve().parents[2]
MODEL_DIR = ROOT / "packages/polyalign-zoo/src/polyalign_zoo/models/tiny-sd"
GRID = ROOT / "docs/zoo/tiny-sd.png"

VAE_BATCH, VAE_RATE = 16, 2e-3
KL_WEIGHT = 2e-4
BATCH, RATE, WARM_UP_STEPS, EMA_DECAY = 64, 1.5e-3, 200, 0.998
PLAIN, STYLED = 0.65, 0.25  # shares of captions without and with a style; the rest is empty, for guidance


def reconstruction_loss(drawn: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """L1, squared error, L1 of 8x8 means (keeps colours) and of gradients (keeps outlines); `[N, 3, H, W]` in [-1, 1]."""
    error = drawn - real
    gradients = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + error.square().mean() + F.avg_pool2d(error, 8).abs().mean() + gradients


def train_vae(pictures: torch.Tensor, work: Path, minutes: float) -> None:
    vae = AutoencoderKL.from_pretrained(work / "vae") if (work / "vae").exists() else new_vae()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=VAE_RATE, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
    for step, done in clock(minutes):
        set_rate(optimizer, VAE_RATE * min(1.0, (step + 1) / 50) * (1 - done))
        real = to_signed(pictures[torch.randint(len(pictures), (VAE_BATCH,))])
        posterior = vae.encode(real).latent_dist
        divergence = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        loss = reconstruction_loss(vae.decode(posterior.sample()).sample, real) + KL_WEIGHT * divergence
        optimise(loss, optimizer, vae)
        if step % 100 == 0:
            print(f"vae step {step} done {done:.0%} loss {loss.item():.4f}", flush=True)
    normalise(vae, pictures)
    torch.save(encode(vae, pictures), work / "latents.pt")
    vae.save_pretrained(work / "vae")


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: torch.Tensor) -> torch.Tensor:
    return torch.cat([vae.encode(to_signed(part)).latent_dist.mean for part in pictures.split(64)])


@torch.no_grad()
def normalise(vae: AutoencoderKL, pictures: torch.Tensor) -> None:
    """Fold each latent channel's scale into the weights, so that one scaling factor and one shift suit all channels."""
    latents = encode(vae, pictures)
    scale = latents.std(dim=(0, 2, 3))  # [C]
    vae.encoder.conv_out.weight[:LATENT_CHANNELS] /= scale[:, None, None, None]
    vae.encoder.conv_out.bias[:LATENT_CHANNELS] /= scale
    vae.encoder.conv_out.bias[LATENT_CHANNELS:] -= 2 * scale.log()  # the second half is the log-variance
    vae.decoder.conv_in.weight *= scale[None, :, None, None]
    latents = latents / scale[None, :, None, None]
    vae.register_to_config(shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item())


@dataclass
class Examples:
    """What the denoiser learns from; rows are pictures."""

    latents: torch.Tensor  # [N, C, 8, 8], normalised
    plain: torch.Tensor  # [N, TEXT_LENGTH] token ids of the caption
    with_style: torch.Tensor  # [N, TEXT_LENGTH]
    empty: torch.Tensor  # [1, TEXT_LENGTH]

    def batch(self, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return latents and token ids, each row captioned plainly, with its style, or not at all."""
        draw = torch.rand(len(chosen), 1)
        styled_or_empty = torch.where(draw < PLAIN + STYLED, self.with_style[chosen], self.empty)
        return self.latents[chosen], torch.where(draw < PLAIN, self.plain[chosen], styled_or_empty)


def train_denoiser(table: list[Emoji], work: Path, minutes: float, workers: int) -> None:
    """Several single-threaded processes update one set of weights in shared memory without locks (Hogwild).

    On two busy cores this does twice the steps of one process with two threads, which wait for each other in every
    operation; updates are one or two steps stale, which this small a model does not mind.
    """
    if not (work / "tokenizer").exists():  # learning the merges again would number the tokens differently
        new_tokenizer(table).save_pretrained(work / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    vae = AutoencoderKL.from_pretrained(work / "vae")
    examples = Examples(
        latents=(torch.load(work / "latents.pt") - vae.config.shift_factor) * vae.config.scaling_factor,
        plain=tokenize(tokenizer, [emoji.caption for emoji in table for _ in STYLES]),
        with_style=tokenize(tokenizer, [styled(emoji.caption, style) for emoji in table for style in STYLES]),
        empty=tokenize(tokenizer, [""]),
    )
    model = TextToLatents(tokenizer)
    elapsed, step, checkpoint = 0.0, 0, work / "denoiser.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        elapsed, step = state["elapsed"], state["step"]
    shared = {name: tensor.share_memory_() for name, tensor in model.state_dict().items()}
    steps = torch.multiprocessing.get_context("spawn").Value("l", step)
    arguments = (shared, examples, work, minutes, elapsed, steps)
    torch.multiprocessing.spawn(denoiser_worker, arguments, nprocs=workers)


def denoiser_worker(
    worker: int,
    shared: dict[str, torch.Tensor],
    examples: Examples,
    work: Path,
    minutes: float,
    elapsed: float,
    steps: Synchronized,
) -> None:
    """Train until the minutes are over. Worker 0 also keeps the average, saves checkpoints and draws samples."""
    torch.set_num_threads(1)
    torch.manual_seed(1000 * steps.value + worker)
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    vae = AutoencoderKL.from_pretrained(work / "vae")
    model = TextToLatents(tokenizer)
    model.load_state_dict(shared, assign=True)  # every worker's parameters are the same memory
    attention = RepeatedEmptyToken()
    model.transformer.set_attn_processor(attention)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    average = copy.deepcopy(model).eval().requires_grad_(False)
    checkpoint = work / "denoiser.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint)
        average.load_state_dict(state["average"])
        if "optimizer" in state:
            optimizer.load_state_dict(state["optimizer"])

    def save(seconds: float) -> None:
        state = {"model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
        atomic_save(state | {"step": steps.value, "elapsed": seconds}, checkpoint)

    losses: list[float] = []
    order = torch.empty(0, dtype=torch.long)
    began = saved = time.time()
    first = steps.value
    for own_step, done in clock(minutes, elapsed=elapsed):
        with steps.get_lock():
            steps.value += 1
            step = steps.value
        set_rate(optimizer, RATE * min(1.0, step / WARM_UP_STEPS) * (1 - done))
        if len(order) < BATCH:
            order = torch.randperm(len(examples.latents))
        chosen, order = order[:BATCH], order[BATCH:]
        attention.repeats = 0 if own_step % 2 else round(256 ** min(1.0, 1.5 * torch.rand(()).item()))
        clean, token_ids = examples.batch(chosen)
        sigma = torch.randn(BATCH).sigmoid()
        noise = torch.randn_like(clean)
        noisy = torch.lerp(clean, noise, sigma[:, None, None, None])
        loss = F.mse_loss(model(noisy, sigma, token_ids), noise - clean)
        optimise(loss, optimizer, model)
        if worker != 0:
            continue
        with torch.no_grad():
            decay = min(EMA_DECAY, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        losses.append(loss.item())
        if own_step % 50 == 49:
            speed = (time.time() - began) / (step - first)
            print(f"step {step} done {done:.1%} loss {np.mean(losses[-50:]):.4f} {speed:.3f} s/step", flush=True)
        if own_step % 400 == 399:
            sample_grid(pipeline(average, tokenizer, vae), work / f"samples-{step:06d}.png")
        if time.time() - saved > 180:
            saved = time.time()
            save(saved - began + elapsed)
    if worker == 0:
        save(60 * minutes)


def adopt(source: Path, work: Path) -> None:
    """Put a shipped folder's weights where the training stages look for what to continue; optimisers start anew."""
    pipe = StableDiffusion3Pipeline.from_pretrained(source)
    pipe.tokenizer.save_pretrained(work / "tokenizer")
    pipe.vae.float().save_pretrained(work / "vae")
    model = TextToLatents(pipe.tokenizer)
    for name, module in model.named_children():
        module.load_state_dict(getattr(pipe, name).float().state_dict())
    atomic_save({"model": model.state_dict(), "average": model.state_dict(), "step": 0, "elapsed": 0.0}, work / "denoiser.pt")


def export(work: Path, target: Path) -> None:
    """Write the averaged weights as an ordinary diffusers folder in half precision."""
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    vae = AutoencoderKL.from_pretrained(work / "vae")
    model = TextToLatents(tokenizer)
    state = torch.load(work / "denoiser.pt")
    model.load_state_dict(state["average"])
    pipe = pipeline(model.eval(), tokenizer, vae)
    pipe.to(torch.float16).save_pretrained(target)
    for path in target.glob("*/config.json"):
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)  # where it was read from
        if path.parent.name.startswith("text_encoder"):
            config["dtype"] = "float32"  # diffusers computes in float32 unless told otherwise, transformers in this
        path.write_text(json.dumps(config, indent=2) + "\n")
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    print(f"exported step {state['step']}: {counts}, {sum(counts.values())} parameters", flush=True)


def clock(minutes: float, elapsed: float = 0.0) -> Iterator[tuple[int, float]]:
    """Yield (step, share of the minutes gone) until the minutes are over."""
    began, step = time.time() - elapsed, 0
    while (done := (time.time() - began) / (60 * minutes)) < 1:
        yield step, done
        step += 1


def optimise(loss: torch.Tensor, optimizer: torch.optim.Optimizer, module: nn.Module) -> None:
    loss.backward()
    nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def to_signed(pictures: torch.Tensor) -> torch.Tensor:
    """uint8 to float32 in [-1, 1]."""
    return pictures.float() / 127.5 - 1


def atomic_save(state: dict, path: Path) -> None:
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("all", "vae", "denoiser", "export", "adopt"), nargs="?", default="all")
    parser.add_argument("--minutes", type=float, help="of the stage; default 20 for vae, 75 for denoiser")
    parser.add_argument("--workers", type=int, default=2, help="processes that train the denoiser, one core each")
    parser.add_argument("--cache-dir", type=Path, default=ROOT / ".cache/npm")
    parser.add_argument("--work", type=Path, default=ROOT / ".cache/tiny-sd", help="checkpoints and sample grids")
    parser.add_argument("--target", type=Path, default=MODEL_DIR)
    parser.add_argument("--grid", type=Path, default=GRID, help="32 captions, two seeds each")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    if arguments.stage == "adopt":
        return adopt(arguments.target, arguments.work)
    table = load_table(arguments.cache_dir)
    pictures = torch.from_numpy(np.stack([emoji.pictures[style] for emoji in table for style in STYLES])).permute(0, 3, 1, 2)
    if arguments.stage in ("all", "vae"):
        train_vae(pictures, arguments.work, arguments.minutes or 20)
    if arguments.stage in ("all", "denoiser"):
        train_denoiser(table, arguments.work, arguments.minutes or 75, arguments.workers)
    if arguments.stage in ("all", "export"):
        export(arguments.work, arguments.target)
        arguments.grid.parent.mkdir(parents=True, exist_ok=True)
        sample_grid(StableDiffusion3Pipeline.from_pretrained(arguments.target), arguments.grid, scale=2)


if __name__ == "__main__":
    main()
