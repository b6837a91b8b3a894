"""Runs toy trainings in forked children of one clean process: processes that talk over gloo, and runs that are killed.

Started as ``python worker.py PLAN.json``; the plan is a list of jobs, results are written beside it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from polyalign.objectives.base import Objective
from polyalign.objectives.bco import BCO
from polyalign.objectives.config import AOTUnpairedConfig, BCOPairConfig, DPOConfig, KTOConfig
from polyalign.objectives.kto import KTO
from polyalign.objectives.optimal_transport import AOT
from polyalign.objectives.pairwise import DPO
from polyalign.objectives.terms import WeightedSumConfig
from polyalign.objectives.weighted_sum import WeightedSum
from polyalign.policies.reference import FrozenCopy
from polyalign.training import checkpoint
from polyalign.training.config import Recipe
from polyalign.training.rollouts import Judges
from polyalign.training.trainer import Trainer
from toys.gaussian import GaussianPolicy, ListSource, pair_examples
from toys.rolling import Length, Near, RollingPolicy, online_objective


def recipe(training: dict[str, Any], online: dict[str, Any] | None = None) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "toy",
            "online": online,
            "policy": {"name": "toy"},
            "data": {"train": [{"path": "nowhere"}]},
            "objective": {"name": "dpo"},
            "training": training,
        }
    )


def labelled_examples(count: int = 12) -> list[Any]:
    """The pair examples with KTO labels instead of edges, plus one mismatched sample each."""
    from dataclasses import replace

    pairs = pair_examples(count)
    examples = []
    for number, pair in enumerate(pairs):
        other = pairs[(number + 1) % count].samples[0]
        stray = replace(pair.samples[0], id=f"{number}/mismatch", response=other.response, role="mismatch")
        examples.append(replace(pair, samples=(*pair.samples, stray), edges=(), labels=(1, -1, 0)))
    return examples


def objective_of(name: str) -> Objective:
    """Return one objective of each way to depend on the rest of a step; the mixture has three of them at once."""
    terms = ({"name": "bco_pair", "beta": 0.5}, {"name": "aot", "weight": 0.5}, {"name": "sft", "weight": 0.1})
    makers: dict[str, Callable[[], Objective]] = {
        "dpo": lambda: DPO(DPOConfig(beta=0.5)),
        "kto": lambda: KTO(KTOConfig(beta=0.5)),
        "bco": lambda: BCO(BCOPairConfig(beta=0.5)),
        "aot": lambda: AOT(AOTUnpairedConfig(beta=0.5)),
        "mixture": lambda: WeightedSum(WeightedSumConfig.model_validate({"terms": terms})),
    }
    return makers[name]()


def run(
    folder: Path,
    training: dict[str, Any],
    objective: str = "dpo",
    resume: bool = False,
    dropout: float = 0.0,
    online: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train the toy and return its losses, first gradient, final weights and the objective's final state."""
    policy = RollingPolicy() if online else GaussianPolicy(dropout=dropout)
    reference = FrozenCopy(policy)
    examples = labelled_examples() if objective == "kto" else pair_examples()
    loss = online_objective(objective) if online else objective_of(objective)
    plan = recipe(training, online)
    judges = Judges(plan.online, {"near": Near()}, {"length": Length()}) if plan.online else None
    trainer = Trainer(plan, policy, loss, reference, ListSource(examples), ListSource(examples[:4]), folder, judges)
    gradients: list[list[float]] = []
    trainer.optimizer.register_step_pre_hook(lambda *_: gradients.append(_gradient(policy)))
    trainer.train(resume)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] if trainer.main else []
    weights = torch.cat([_whole(p).flatten() for p in policy.parameters()]).tolist()
    return {"rows": rows, "gradient": gradients[0] if gradients else [], "weights": weights, "state": _state(loss)}


def _state(objective: Objective) -> dict[str, float]:
    return {name: value.item() for name, value in objective.state_dict().items()}


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach()


def _gradient(policy: GaussianPolicy) -> list[float]:
    return torch.cat(
        [(_whole(p.grad) if p.grad is not None else torch.zeros_like(_whole(p))).flatten() for p in policy.parameters()]
    ).tolist()


def kill_at(moment: str) -> None:
    """Arrange for this process to be killed: ``forward:N`` at the N-th forward pass, ``write:N`` inside the N-th
    checkpoint, after its first file is on disk."""
    what, number = moment.split(":")
    calls = {"count": 0}

    def count_down() -> None:
        calls["count"] += 1
        if calls["count"] == int(number):
            os.kill(os.getpid(), signal.SIGKILL)

    if what == "forward":
        forward = GaussianPolicy.forward

        def counted(self: GaussianPolicy, *arguments: Any) -> Any:
            count_down()
            return forward(self, *arguments)

        GaussianPolicy.forward = counted  # type: ignore[method-assign]
    else:
        save_file = checkpoint.save_file

        def cut(tensors: Any, path: Path, *arguments: Any, **keywords: Any) -> None:
            save_file(tensors, path, *arguments, **keywords)
            if "policy" in str(path):
                count_down()

        checkpoint.save_file = cut


def child(job: dict[str, Any], rank: int, port: int) -> int:
    """Run one process of one job; return its exit code."""
    torch.set_num_threads(1)
    try:
        if job.get("processes", 1) > 1:
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(job["processes"]),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "ACCELERATE_USE_CPU": "true",
            }
        if "kill" in job:
            kill_at(job["kill"])
        settings = {name: job[name] for name in ("objective", "resume", "dropout", "online") if name in job}
        result = run(Path(job["folder"]), job["training"], **settings)
        if rank == 0:
            Path(job["result"]).write_text(json.dumps(result))
        if dist.is_initialized():
            dist.destroy_process_group()
        return 0
    except BaseException:
        traceback.print_exc()
        return 1


def main(plan: Path) -> None:
    import torch._dynamo  # noqa: F401  every optimiser imports it, which takes seconds: once here, not once in every child

    for job in json.loads(plan.read_text()):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        children = []
        for rank in range(job.get("processes", 1)):
            pid = os.fork()
            if pid == 0:
                code = child(job, rank, port)
                sys.stderr.flush()
                os._exit(code)
            children.append(pid)
        for pid in children:
            _, status = os.waitpid(pid, 0)
            killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
            if status and not (killed and "kill" in job):
                raise SystemExit(f"job {job['folder']} ended with status {status}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
