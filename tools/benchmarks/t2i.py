"""What caching is worth in text-to-image training: steps per second with and without it, in one interleaved run.

    python3 tools/dev.py bench t2i [--steps 30] [--json FILE]

Three loops train equal copies of one model by DPO with LoRA on the same pairs with the same noise:

- ``plain``: pictures decoded, VAE (posterior mean) and text encoders run in every step, each distinct input once; live reference;
- ``cached``: latents and text embeddings from warm caches; live reference;
- ``bank``: the same, and reference scores from the warm cache of a bank of draws.

Each step runs in all three loops before the next begins, in rotating order, after warm-up; times are medians. The benchmark
fails (exit status 1) if losses differ by more than 1e-5 at any step, if a cached loop calls a frozen encoder, or if the
speed-ups over ``plain`` fall below 1.05 (cached) and 1.4 (bank). Weights are random: they do not change the time of a step.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from rich.console import Console
from rich.table import Table
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from polyalign.objectives.base import FeedbackTensors
from polyalign.objectives.config import DPOConfig
from polyalign.objectives.pairwise import DPO
from polyalign.policies.adapters import trainable
from polyalign.policies.reference import AdaptersOff, CachedScores
from polyalign.records.samples import Example
from polyalign.records.schema import Candidate, Comparison, MediaPart, Record
from polyalign.records.store import MemoryMedia
from polyalign.records.views import VIEWS
from polyalign.training.batches import MicroBatch, at_epoch
from polyalign.training.window import WindowLoss
from polyalign_text_to_image.config import TextToImageConfig
from polyalign_text_to_image.fixture import drawing
from polyalign_text_to_image.policy import TextToImagePolicy
from polyalign_text_to_image.tiny import byte_tokenizer

PAIRS, BATCH, DRAWS, BANK, WARM_UP = 8, 4, 1, 2, 2
LEAST = {"cached": 1.05, "bank": 1.4}


def text_encoder(kind: type, width: int, layers: int, length: int = 77) -> Any:
    config = CLIPTextConfig(
        vocab_size=1000,
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64),
        max_position_embeddings=length,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )
    return kind(config).eval()


def vae(channels: tuple[int, ...], latents: int, layers: int) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=channels,
        layers_per_block=layers,
        latent_channels=latents,
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
    ).eval()


def flow() -> StableDiffusion3Pipeline:
    """The sizes of zoo:tiny-sd: 64 x 64 pixels, 8 x 8 x 8 latents in 16 patches, 6 blocks of width 192, 12 text tokens."""
    tokenizer = byte_tokenizer(12)
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=8,
            out_channels=8,
            num_layers=6,
            attention_head_dim=64,
            num_attention_heads=3,
            joint_attention_dim=192,
            caption_projection_dim=192,
            pooled_projection_dim=192,
            pos_embed_max_size=4,
            qk_norm="rms_norm",
        ),
        vae=vae((16, 32, 64, 64), 8, 1),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=text_encoder(CLIPTextModelWithProjection, 128, 2, 12),
        text_encoder_2=text_encoder(CLIPTextModelWithProjection, 64, 2, 12),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )


def unet() -> StableDiffusionPipeline:
    """Stable Diffusion 1.5 with every width divided by ten (rounded to 32), at 64 x 64 pixels, 8 x 8 x 4 latents."""
    return StableDiffusionPipeline(
        unet=UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            block_out_channels=(32, 64, 128, 128),
            layers_per_block=2,
            cross_attention_dim=64,
            attention_head_dim=8,
            norm_num_groups=8,
        ),
        vae=vae((16, 32, 64, 64), 4, 2),
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
        text_encoder=text_encoder(CLIPTextModel, 64, 12),
        tokenizer=byte_tokenizer(77),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


MODELS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "flow": (flow, {"max_sequence_length": 0, "timesteps": "logit_normal"}),
    "unet": (unet, {}),
}


def examples(resolution: int) -> list[Example]:
    """PAIRS pairs of different drawings, each pair under its own caption."""
    media = MemoryMedia()

    def picture(number: int, shape: str) -> tuple[MediaPart, ...]:
        data = drawing(f"hsl({number * 360 // PAIRS}, 80%, 50%)", shape, resolution)
        return (MediaPart(media=media.add(data, "image", "image/png")),)

    records = [
        Record(
            id=str(number),
            prompt=f"colour {number}",
            candidates=(Candidate(parts=picture(number, "disc")), Candidate(parts=picture(number, "square"))),
            feedback=(Comparison(ranking=((0,), (1,))),),
        )
        for number in range(PAIRS)
    ]
    return [example for record in records for example in VIEWS["pairs"](record, media)]


@dataclass
class Loop:
    """One way to train: its own copy of the model, the same as everybody's."""

    name: str
    policy: TextToImagePolicy
    reference: Any
    caches: bool
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(trainable(self.policy).values(), lr=1e-4)
        self.loss = WindowLoss(self.policy, self.reference, DPO(DPOConfig(beta=2000)), "cpu")
        frozen = {"VAE": self.policy.frozen.vae.encoder, **self.policy.frozen.text_modules(), "denoiser": self.policy.network}
        for name, module in frozen.items():
            module.register_forward_hook(lambda *_, name=name: self.calls.update([name]))

    def step(self, batch: list[Example]) -> None:
        began = time.perf_counter()
        samples = [sample for example in batch for sample in example.samples]
        collator = self.policy.collator
        if not self.caches:
            collator.features.clear_memory()
            self.policy.encode_missing(samples)
        micro = MicroBatch(collator(samples), FeedbackTensors.of(batch), tuple(example.record_id for example in batch))
        values = self.loss.train([micro], lambda loss, last: loss.backward())
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.seconds.append(time.perf_counter() - began)
        self.losses.append(values["loss"])


