"""``polyalign sample``, ``score`` and ``eval``: what a trained (or starting) model makes, prefers and is worth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from polyalign.cache import cache_folder
from polyalign.errors import TrainingError
from polyalign.evaluation import self_samples
from polyalign.evaluation.intervals import bootstrap
from polyalign.evaluation.reward_models import preferences, trust
from polyalign.objectives.reward_modeling.saved import load_head, reward_model_in
from polyalign.plugins.registry import registry
from polyalign.policies.base import Policy
from polyalign.policies.reference import build_reference
from polyalign.records.atomic import write_text
from polyalign.records.samples import Prompt
from polyalign.records.schema import MediaPart, Message, TextPart
from polyalign.records.store import MemoryMedia
from polyalign.training import checkpoint
from polyalign.training.batches import at_epoch, collate_examples
from polyalign.training.report.judging import judge
from polyalign.training.report.samples import INDEX, Response, generate
from polyalign.training.run import all_samples, build, datasets, judges, report_prompts

if TYPE_CHECKING:
    from polyalign.config import Resolved

EXTENSIONS = {"image/png": ".png", "image/webp": ".webp", "audio/wav": ".wav", "audio/flac": ".flac", "video/mp4": ".mp4"}


def sample(
    resolved: Resolved,
    folder: Path | None,
    *,
    prompts: Sequence[Prompt] = (),
    samples_per_prompt: int = 1,
    seed: int = 0,
    out: Path | None = None,
) -> str:
    """Generate from the run in ``folder`` (or from the recipe's starting model) into ``out``; return a summary."""
    policy, _ = build(resolved)
    load_weights(policy, folder)
    asked = prompts or report_prompts(resolved, *datasets(resolved))
    if not asked:
        raise TrainingError("nothing to generate: give --prompt, or set report.prompts in the recipe")
    out = out or (folder or Path(".")) / "samples" / "sampled"
    if (out / INDEX).exists():
        raise TrainingError(f"{str(out)!r} already holds samples; name another folder with --out")
    settings = replace_report(resolved, samples_per_prompt, seed)
    responses = generate(policy, asked, settings.recipe.report, out)
    lines = []
    for number, response in enumerate(responses):
        shown = []
        for place, thing in enumerate(response.things):
            if thing.data is None:
                shown.append(str(thing.text))
                continue
            path = out / f"{number:04d}{f'-{place}' if place else ''}{EXTENSIONS.get(thing.mime or '', '')}"
            path.write_bytes(thing.data)
            shown.append(str(path))
        lines.append(f"{response.prompt_text!r}: {', '.join(shown)}")
    return "\n".join(lines)


def sample_records(
    resolved: Resolved,
    folder: Path | None,
    target: Path,
    *,
    prompts: Sequence[Prompt] = (),
    count: int = 1,
    seed: int = 0,
    prefixes: Sequence[str] = (),
) -> str:
    """Answer the recipe's training records (or the prompts), ``count`` times each, into the records ``target``; return a line
    about it. See `self_samples.write`."""
    policy, _ = build(resolved)
    step = load_weights(policy, folder)
    data = resolved.recipe.data
    found = self_samples.asked(prompts) if prompts else self_samples.records_in(data.train, data.tags)
    maker = f"{folder.name if folder else resolved.recipe.name} step {step}"
    decoding = resolved.recipe.report.decoding
    written = self_samples.write(policy, found, target, count=count, seed=seed, prefixes=prefixes, maker=maker, decoding=decoding)
    return f"{target}: {written} records, {count} answers to each prompt (producer 'self:{maker}')"


def prompts_of(texts: Sequence[str], files: Sequence[Path]) -> list[Prompt]:
    """Return one user prompt per text, with all of the files in front. Raises `TrainingError` for a file of no known kind."""
    if files and not texts:
        raise TrainingError("--media goes with --prompt: say what is asked about the files")
    source = MemoryMedia()
    parts = []
    for path in files:
        data = path.read_bytes()
        codecs = [(entry.spec.name, entry.spec.load()()) for entry in registry().entries("modalities")]
        found = next(((name, mime) for name, codec in codecs if (mime := codec.sniff(data))), None)
        if found is None:
            raise TrainingError(f"{str(path)!r} is of no installed modality (`polyalign list modalities`)")
        parts.append(MediaPart(media=source.add(data, *found)))
    return [Prompt.of((Message(role="user", parts=(*parts, TextPart(text=text))),), source) for text in texts]


def merge(resolved: Resolved, folder: Path, target: Path) -> str:
    """Write the run's model, adapters merged, to the new folder ``target``; return a line about it."""
    if target.exists() and any(target.iterdir()):
        raise TrainingError(f"{str(target)!r} is not empty; name a new folder")
    policy, _ = build(resolved)
    step = load_weights(policy, folder)
    policy.save_merged(target)
    return f"{target}: the model of step {step}, adapters merged"


def score(resolved: Resolved, folder: Path | None, *, out: Path | None = None) -> str:
    """Score every held-out response; return how often the model prefers what the feedback preferred, with its interval.

    With a reference in the recipe the preference is the implicit reward's (log-ratio), else the log-probability's.
    """
    policy, objective = build(resolved)
    train_set, held_out = datasets(resolved)
    data = held_out or train_set
    policy.prepare(all_samples(data), cache_folder())
    if (head := reward_model_in(objective)) is objective and head is not None:
        if folder is None:
            raise TrainingError("an untrained reward model gives every response the same score: give a run folder")
        load_weights(policy.eval(), folder)
        load_head(head, folder / "model")
        head.to(next((parameter.device for parameter in policy.parameters()), torch.device("cpu")))
        found = preferences(head, policy, [data[index] for index in range(len(data))])
        if out:
            write_text(out, "".join(json.dumps(vars(one)) + "\n" for one in found))
        return "\n".join(trust(found).lines()) if found else "nothing compares two responses here"
    uses_reference = "reference" in objective.needs and folder is not None
    settings = resolved.recipe.reference.model_copy(update={"cache": False})
    reference = build_reference(policy, settings, cache_folder()) if uses_reference else None
    load_weights(policy, folder)
    policy.eval()
    rows, wins = [], []
    for index in range(len(data)):
        example = at_epoch(data[index], 0)
        micro = collate_examples([example], policy.collator)
        with torch.no_grad():
            values = policy(micro.batch).reduced().mean(1)
            if reference is not None:
                values = values - reference(micro.batch).reduced().mean(1)
        rows.append(
            {"record": example.record_id, "scores": dict(zip([s.id for s in example.samples], values.tolist(), strict=True))}
        )
        wins += [
            float((torch.sign(values[e.better] - values[e.worse]) + 1) / 2) for e in example.edges if e.contrast == "response"
        ]
    if out:
        write_text(out, "".join(json.dumps(row) + "\n" for row in rows))
    what = "log-ratio to the reference" if reference is not None else "log-probability"
    if not wins:
        return f"{len(rows)} examples scored by {what}; none of them compares two responses"
    return f"{len(rows)} examples, {len(wins)} preferences: the {what} agrees with {bootstrap(wins)} of them (95 % interval)"


def eval(resolved: Resolved, folder: Path | None, *, out: Path | None = None) -> str:
    """Generate on the recipe's report prompts with the starting model and the run's model; judge both; return a table."""
    if not resolved.rewards and not resolved.evaluators:
        raise TrainingError("nobody to judge: name report.rewards or report.evaluators in the recipe")
    if folder is None:
        raise TrainingError("eval compares a run with its starting model: give a run folder")
    prompts = report_prompts(resolved, *datasets(resolved))
    if not prompts:
        raise TrainingError("nothing to judge: report.prompts is 0 in the recipe")
    policy, _ = build(resolved)
    place = (out or folder) / "samples"
    settings = resolved.recipe.report
    before: list[Response] = generate(policy, prompts, settings, place / "before")
    step = load_weights(policy, folder)
    after = generate(policy, prompts, settings, place / f"after-{step:06d}")
    lines = [f"{len(prompts)} prompts, {settings.samples_per_prompt} samples each; mean [95 % interval]"]
    for verdict in judge(before, after, settings.samples_per_prompt, *judges(resolved)):
        name = f"{verdict.name}{' (lower is better)' if verdict.better == 'lower' else ''}"
        lines.append(f"{name}: before {verdict.before}, after {verdict.after}, gain {verdict.gain}, win rate {verdict.wins}")
        lines += [f"  {key}: {value}" for key, value in verdict.notes.items()]
    return "\n".join(lines)


def load_weights(policy: Policy, folder: Path | None) -> int:
    """Put a run's trained weights into the policy; return the step they come from."""
    if folder is None:
        return 0
    path, messages = checkpoint.newest(folder / "checkpoints")
    if path is None:
        raise TrainingError(f"{str(folder)!r} holds no usable checkpoint. {' '.join(messages)}".rstrip())
    checkpoint.load_policy(policy, path)
    return int(json.loads((path / "progress.json").read_text())["step"])


def replace_report(resolved: Resolved, samples_per_prompt: int, seed: int) -> Resolved:
    """Return the recipe with other sampling settings."""
    report = resolved.recipe.report.model_copy(update={"samples_per_prompt": samples_per_prompt, "seed": seed})
    return replace(resolved, recipe=resolved.recipe.model_copy(update={"report": report}))
