"""A training step with a row per answer against one with all answers behind their prompt, on a grid of twelve shapes.

    python3 tools/dev.py bench shared-rows [--shape NAME ...] [--steps 3] [--json FILE]

Pictures of 0, 256, 576 and 1024 tokens; prompts (picture included) as long as an answer, 4 and 16 times as long, with 2, 4 and 8
answers; adapters alone (LoRA) and all of the decoder. A step is collating, forward with the vision tower frozen, backward of a
weighted sum of the answers' log-probabilities, and AdamW: what every objective with cached reference scores does. Both ways hold
the same weights; log-probabilities and first gradients must agree to 1e-4. ``ceiling`` counts multiplications (`flop_ceiling`)
of plain rows over those of ``rows: shared``; ``auto`` is a policy's default, which gives long answers rows of their own where
that costs less.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from flop_ceiling import Passes, Work, attended, flops
from random_models import FORM, Shape, asked, our_policy, prompt_of
from rich.console import Console
from rich.table import Table

from polyalign.records.samples import Sample
from polyalign.records.schema import TextPart
from polyalign.records.store import MemoryMedia

SIDES = {0: 0, 256: 224, 576: 336, 1024: 448}  # picture tokens to pixels of a side
TEXT = 64  # tokens of a question beside a picture
RATIOS = ((1, 2), (4, 4), (16, 8))  # prompt tokens per answer token, answers
MODES = {"lora": {}, "full": {"lora": None, "language": "full", "projector": "frozen"}}
TOLERANCE, LEARNING_RATE = 1e-4, 1e-5


def grid() -> dict[str, Shape]:
    shapes = {}
    for picture, side in SIDES.items():
        for ratio, count in RATIOS:
            text = TEXT if picture else 512
            answer = (text + picture) // ratio
            shapes[f"{picture}-{ratio}:1-{count}"] = Shape((text,), ((answer,) * count,), picture=side)
    shapes["tiny"] = Shape((FORM + 13,), ((8,) * 4,), hidden=128, layers=2, picture=56, tower_hidden=64, tower_layers=2)
    return shapes


class Contender:
    """A policy that lays rows out in one way, with its optimizer."""

    def __init__(self, shape: Shape, rows: str, mode: str) -> None:
        settings = dict(MODES[mode])
        if not shape.picture:
            settings = {name: value for name, value in settings.items() if name == "lora"}
        self.policy = our_policy(shape, rows, **settings).train()
        if mode == "full":
            self.policy.requires_grad_(False)
            self.policy.model.get_decoder().requires_grad_(True)
        self.weights = [parameter for parameter in self.policy.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.weights, lr=LEARNING_RATE, fused=True)
        media = MemoryMedia()
        item = asked(shape)[0]
        prompt = prompt_of(item, media)
        self.samples = [
            Sample(f"0#{number}", prompt, (TextPart(text=answer),), "0", media) for number, answer in enumerate(item.answers)
        ]
        self.seconds: list[float] = []
        self.gradient = torch.empty(0)
        self.log_probs = torch.empty(0)

    def step(self) -> None:
        began = time.perf_counter()
        batch = self.policy.collator(self.samples)
        scores = self.policy(batch)
        sides = torch.linspace(-1, 1, len(self.samples))
        loss = (scores.log_probs.sum((1, 2)) * sides).mean() / batch.mask.sum()
        loss.backward()
        if not self.log_probs.numel():
            self.log_probs = scores.log_probs.detach().clone()
            self.gradient = torch.cat([p.grad.flatten() for p in self.weights if p.grad is not None])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.seconds.append(time.perf_counter() - began)


def measure(shape: Shape, mode: str, steps: int) -> dict[str, Any]:
    contenders = {rows: Contender(shape, rows, mode) for rows in ("plain", "shared", "auto")}
    for number in range(1 + steps):
        for turn in range(len(contenders)):
            list(contenders.values())[(number + turn) % len(contenders)].step()
    medians = {name: statistics.median(contender.seconds[1:]) for name, contender in contenders.items()}
    prompt, answers = shape.prompts[0] + shape.picture_tokens, shape.answers[0]
    passes = Passes.training(checkpointing=False, reference=False)
    if mode == "full":  # weights get gradients of their own: one pass more
        passes = Passes(passes.layers + 1, passes.attention, passes.head)

    def work(shared: bool) -> float:
        tokens = prompt * (1 if shared else len(answers)) + sum(answers)
        return flops(shape, Work(tokens, attended(prompt, answers, shared), sum(answers), bool(shape.picture)), passes)

    plain = contenders["plain"]
    scale = plain.gradient.norm().clamp(min=1e-12)
    return {
        "mode": mode,
        "milliseconds": {name: 1000 * seconds for name, seconds in medians.items()},
        "speed-up": {name: medians["plain"] / medians[name] for name in ("shared", "auto")},
        "ceiling": work(False) / work(True),
        "difference": max(
            max((c.log_probs - plain.log_probs).abs().max().item(), ((c.gradient - plain.gradient).norm() / scale).item())
            for c in contenders.values()
        ),
    }


def main() -> int:
    shapes = grid()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3, help="measured steps per contender, after one of warm-up")
    parser.add_argument("--shape", nargs="+", choices=list(shapes), default=[name for name in shapes if name != "tiny"])
    parser.add_argument("--mode", nargs="+", choices=list(MODES), default=list(MODES))
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    options = parser.parse_args()
    console = Console(width=140)
    console.print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.steps} steps per contender")
    table = Table("picture-prompt:answer-answers", "trained", "plain ms", "shared", "auto", "ceiling", "auto / ceiling", "off by")
    results: dict[str, dict[str, Any]] = {}
    for name in options.shape:
        for mode in options.mode:
            found = results[f"{name} {mode}"] = measure(shapes[name], mode, options.steps)
            gains = found["speed-up"]
            table.add_row(
                name, mode, f"{found['milliseconds']['plain']:.0f}", f"{gains['shared']:.2f}x", f"{gains['auto']:.2f}x",
                f"{found['ceiling']:.2f}x", f"{gains['auto'] / found['ceiling']:.2f}", f"{found['difference']:.0e}",
            )  # fmt: skip
    console.print(table)
    if options.json:
        report = {"benchmark": "shared-rows", "torch": torch.__version__, "threads": torch.get_num_threads(), "results": results}
        options.json.write_text(json.dumps(report, indent=1))
    failed = [name for name, found in results.items() if not found["difference"] <= TOLERANCE]
    for name in failed:
        console.print(f"[red]FAILED[/] {name}: differs from plain rows by {results[name]['difference']:.1e}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