def build(name: str) -> TextToImagePolicy:
    make, settings = MODELS[name]
    torch.manual_seed(0)
    pipeline = make()
    return TextToImagePolicy(pipeline, TextToImageConfig(base=name, draws=DRAWS, bank=BANK, lora={"rank": 16}, **settings))


def batch_of(data: list[Example], step: int) -> list[Example]:
    epoch, place = divmod(step, len(data) // BATCH)
    return [at_epoch(example, epoch) for example in data[place * BATCH : (place + 1) * BATCH]]


def loops(name: str, data: list[Example], folder: Path) -> list[Loop]:
    """Return the three loops with warm caches: every latent, embedding and reference score that will be needed.

    Caches are filled in the batches of the loop: rounding depends on the batch, and Adam's first steps magnify it.
    """
    plain, cached, bank = (build(name) for _ in range(3))
    scores = CachedScores(AdaptersOff(bank), folder / "reference", bank.fingerprint())
    for policy in (cached, bank):
        policy.prepare([], folder)
    for number in range(BANK * len(data) // BATCH):
        samples = [sample for example in batch_of(data, number) for sample in example.samples]
        for policy in (cached, bank):
            policy.encode_missing(samples)
        scores(bank.collator(samples))
    scores.inner = None  # from here on a missing score is an error, not a silent forward pass
    return [
        Loop("plain", plain, AdaptersOff(plain), False),
        Loop("cached", cached, AdaptersOff(cached), True),
        Loop("bank", bank, scores, True),
    ]


def measure(name: str, steps: int) -> dict[str, Any]:
    resolution = build(name).resolution
    data = examples(resolution)
    with tempfile.TemporaryDirectory() as folder:
        runs = loops(name, data, Path(folder))
        for number in range(WARM_UP + steps):
            batch = batch_of(data, number)
            if number == WARM_UP:
                for run in runs:
                    run.seconds.clear()
                    run.calls.clear()
            for turn in range(len(runs)):
                runs[(number + turn) % len(runs)].step(batch)
        calls = {run.name: dict(sorted(run.calls.items())) for run in runs}
    plain = runs[0]
    medians = {run.name: statistics.median(run.seconds) for run in runs}
    group = plain.policy.collate(data[0].samples).tensors["groups"][0]
    return {
        "model": name,
        "shapes": {
            "pixels": [3, resolution, resolution],
            "latents": list(group["clean"].shape[2:]),
            **{key: list(value.shape[1:]) for key, value in group["conditions"].items()},
            "pairs per step": BATCH,
            "samples per step": 2 * BATCH,
            "draws": DRAWS,
            "bank": BANK,
            "denoiser parameters": sum(p.numel() for p in plain.policy.network.parameters()),
            "trained parameters": sum(p.numel() for p in trainable(plain.policy).values()),
            "VAE parameters": sum(p.numel() for p in plain.policy.frozen.vae.parameters()),
        },
        "steps": steps,
        "loops": {
            run.name: {
                "median seconds per step": medians[run.name],
                "steps per second": 1 / medians[run.name],
                "ratio": medians["plain"] / medians[run.name],
                "calls per step": {key: count / steps for key, count in calls[run.name].items()},
                "largest loss difference": max(abs(a - b) for a, b in zip(run.losses, plain.losses, strict=True)),
                "first and last loss": [run.losses[0], run.losses[-1]],
            }
            for run in runs
        },
    }


def problems(result: dict[str, Any]) -> list[str]:
    found = []
    for name, least in LEAST.items():
        loop = result["loops"][name]
        where = f"{result['model']}, {name}"
        if loop["largest loss difference"] > 1e-5:
            found.append(f"{where}: losses differ by {loop['largest loss difference']:.1e}, more than 1e-5")
        if loop["ratio"] < least:
            found.append(f"{where}: {loop['ratio']:.2f}x, less than {least}x")
        encoders = set(loop["calls per step"]) - {"denoiser"}
        if encoders:
            found.append(f"{where}: frozen encoders ran: {', '.join(sorted(encoders))}")
    return found


def show(result: dict[str, Any], console: Console) -> None:
    console.print(f"\n[bold]{result['model']}[/]  " + ", ".join(f"{key} {value}" for key, value in result["shapes"].items()))
    table = Table("loop", "ms per step (median)", "steps/s", "ratio", "calls per step", "loss difference")
    for name, loop in result["loops"].items():
        calls = ", ".join(f"{key} {count:g}" for key, count in loop["calls per step"].items())
        milliseconds, speed = f"{1000 * loop['median seconds per step']:.1f}", f"{loop['steps per second']:.2f}"
        table.add_row(name, milliseconds, speed, f"{loop['ratio']:.2f}x", calls, f"{loop['largest loss difference']:.1e}")
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=30, help="measured steps per loop, after warm-up")
    parser.add_argument("--models", nargs="+", choices=sorted(MODELS), default=list(MODELS))
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    options = parser.parse_args()
    console = Console(width=140)
    console.print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}; {options.steps} steps per loop"
    )
    results = [measure(name, options.steps) for name in options.models]
    found = [problem for result in results for problem in problems(result)]
    for result in results:
        show(result, console)
    text = json.dumps(
        {"torch": torch.__version__, "threads": torch.get_num_threads(), "results": results, "problems": found}, indent=1
    )
    if options.json:
        options.json.write_text(text)
    print(text)
    for problem in found:
        console.print(f"[red]FAILED[/] {problem}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
