"""The model card of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from polyalign.training.report.judging import Judgement
from polyalign.training.trainer import Trained

if TYPE_CHECKING:
    from polyalign.config import Resolved


def render(resolved: Resolved, trained: Trained, judgements: Sequence[Judgement], versions: Mapping[str, str]) -> str:
    """Return Markdown: base, data, licence, objective and citation, numbers, versions, command."""
    recipe = resolved.recipe
    base = getattr(resolved.policy_config, "base", "not named")
    sources = [f"{source.path} (split {source.split}, weight {source.weight:g})" for source in recipe.data.train]
    lines = [
        f"# {recipe.name}",
        "",
        recipe.summary,
        "",
        f"- Base model: `{base}`",
        f"- Policy: `{recipe.policy.name}` ({resolved.policy_spec.family} family)",
        f"- Data: {'; '.join(sources)}",
        f"- Objective: `{recipe.objective.name}`, {resolved.objective_spec.summary} Source: {resolved.objective_spec.source}",
        f"- Steps: {trained.steps}, {recipe.training.batch_size} examples each, seed {recipe.training.seed}",
        f"- Licence: {recipe.licence or 'not stated by the recipe; the licences of base model and data apply'}",
    ]
    if recipe.citation:
        lines.append(f"- Cite: {recipe.citation}")
    if judgements:
        lines += ["", "| judge | before | after | gain | win rate |", "|---|---|---|---|---|"]
        lines += [
            f"| {j.name}{' (lower is better)' if j.better == 'lower' else ''} | {j.before} | {j.after} | {j.gain} | {j.wins} |"
            for j in judgements
        ]
        lines += ["", "Intervals: 95 % bootstrap over prompts. Same prompts and seeds before and after."]
    lines += [
        "",
        "Repeat it: `polyalign train config.yaml --out NEW_FOLDER` in this folder, with "
        + ", ".join(f"{name} {value}" for name, value in versions.items())
        + ".",
        "",
    ]
    return "\n".join(lines)
