"""A resolved recipe to a run directory: data, caches, reference, training, model, report."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from polyalign.cache import cache_folder
from polyalign.errors import ConfigError, PolyalignError, TrainingError
from polyalign.evaluation.reward_models import preferences, trust
from polyalign.objectives.reward_modeling.saved import reward_model_in, save_head
from polyalign.policies.reference import Reference, build_reference
from polyalign.records.atomic import write_text
from polyalign.records.dataset import ExampleDataset
from polyalign.records.samples import Sample
from polyalign.records.schema import Message
from polyalign.slots import numbered
from polyalign.training import checkpoint, teaching
from polyalign.training.own_answers import OwnAnswers
from polyalign.training.report import card, page
from polyalign.training.report.judging import Judgement, judge
from polyalign.training.report.samples import Response, generate
from polyalign.training.rollouts import Judges
from polyalign.training.trainer import Trained, Trainer

if TYPE_CHECKING:
    from polyalign.config import Resolved
    from polyalign.evaluation.base import Evaluator
    from polyalign.objectives.base import Objective
    from polyalign.plugins.specs import RewardSpec
    from polyalign.policies.base import Policy
    from polyalign.rewards.base import Reward
    from polyalign.training.config import Config


@dataclass(frozen=True)
class Run:
    """A finished run: its directory, the last metrics, the prompts of the report and what the judges said."""

    folder: Path
    trained: Trained
    prompts: tuple[tuple[Message, ...], ...]
    judgements: tuple[Judgement, ...]


def datasets(resolved: Resolved) -> tuple[ExampleDataset, ExampleDataset | None]:
    """Return the training examples and, if the recipe names some, the held-out ones. Of records whose prompts the policy has yet
    to answer (``data.self_samples``), the training examples are the prompts."""
    data = resolved.recipe.data
    settings: dict[str, Any] = {"aspect": data.aspect, "tags": data.tags, "max_skipped": data.max_skipped}
    train_set = ExampleDataset(data.train, "prompts" if data.self_samples else resolved.view, **settings)
    return train_set, ExampleDataset(data.eval, resolved.view, **settings) if data.eval else None


def build(resolved: Resolved) -> tuple[Policy, Objective]:
    """Return the policy and the objective of a recipe, at their starting weights, on this process's GPU if it has one."""
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    policy = resolved.policy_spec.load()(resolved.policy_config, device=device, seed=resolved.recipe.training.seed)
    objective = resolved.objective_spec.load()(resolved.objective_config)
    return policy, objective


def report_prompts(
    resolved: Resolved, train_set: ExampleDataset, held_out: ExampleDataset | None
) -> Sequence[tuple[Message, ...]]:
    """Return the fixed prompts of the before/after comparison: those the recipe names, else held-out ones where there are any."""
    settings = resolved.recipe.report
    if not settings.prompts:
        return []
    source = ExampleDataset((settings.prompts_from,), "sft") if settings.prompts_from else held_out or train_set
    return source.prompts(settings.prompts)


