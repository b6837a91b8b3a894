"""Train `zoo:tiny-t2v`: a CogVideoXPipeline of under 1M parameters that draws clips of one coloured shape that moves.

    python3 tools/dev.py zoo tiny-t2v                       # all stages, about 14 CPU minutes
    python3 tools/dev.py zoo tiny-t2v denoiser --minutes 12
    python3 tools/dev.py zoo tiny-t2v export                # also prints how many clips show what their caption says

Stages: a VAE (8 frames of 32 x 32 pixels to 3 channels x 8 x 16 x 16), computed; a transformer that predicts v on its latents,
trained together with its text encoder; export of the averaged weights in half precision. Minutes are of CPU time, so that a busy
machine changes nothing; a stopped stage goes on from its last checkpoint in ``--work``. The things of `moving_shapes.HELD_OUT`
are never shown.

Captions tell the truth about colour and shape. About the move they do for the first part of the time only; then many name a move
drawn at random, as captions from the web are unreliable, so that the model moves things as asked about half of the time, by
habit and not for want of skill: what alignment is to raise.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLCogVideoX, CogVideoXPipeline
from moving_shapes import FPS, HELD_OUT, TRAINED, caption, clip
from PIL import Image
from tiny_t2v_model import SCALING, TEXT_LENGTH, TextToLatents, drawn, new_scheduler, new_tokenizer, new_vae, pipeline
from torch import Tensor, nn

from polyalign_video.clip import Clip
from polyalign_video.motion import MOVES, move_of

ROOT = Path(__file__).resolve().parents[2]
MODEL_DIR = ROOT / "packages/polyalign-zoo/src/polyalign_zoo/models/tiny-t2v"
SHEET = ROOT / "docs/zoo/tiny-t2v.png"
CLIPS_PER_CAPTION = 16
BATCH, RATE, WARM_UP_STEPS, EMA_DECAY = 16, 2e-3, 100, 0.995
TRUE_UNTIL, ANY_MOVE = 0.45, 0.6  # after this share of the time, this share of captions name a move drawn at random
WHOLE, UNMOVED = 0.8, 0.1  # shares of captions with their move and without it; the rest is empty, for guidance
SHOWN = ("red disc left", "blue square right", "green triangle up", "purple square grows", "yellow disc still",
         "orange triangle down", "orange disc right", "blue triangle shrinks")  # fmt: skip


def examples() -> tuple[Tensor, list[tuple[str, str, str]]]:
    """Return clips ``[N, 3, F, H, W]`` in [-1, 1] and what each shows."""
    generator = torch.Generator().manual_seed(0)
    shown = [(*thing, move) for thing in TRAINED for move in MOVES for _ in range(CLIPS_PER_CAPTION)]
    return torch.stack([clip(*one, generator) for one in shown]) * 2 - 1, shown


def train(name: str, work: Path, minutes: float, module: nn.Module, rate: float, loss_of: Callable[[float], Tensor]) -> nn.Module:
    """Train for CPU minutes, at a rate that falls linearly to zero; return the module of averaged weights. ``loss_of`` is told
    which share of the time is over."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=1e-3)
    average, checkpoint = copy.deepcopy(module).eval().requires_grad_(False), work / f"{name}.pt"
    step, elapsed = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint)
        module.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        step, elapsed = state["step"], state["elapsed"]
    torch.manual_seed(step)
    began, losses = time.process_time() - elapsed, []
    while (done := (time.process_time() - began) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / WARM_UP_STEPS) * (1 - done)
        loss = loss_of(done)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        with torch.no_grad():
            decay = min(EMA_DECAY, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 - decay)
        losses.append(loss.item())
        if step % 50 == 0 or done > 0.99:
            print(f"{name} step {step} done {done:.0%} loss {np.mean(losses[-50:]):.4f}", flush=True)
        if step % 200 == 0:
            save(checkpoint, module, average, optimizer, step, time.process_time() - began)
    save(checkpoint, module, average, optimizer, step, 60 * minutes)
    return average


