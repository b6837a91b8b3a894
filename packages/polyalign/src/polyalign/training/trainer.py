"""The loop. One for every modality and objective: take a window, back-propagate it, step, log, evaluate, checkpoint."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor

from polyalign.errors import TrainingError
from polyalign.objectives.base import Objective
from polyalign.policies.adapters import trainable
from polyalign.policies.base import Policy
from polyalign.policies.reference import CachedScores, Reference
from polyalign.randomness import keyed_seed
from polyalign.training import checkpoint
from polyalign.training.batches import ExampleSource, Steps, fixed_batches
from polyalign.training.config import Recipe
from polyalign.training.online import RolloutSteps
from polyalign.training.optimizer import MovingAverage, build_optimizer, learning_rate
from polyalign.training.own_answers import OwnAnswers, RefreshedSteps
from polyalign.training.progress import Progress
from polyalign.training.rollouts import Judges
from polyalign.training.tracking import Metrics
from polyalign.training.window import NonFiniteLoss, WindowLoss


@dataclass(frozen=True)
class Trained:
    """``steps`` done in all, the last metrics row, and the best checkpoint's name if one was kept."""

    steps: int
    metrics: dict[str, Any]
    best: str | None


class Trainer:
    """Trains ``policy`` on ``data`` by ``objective``. The reference must be built before (it holds the starting weights).

    With ``recipe.online`` the data are prompts, whose answers the ``judges`` reward; ``demonstrations`` are imitated beside them.
    With ``recipe.data.self_samples`` they are prompts too, and the examples come from ``answers``.
    """

    def __init__(
        self,
        recipe: Recipe,
        policy: Policy,
        objective: Objective,
        reference: Reference | None,
        data: ExampleSource,
        held_out: ExampleSource | None,
        folder: Path,
        judges: Judges | None = None,
        demonstrations: ExampleSource | None = None,
        further_references: Mapping[str, Reference] | None = None,
        answers: OwnAnswers | None = None,
    ) -> None:
        self.recipe, self.config, self.folder = recipe, recipe.training, folder
        self.policy, self.objective, self.reference = policy, objective, reference
        self.further_references = dict(further_references or {})
        self.accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),  # unless told, accelerate does not join processes that have no GPU
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],  # heads that one step leaves out
        )
        self.rank, self.processes = self.accelerator.process_index, self.accelerator.num_processes
        self.main = self.accelerator.is_main_process
        self.device = self.accelerator.device
        self.sharded = self.config.sharding == "fully_shard" and self.processes > 1
        _check_needs(objective, policy, self.processes)
        if answers is None:
            _check_feedback(objective, data)
        _check_demonstrations(objective, demonstrations is not None)

        policy.to(self.device)
        objective.attach(policy, (data[index] for index in range(len(data))))
        objective.to(self.device)
        if self.config.gradient_checkpointing:
            policy.enable_gradient_checkpointing()
        self.wrapped = self._wrap(policy)
        parameters = trainable(policy)
        scales = policy.learning_rate_scales()
        scaled = [(parameter, scales.get(name, 1.0)) for name, parameter in parameters.items()]
        heads = objective.learning_rate_scales()
        scaled += [(parameter, heads.get(name, 1.0)) for name, parameter in objective.named_parameters()]
        self.optimizer = build_optimizer(scaled, self.config.optimizer)
        average = MovingAverage(parameters, self.config.ema) if self.config.ema else None
        lagging = MovingAverage(parameters, 0.0) if recipe.online and recipe.online.lag else None
        progress = {"step": 0, "best": None, "best_step": None}
        self.state = checkpoint.State(parameters, objective, self.optimizer, average, progress, lagging)

        self.rollouts = self._rollouts(data, judges, demonstrations)
        self.steps = self.rollouts or (self._refreshed(answers) if answers else self._over(data))
        size = self.config.micro_batch_size or self.config.batch_size
        if held_out is not None and len(held_out) < self.processes:
            raise TrainingError(
                f"{len(held_out)} held-out examples do not cover {self.processes} processes; add data or drop data.eval"
            )
        self.held_out_prompts = held_out if self.rollouts else None
        self.held_out = (
            fixed_batches(held_out, policy.collator, self.config, self.config.eval_batches * size, self.rank, self.processes)
            if held_out is not None and not self.rollouts
            else []
        )
        self.loss = WindowLoss(self.wrapped, reference, objective, self.device, self.config.precision, self.further_references)

    def train(self, resume: bool = False) -> Trained:
        """Run to ``training.steps``. With ``resume``, go on from the newest whole checkpoint, if there is one."""
        start = self._resume() if resume else self._fresh()
        metrics = self._metrics(start if resume and start else None)
        row: dict[str, Any] = metrics.rows[-1] if metrics and metrics.rows else {}
        if start == 0 and self._evaluates:
            self._log(metrics, 0, self._evaluate(), {})
        windows = self.steps.loader(start, self.config.steps, self.recipe.data.workers, self.recipe.data.prefetch)
        with Progress(self.recipe.name, start, self.config.steps, self.main) as progress:
            for window in windows:
                began = time.perf_counter()
                values = self._step(window.step, window.micro_batches) | window.metrics
                step = window.step + 1
                self.state.progress["step"] = step
                if self._due(self.config.eval_every, step) and self._evaluates:
                    values |= self._evaluate()
                if self._due(self.config.log_every, step) or any(name.startswith("eval/") for name in values):
                    row = self._log(metrics, step, values, {"seconds": time.perf_counter() - began})
                progress.advance(values)
                if self._due(self.recipe.training.checkpoint.every, step):
                    self._checkpoint(step, values)
        if metrics:
            metrics.close()
        best_step = self.state.progress["best_step"]
        return Trained(self.state.progress["step"], row, f"step-{best_step:06d}" if best_step is not None else None)

    # one step

    def _step(self, step: int, micro_batches: list[Any]) -> dict[str, float]:
        torch.manual_seed(keyed_seed(self.config.seed, "step", step, self.rank))  # dropout: keyed too, so resume is exact
        self.policy.train()
        self.policy.anneal(step / max(1, self.config.steps - 1))
        rate = learning_rate(self.config.optimizer, step, self.config.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        try:
            values = self.loss.train(micro_batches, self._backward)
        except NonFiniteLoss:
            self.optimizer.zero_grad(set_to_none=True)
            self._checkpoint(step, {})  # the weights before this step are good: keep them
            raise
        self._sync_objective_gradients()
        values["grad_norm"] = self._clip()
        values["learning_rate"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.state.average:
            self.state.average.update()
        return values

    def _backward(self, loss: Tensor, last: bool) -> None:
        """Accumulate; processes exchange gradients only with the window's last micro-batch."""
        if self.sharded:
            self.wrapped.set_requires_gradient_sync(last)
            loss.backward()
            return
        with contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped):
            self.accelerator.backward(loss)

    def _sync_objective_gradients(self) -> None:
        """An objective's own parameters are outside DDP: average their gradients by hand, as DDP does."""
        if self.processes == 1:
            return
        for parameter in self.objective.parameters():
            gradient = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
            dist.all_reduce(gradient)
            parameter.grad = gradient / self.processes

    def _clip(self) -> float:
        """Clip all gradients together; return their norm before clipping."""
        parameters = [*self.state.policy.values(), *self.objective.parameters()]
        limit = self.config.optimizer.max_grad_norm
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit if limit is not None else float("inf"))
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    @property
    def _evaluates(self) -> bool:
        return bool(self.held_out) or self.held_out_prompts is not None

    def _evaluate(self) -> dict[str, float]:
        self.policy.eval()
        if self.rollouts and self.held_out_prompts is not None:
            found = self.rollouts.evaluate(self.held_out_prompts)
        else:
            found = self.loss.evaluate(self.held_out)
        return {f"eval/{name}": value for name, value in found.items()}

    # around the steps

    def _over(self, data: ExampleSource) -> Steps:
        return Steps(data, self.policy.collator, self.config, self.rank, self.processes)

    def _refreshed(self, answers: OwnAnswers) -> RefreshedSteps:
        assert self.recipe.data.self_samples is not None
        return RefreshedSteps(lambda number: self._over(answers[number]), self.recipe.data.self_samples.every)

    def _rollouts(self, data: ExampleSource, judges: Judges | None, demonstrations: ExampleSource | None) -> RolloutSteps | None:
        online = self.recipe.online
        if online is None:
            return None
        if judges is None:
            raise TrainingError("an online run needs judges of what the policy generates")
        shown = None
        if demonstrations is not None:
            settings = self.config.model_copy(update={"batch_size": online.demonstrations_per_step})
            shown = Steps(demonstrations, self.policy.collator, settings, self.rank, self.processes)
        return RolloutSteps(
            data,
            self.policy,
            self.objective,
            self.reference,
            judges,
            online,
            self.config,
            shown,
            self.rank,
            self.processes,
            self.state.lagging,
        )

    def _wrap(self, policy: Policy) -> Any:
        if self.sharded:
            from torch.distributed.fsdp import fully_shard

            return fully_shard(policy)
        return self.accelerator.prepare_model(policy) if self.processes > 1 and trainable(policy) else policy

    def _fresh(self) -> int:
        if self.main and any(self.folder.glob("checkpoints/step-*")):
            raise TrainingError(f"{self.folder} already holds a run; add --resume to go on with it, or give another --out")
        return 0

    def _resume(self) -> int:
        path, messages = checkpoint.newest(self.folder / "checkpoints")
        for message in messages:
            print_once(self.main, message)
        if path is None:
            print_once(self.main, "no checkpoint to resume from: starting at step 0")
            return 0
        checkpoint.load(self.state, path)
        if self.rollouts is not None:
            self.rollouts.judges.restore(self.state.progress.get("rewards", {}))
        step = int(self.state.progress["step"])
        for later in self.folder.glob("checkpoints/step-*"):  # damaged ones: step numbers must not be taken when we get there
            if self.main and int(later.name.removeprefix("step-")) > step:
                shutil.rmtree(later)
        print_once(self.main, f"resuming from {path.name}")
        return step

    def _metrics(self, resume_step: int | None) -> Metrics | None:
        if not self.main:
            return None
        name = self.recipe.name.replace("/", "-")
        return Metrics(self.folder, self.config.trackers, name, self.recipe.model_dump(mode="json"), resume_step)

    def _log(self, metrics: Metrics | None, step: int, values: dict[str, float], times: dict[str, float]) -> dict[str, Any]:
        if metrics:
            metrics.log(step, values, **times)
        return {"step": step, **values}

    def _due(self, every: int | None, step: int) -> bool:
        return step == self.config.steps or (every is not None and step % every == 0)

    def _checkpoint(self, step: int, values: dict[str, float]) -> None:
        settings, progress = self.config.checkpoint, self.state.progress
        value = values.get(settings.best_metric)
        if settings.keep_best and value is not None:
            best = progress["best"]
            if best is None or (value > best if settings.best_is == "max" else value < best):
                progress["best"], progress["best_step"] = value, step
        folder = self.folder / "checkpoints"
        for reference in (self.reference, *self.further_references.values()):
            if isinstance(reference, CachedScores):
                reference.save()
        if self.rollouts is not None:
            progress["rewards"] = self.rollouts.judges.state()
        checkpoint.save(self.state, folder / f"step-{step:06d}", self.main)
        if self.main:
            best_step = progress["best_step"]
            checkpoint.retain(folder, settings.keep_last, f"step-{best_step:06d}" if best_step is not None else None)