def train(resolved: Resolved, out: Path, resume: bool = False, max_steps: int | None = None) -> Run:
    """Run a recipe from start to report. ``resume`` goes on from the newest whole checkpoint in ``out``."""
    if max_steps is not None:
        training = resolved.recipe.training.model_copy(update={"steps": max_steps})
        resolved = replace(resolved, recipe=resolved.recipe.model_copy(update={"training": training}))
    recipe = resolved.recipe
    teaching.teacher_of(resolved.objective_config)  # a teacher that cannot be is told before any weights are loaded
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "config.yaml", resolved.to_yaml())
    train_set, held_out = datasets(resolved)
    policy, objective = build(resolved)
    cache = cache_folder()
    shown = recipe.online.demonstrations if recipe.online else ()
    demonstrations = ExampleDataset(shown, "sft", max_skipped=recipe.data.max_skipped) if shown else None
    policy.prepare(all_samples(train_set, held_out, demonstrations), cache)
    head = reward_model_in(objective)
    prompts = report_prompts(resolved, train_set, held_out) if head is not objective else []  # it judges and answers nothing
    rank = int(os.environ.get("RANK", "0"))
    main = rank == 0
    rewards, evaluators = judges(resolved) if prompts and main else ({}, [])  # now: a judge that is missing costs nothing yet
    before = generate(policy, prompts, recipe.report, out / "samples" / "before") if prompts and main else []
    reference = None
    if "reference" in objective.needs:
        reference = build_reference(policy, recipe.reference, cache / "reference", rank, recipe.training.precision)
    further = further_references(resolved, policy, objective, cache, rank)
    judged = rollout_judges(resolved)
    taught = teaching.prepare(resolved, policy, train_set, held_out)
    answers = OwnAnswers(recipe, policy, out / "self-samples") if recipe.data.self_samples else None
    trainer = Trainer(
        recipe, policy, objective, reference, taught.data, taught.held_out, out, judged, demonstrations, further, answers
    )
    trained = trainer.train(resume)
    if trainer.sharded:  # one process cannot save or sample from its shard: take the whole weights from the checkpoint
        policy = build(resolved)[0]
        checkpoint.load_policy(policy, out / "checkpoints" / f"step-{trained.steps:06d}")
    elif trainer.state.average:
        trainer.state.average.swap()
    if main:
        policy.save(out / "model")
    trusted: list[str] = []
    if head is not None and main:
        save_head(head, out / "model")
        policy.eval()
        data = held_out or train_set
        found = preferences(head, policy, [data[index] for index in range(len(data))])
        if found:
            verdict = trust(found)
            write_text(out / "reward_model.json", json.dumps(verdict.as_json(), indent=1))
            trusted = [f"On {'held-out' if held_out else 'training'} data:", *verdict.lines()]
    judgements: list[Judgement] = []
    after: list[Response] = []
    if prompts and main:
        after = generate(policy, prompts, recipe.report, out / "samples" / f"after-{trained.steps:06d}")
        judgements = judge(before, after, recipe.report.samples_per_prompt, rewards, evaluators)
    if main:
        write_report(out, resolved, trained, judgements, before, after, trusted)
    return Run(out, trained, tuple(prompts), tuple(judgements))


def further_references(resolved: Resolved, policy: Policy, objective: Objective, cache: Path, rank: int) -> dict[str, Reference]:
    """Return the recipe's further references by name. Raises `ConfigError` for one that the objective does not read."""
    built = {}
    for name, settings in resolved.recipe.references.items():
        if name not in objective.further_references:
            reads = ", ".join(sorted(objective.further_references)) or "none"
            raise ConfigError(
                f"references.{name}: {resolved.objective_spec.name!r} reads no reference of this name (further ones: {reads})"
            )
        reference = build_reference(policy, settings, cache / "reference", rank, resolved.recipe.training.precision)
        if reference is None:
            raise ConfigError(f"references.{name}.kind is 'none'; leave references.{name} out instead")
        built[name] = reference
    return built


def teach(resolved: Resolved) -> str:
    """Let the recipe's teacher read all of its data into the store; return a line about it. What is there is not read again."""
    if teaching.teacher_of(resolved.objective_config) is None:
        name = resolved.objective_spec.name
        raise TrainingError(f"the objective {name!r} learns from no teacher; gkd, dckd and adpa do")
    train_set, held_out = datasets(resolved)
    policy, _ = build(resolved)
    policy.prepare(all_samples(train_set, held_out), cache_folder())
    taught = teaching.prepare(resolved, policy, train_set, held_out, verify=True)
    assert taught.store is not None
    sampled = f"the student answered {taught.drawn} prompts anew; " if taught.drawn else ""
    return (
        f"{sampled}the teacher read {taught.rows} responses, {len(taught.store)} are in {taught.store.folder} "
        f"({taught.store.header.bytes_per_position} bytes per token)"
    )