def save(path: Path, module: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer, step: int, elapsed: float) -> None:
    state = {"model": module.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state | {"step": step, "elapsed": elapsed}, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def make_vae(clips: Tensor, work: Path) -> None:
    vae = new_vae()
    with torch.no_grad():
        latents = torch.cat([vae.encode(part).latent_dist.mean for part in clips.split(64)])
        error = (vae.decode(latents[::97]).sample - clips[::97]).abs().mean() / 2
    print(f"vae: mean absolute error {error:.4f} of white", flush=True)
    torch.save(SCALING * latents.transpose(1, 2), work / "latents.pt")  # [N, F, C, H, W]
    vae.save_pretrained(work / "vae")


def train_denoiser(shown: list[tuple[str, str, str]], work: Path, minutes: float) -> None:
    tokenizer, latents = new_tokenizer(), torch.load(work / "latents.pt")

    def tokens(texts: list[str]) -> Tensor:
        ids: Tensor = tokenizer(texts, padding="max_length", max_length=TEXT_LENGTH, return_tensors="pt").input_ids
        return ids

    whole = tokens([caption(*thing, move) for thing in TRAINED for move in MOVES]).unflatten(0, (len(TRAINED), len(MOVES)))
    unmoved, empty = tokens([caption(*thing, None) for thing in TRAINED]), tokens([""])
    thing_of = torch.tensor([TRAINED.index(one[:2]) for one in shown])
    move_shown = torch.tensor([list(MOVES).index(one[2]) for one in shown])
    model = TextToLatents(len(tokenizer))

    kept = new_scheduler().alphas_cumprod.float()
    signals, noises = kept.sqrt(), (1 - kept).sqrt()

    def loss(done: float) -> Tensor:
        chosen = torch.randint(len(latents), (BATCH,))
        thing, move = thing_of[chosen], move_shown[chosen]
        if done > TRUE_UNTIL:
            move = torch.where(torch.rand(BATCH) < ANY_MOVE, torch.randint(len(MOVES), (BATCH,)), move)
        draw = torch.rand(BATCH, 1)
        ids = torch.where(draw < WHOLE, whole[thing, move], torch.where(draw < WHOLE + UNMOVED, unmoved[thing], empty))
        timesteps = ((torch.arange(BATCH) + torch.rand(BATCH)) / BATCH * len(kept)).long()  # spread evenly: less noisy a loss
        clean = latents[chosen]
        signal, noise = (table[timesteps][:, None, None, None, None] for table in (signals, noises))
        drawn_noise = torch.randn_like(clean)
        predicted = model(signal * clean + noise * drawn_noise, timesteps, ids)
        return F.mse_loss(predicted, signal * drawn_noise - noise * clean)

    train("denoiser", work, minutes, model, RATE, loss)


def loaded(work: Path) -> CogVideoXPipeline:
    """Return the pipeline of the averaged weights of the last checkpoint."""
    tokenizer = new_tokenizer()
    model = TextToLatents(len(tokenizer))
    model.load_state_dict(torch.load(work / "denoiser.pt")["average"])
    return pipeline(model.eval(), tokenizer, AutoencoderKLCogVideoX.from_pretrained(work / "vae"))


def sheet(pipe: CogVideoXPipeline, path: Path) -> None:
    """Write a picture: a caption of `SHOWN` per row, its eight frames side by side."""
    frames = drawn(pipe, [caption(*one.split()) for one in SHOWN], seed=0)
    rows = [np.concatenate(list(one), 1) for one in (frames.numpy() * 255).round().astype(np.uint8)]
    picture = Image.fromarray(np.concatenate(rows))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.resize((picture.width * 3, picture.height * 3), Image.Resampling.NEAREST).save(path)


def moves_drawn(pipe: CogVideoXPipeline, things: list[tuple[str, str]]) -> dict[str, float]:
    """Return, per move, the share of clips whose pixels move as the caption says."""
    asked = [(*thing, move) for thing in things for move in MOVES]
    frames = (drawn(pipe, [caption(*one) for one in asked], seed=1).numpy() * 255).round().astype(np.uint8)
    right = [move_of(Clip(made, FPS)) == one[2] for made, one in zip(frames, asked, strict=True)]
    return {move: float(np.mean(right[number :: len(MOVES)])) for number, move in enumerate(MOVES)}


def export(work: Path, target: Path) -> None:
    """Write the averaged weights as an ordinary diffusers folder in half precision."""
    pipe = loaded(work)
    for name, things in (("trained", list(TRAINED)), ("never shown", sorted(HELD_OUT))):
        shares = moves_drawn(pipe, things)
        each = ", ".join(f"{move} {share:.2f}" for move, share in shares.items())
        print(f"moves drawn as asked, things {name}: {np.mean(list(shares.values())):.2f} ({each})", flush=True)
    pipe.to(torch.float16).save_pretrained(target)
    for path in target.glob("*/config.json"):
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)  # where it was read from
        if path.parent.name == "text_encoder":
            config["dtype"] = "float32"  # diffusers computes in float32 unless told otherwise, transformers in this
        path.write_text(json.dumps(config, indent=2) + "\n")
    parts = {
        name: sum(p.numel() for p in part.parameters()) for name, part in pipe.components.items() if isinstance(part, nn.Module)
    }
    print(f"exported: {parts}, {sum(parts.values())} parameters", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("all", "vae", "denoiser", "sheet", "export"), nargs="?", default="all")
    parser.add_argument(
        "--minutes", type=float, default=12, help="CPU minutes of the denoiser's training, of which starting again costs none"
    )
    parser.add_argument("--work", type=Path, default=ROOT / ".cache/tiny-t2v", help="checkpoints and contact sheets")
    parser.add_argument("--target", type=Path, default=MODEL_DIR)
    parser.add_argument("--sheet", type=Path, default=SHEET, help="eight captions, eight frames each")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    clips, shown = examples()
    if arguments.stage in ("all", "vae"):
        make_vae(clips, arguments.work)
    if arguments.stage in ("all", "denoiser"):
        train_denoiser(shown, arguments.work, arguments.minutes)
    if arguments.stage == "sheet":
        sheet(loaded(arguments.work), arguments.work / "sheet.png")
    if arguments.stage in ("all", "export"):
        export(arguments.work, arguments.target)
        sheet(CogVideoXPipeline.from_pretrained(arguments.target), arguments.sheet)


if __name__ == "__main__":
    main()