def print_once(main: bool, message: str) -> None:
    if main:
        from rich.console import Console

        Console(stderr=True).print(message, markup=False)


def _check_needs(objective: Objective, policy: Policy, processes: int) -> None:
    """Say in one sentence what the objective wants that the policy cannot give."""
    missing = sorted(objective.wants - policy.provides)
    if missing:
        raise TrainingError(
            f"{type(objective).__name__} needs {', '.join(missing)} from the policy, but {type(policy).__name__} provides only "
            f"{', '.join(sorted(policy.provides))}; choose another objective (`polyalign cells` shows which work)"
        )
    if not objective.splittable and processes > 1:
        raise TrainingError(
            f"{type(objective).__name__} needs the whole batch at once and cannot run on {processes} processes; use one"
        )


def _check_feedback(objective: Objective, data: ExampleSource) -> None:
    """Refuse data without a single rating or segment where the objective learns from them: every one would be taken as absent."""
    for need in sorted({"ratings", "segments"} & objective.needs):
        if not any(getattr(data[index], need) for index in range(len(data))):
            raise TrainingError(
                f"{type(objective).__name__} learns from {need}, and none of the {len(data)} training examples has any; add them "
                "to the records' feedback, or choose an objective (or options) that needs none"
            )


def _check_demonstrations(objective: Objective, given: bool) -> None:
    needed = "demonstrations" in objective.needs
    if needed and not given:
        raise TrainingError("objective.sft_weight is set, but there is nothing to imitate; add online.demonstrations")
    if given and not needed:
        raise TrainingError("online.demonstrations are given, but the objective imitates none; set objective.sft_weight")