def judges(resolved: Resolved) -> tuple[dict[str, Reward], list[Evaluator]]:
    """Return the rewards of the recipe's report by name and its evaluators."""
    return _rewards(resolved.rewards), [spec.load()(config) for spec, config in resolved.evaluators]


def rollout_judges(resolved: Resolved) -> Judges | None:
    """Return what judges the policy's own responses in an online run; None for other runs."""
    if resolved.recipe.online is None:
        return None
    return Judges(resolved.recipe.online, _rewards(resolved.online_rewards), _rewards(resolved.held_out_rewards))


def _rewards(slots: Sequence[tuple[RewardSpec, Config]]) -> dict[str, Reward]:
    """Return rewards by name; a name used again is numbered."""
    labels = numbered([spec.name for spec, _ in slots])
    return {label: spec.load()(config) for label, (spec, config) in zip(labels, slots, strict=True)}


def write_report(
    out: Path,
    resolved: Resolved,
    trained: Trained,
    judgements: Sequence[Judgement],
    before: Sequence[Response],
    after: Sequence[Response],
    trusted: Sequence[str] = (),
) -> None:
    """Write ``report.html``, the model card and the judges' numbers as JSON."""
    write_text(out / "report.html", page.render(out, resolved, trained, judgements, before, after, trusted))
    write_text(out / "README.md", card.render(resolved, trained, judgements, versions()))
    write_text(out / "judgements.json", json.dumps([page.as_json(judgement) for judgement in judgements], indent=1))


def dry_run(resolved: Resolved) -> str:
    """Return the resolved recipe, what will be cached and a memory estimate, without loading any weights."""
    train_set, held_out = datasets(resolved)
    recipe = resolved.recipe
    first = train_set[0]
    lines = [
        resolved.to_yaml().rstrip(),
        "---",
        f"view {resolved.view}: {len(train_set)} training examples, {len(held_out) if held_out else 0} held out; "
        f"the first has {len(first.samples)} samples and {len(first.edges)} preferences",
        f"cache folder: {cache_folder()}" + (" (reference scores too)" if recipe.reference.cache else ""),
        f"each step: {recipe.training.batch_size} examples, {recipe.training.batch_size * len(first.samples)} samples",
    ]
    teacher = teaching.teacher_of(resolved.objective_config)
    if teacher is not None:
        lines.append(f"teacher: {teacher.policy.name}, read once into {teaching.store_folder(teacher)}")
    return "\n".join([*lines, _memory(resolved)])


def _memory(resolved: Resolved) -> str:
    """Estimate from the size of the weights on disk, when they are there."""
    from polyalign.assets import resolve_model

    base = getattr(resolved.policy_config, "base", None)
    try:
        folder = Path(resolve_model(base)) if base else None
    except PolyalignError as error:  # a missing asset is worth a line here, not a failed dry run
        return f"memory: unknown ({error})"
    if folder is None or not folder.is_dir():
        return "memory: unknown until the base model is downloaded"
    weights = sum(path.stat().st_size for path in folder.rglob("*.safetensors")) / 2**20
    lora = getattr(resolved.policy_config, "lora", None) is not None
    factor = 2 if lora else 10  # float32 copy of half-precision files; plus gradients, two Adam moments and a frozen twin
    what = "weights" if lora else "weights, gradients, optimiser and reference"
    return f"memory: about {weights * factor:.0f} MB for {what} (files: {weights:.0f} MB), plus activations"


def all_samples(*sets: ExampleDataset | None) -> list[Sample]:
    return [sample for data in sets if data is not None for index in range(len(data)) for sample in data[index].samples]


def versions() -> dict[str, str]:
    """Return the versions that matter for repeating a run."""
    found = {"python": platform.python_version()}
    for name in ("polyalign", "torch", "transformers", "diffusers", "peft", "accelerate"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
