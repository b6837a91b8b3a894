"""What the comparisons with TRL share: contenders in turn, what each reached, whether they agree, and how it is shown.

A contender does one step on the same data with the same weights, on the CPU in float32. The steps of all contenders interleave
in one process, in rotating order, after warm-up; times are medians. Peak memory is measured in a process per contender. A
comparison fails (exit status 1) where `agreement` finds a difference.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import psutil
import torch
import transformers
import trl
import trl.trainer.utils
from agreement import Outcome, gradient_difference, outcome_differences, problems
from random_models import Shape
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

WARM_UP, LEARNING_RATE = 2, 1e-5
BASELINE = "TRL"

os.environ.setdefault("TQDM_DISABLE", "1")
warnings.filterwarnings("ignore")
for library in ("transformers", "trl", "accelerate", "polyalign"):
    logging.getLogger(library).setLevel(logging.ERROR)
datasets.disable_progress_bars()
# Where there is no Triton, TRL sends every position through the head instead of the scored ones. That is a matter of the CPU
# and not of the method, so here it scores what it would score on a GPU.
trl.trainer.utils._use_triton = lambda device: True


class Contender(ABC):
    """One way to do a step, with its own copy of the model. ``pictures_allowed``: per prompt and step, if it is ours."""

    model: nn.Module
    trains = True
    pictures_allowed: int | None = None

    @abstractmethod
    def collate(self, step: int) -> Any:
        """Return the batch of a step, made from its texts and pictures."""

    @abstractmethod
    def outcome(self, batch: Any) -> Outcome:
        """Return what has to agree, prompts and answers in the data's order; in training, leave gradients behind."""

    @abstractmethod
    def tokens(self, batch: Any) -> int:
        """Return how many positions go through the decoder in one pass, padding included."""

    @abstractmethod
    def flops(self, step: int, tokens: int) -> float: ...

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return what trains, by a name that is the same for everybody."""
        named = {_plain(name): value for name, value in self.model.named_parameters() if value.requires_grad}
        return dict(sorted(named.items()))


def _plain(name: str) -> str:
    return re.sub(r"\.(default|policy)\b", "", name.removeprefix("base_model.model."))


def same_adapters(contender: Contender) -> None:
    """Give every adapter weights that depend on its place only. A fresh adapter is zero, and so would most gradients be."""
    for number, parameter in enumerate(contender.parameters().values()):
        draw = torch.Generator().manual_seed(number)
        parameter.data.copy_(0.05 * torch.randn(parameter.shape, generator=draw))


@dataclass
class Track:
    """A contender and what was seen of it."""

    contender: Contender
    collating: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    pictures: int = 0
    tokens: int = 0

    def __post_init__(self) -> None:
        same_adapters(self.contender)
        self.optimizer: torch.optim.Optimizer | None = None
        if self.contender.trains:
            self.optimizer = torch.optim.AdamW(self.contender.parameters().values(), lr=LEARNING_RATE)
        model: Any = self.contender.model
        if hasattr(model.config, "vision_config"):
            tower = getattr(model, "base_model", model) if hasattr(model, "peft_config") else model
            layers = next(m for m in tower.get_encoder(modality="image").modules() if isinstance(m, nn.ModuleList))
            # Checkpointing runs a layer's inside again, not the layer, so the count is taken inside.
            layers[0].self_attn.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, attention: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.pictures += len(arguments[0] if arguments else named["hidden_states"])

    def step(self, number: int) -> None:
        began = time.perf_counter()
        batch = self.contender.collate(number)
        collated = time.perf_counter()
        outcome = self.contender.outcome(batch)
        if self.optimizer is not None:
            if not self.outcomes:
                parameters = self.contender.parameters()
                self.gradients = {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        self.seconds.append(time.perf_counter() - began)
        self.collating.append(collated - began)
        self.outcomes.append({name: value.detach().float().cpu() for name, value in outcome.items()})
        self.tokens += self.contender.tokens(batch)

    def forget_warm_up(self) -> None:
        self.seconds.clear()
        self.collating.clear()
        self.pictures = self.tokens = 0


@dataclass(frozen=True)
class Comparison:
    """``contenders`` returns, for a shape, a mode and a folder to write in, how to build each; the first name is BASELINE."""

    name: str
    script: str
    about: str
    shapes: Mapping[str, Shape]
    modes: tuple[str, ...]
    contenders: Callable[[Shape, str, Path], Mapping[str, Callable[[], Contender]]]
    default: tuple[str, ...]


def measure(comparison: Comparison, shape_name: str, mode: str, steps: int) -> dict[str, Any]:
    shape = comparison.shapes[shape_name]
    with tempfile.TemporaryDirectory() as folder:
        builders = comparison.contenders(shape, mode, Path(folder))
        tracks = {name: Track(build()) for name, build in builders.items()}
        order = list(tracks.values())
        for number in range(WARM_UP + steps):
            if number == WARM_UP:
                for track in order:
                    track.forget_warm_up()
            for turn in range(len(order)):
                order[(number + turn) % len(order)].step(number)
    baseline = tracks[BASELINE]
    base_seconds = statistics.median(baseline.seconds)
    numbers = range(WARM_UP, WARM_UP + steps)
    work = {
        name: sum(track.contender.flops(number, track.tokens // steps) for number in numbers) / steps
        for name, track in tracks.items()
    }
    return {
        "shape": shape_name,
        "mode": mode,
        "prompts per step": shape.per_step,
        "picture tokens": shape.picture_tokens,
        "prompt tokens": list(shape.prompts),
        "answer tokens": [list(lengths) for lengths in shape.answers],
        "parameters": sum(p.numel() for p in baseline.contender.model.parameters()),
        "trained parameters": sum(p.numel() for p in baseline.contender.parameters().values()),
        "steps": steps,
        "contenders": {
            name: {
                "median seconds per step": (median := statistics.median(track.seconds)),
                "of which collating": statistics.median(track.collating),
                "speed-up": base_seconds / median,
                "ceiling": work[BASELINE] / work[name],
                "decoder tokens per step": track.tokens / steps,
                "teraflop per step": work[name] / 1e12,
                "pictures through the tower per prompt": track.pictures / steps / shape.per_step,
                "pictures allowed": track.contender.pictures_allowed,
                "outcome differences": outcome_differences(track.outcomes, baseline.outcomes),
                "gradient difference": gradient_difference(track.gradients, baseline.gradients),
                "first and last loss": [float(track.outcomes[0]["loss"]), float(track.outcomes[-1]["loss"])],
            }
            for name, track in tracks.items()
        },
    }


# Memory: a process of its own for each contender, since one process keeps what another contender needed.


def alone(comparison: Comparison, shape_name: str, mode: str, name: str) -> dict[str, int]:
    """Return bytes of resident memory of this process: after imports, after building, and at its peak over all batches."""
    memory = psutil.Process().memory_info
    imported = memory().rss
    with tempfile.TemporaryDirectory() as folder:
        shape = comparison.shapes[shape_name]
        track = Track(comparison.contenders(shape, mode, Path(folder))[name]())
        built = memory().rss
        for number in range(max(2, shape.steps)):
            track.step(number)
    return {"imported": imported, "built": built, "peak": _peak()}


def _peak() -> int:
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would include the parent's, from before this program was loaded into its fork
        return 1024 * int(re.findall(r"VmHWM:\s*(\d+)", status.read_text())[0])
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def add_memory(comparison: Comparison, result: dict[str, Any]) -> None:
    for name, seen in result["contenders"].items():
        words = ["--shape", result["shape"], "--mode", result["mode"], "--alone", name]
        done = subprocess.run([sys.executable, comparison.script, *words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)} failed:\n{done.stderr[-2000:]}")
        sizes = json.loads(done.stdout.splitlines()[-1])
        seen["model bytes"] = sizes["built"] - sizes["imported"]
        seen["peak bytes"] = sizes["peak"] - sizes["imported"]


# What is shown


def show(result: dict[str, Any], console: Console) -> None:
    answers = ", ".join("+".join(map(str, lengths)) for lengths in result["answer tokens"])
    console.print(
        f"\n[bold]{result['shape']}[/], {result['mode']}: {result['prompts per step']} prompts per step of "
        f"{', '.join(map(str, result['prompt tokens']))} tokens and {result['picture tokens']} of a picture; answers {answers}; "
        f"{result['parameters'] / 1e6:.1f}M parameters, {result['trained parameters'] / 1e6:.2f}M trained"
    )
    columns = (
        "contender",
        "ms per step",
        "collating",
        "speed-up",
        "ceiling",
        "decoder tokens",
        "tower passes",
        "peak MB",
        "off by",
    )
    table = Table(*columns)
    for name, seen in result["contenders"].items():
        table.add_row(
            name,
            f"{1000 * seen['median seconds per step']:.1f}",
            f"{1000 * seen['of which collating']:.1f}",
            f"{seen['speed-up']:.2f}x",
            f"{seen['ceiling']:.2f}x",
            f"{seen['decoder tokens per step']:.0f}",
            f"{seen['pictures through the tower per prompt']:g}",
            f"{seen['peak bytes'] / 2**20:.0f}" if "peak bytes" in seen else "-",
            f"{max(*seen['outcome differences'].values(), seen['gradient difference']):.0e}",
        )
    console.print(table)


def main(comparison: Comparison, arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=comparison.about.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--steps", type=int, default=10, help="measured steps per contender, after warm-up")
    parser.add_argument("--shape", nargs="+", choices=list(comparison.shapes), default=list(comparison.default))
    parser.add_argument("--mode", nargs="+", choices=list(comparison.modes), default=list(comparison.modes))
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory, which takes a process per contender")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.alone:
        print(json.dumps(alone(comparison, options.shape[0], options.mode[0], options.alone)))
        return 0
    console = Console(width=140)
    machine = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "trl": trl.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }
    console.print(", ".join(f"{key} {value}" for key, value in machine.items()) + f"; {options.steps} steps per contender")
    results, found = [], []
    for shape_name in options.shape:
        for mode in options.mode:
            result = measure(comparison, shape_name, mode, options.steps)
            if not options.no_memory:
                add_memory(comparison, result)
            results.append(result)
            found += problems(result)
            show(result, console)
    if options.json:
        report = {"benchmark": comparison.name, **machine, "results": results, "problems": found}
        options.json.write_text(json.dumps(report, indent=1))
    for problem in found:
        console.print(f"[red]FAILED[/] {problem}")
    return 1 if found else 0
