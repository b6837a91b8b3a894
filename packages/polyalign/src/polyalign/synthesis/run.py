"""``polyalign synthesize``: a recipe to a file of new records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from polyalign.cache import cache_folder
from polyalign.errors import RecordError
from polyalign.evaluation.self_samples import records_in
from polyalign.records.convert import moved
from polyalign.records.jsonl import write_jsonl
from polyalign.records.schema import Record
from polyalign.records.store import MediaStore
from polyalign.synthesis.base import Synthesized, Synthesizer
from polyalign.synthesis.config import SynthesisRecipe
from polyalign.synthesis.stages import Stages


def synthesize(recipe: SynthesisRecipe, target: Path) -> tuple[Synthesized, Stages]:
    """Write the recipe's new records to ``target`` (.jsonl), media beside it; return them, and what was worked out for them.

    Nothing is written where no record is left. Work that was finished before, by this recipe or another, is not repeated.
    """
    if target.suffix != ".jsonl":
        raise RecordError(f"records are written as JSON Lines; {str(target)!r} does not end in .jsonl")
    if target.exists():
        raise RecordError(f"{str(target)!r} is there already; name another file")
    stages = Stages(Path(recipe.stages) if recipe.stages else cache_folder() / "synthesis")
    synthesizer: Synthesizer = recipe.synthesizer.build()
    made = synthesizer.synthesize(list(records_in(recipe.data, recipe.tags)), stages)
    store = MediaStore(target.parent)

    def whole() -> Iterator[Record]:
        for record, media in made.records:
            yield moved(Record.model_validate(record.model_dump()), media, store)

    if made.records:
        write_jsonl(target, whole())
    return made, stages


def summary(made: Synthesized, stages: Stages, target: Path) -> str:
    """Return what was worked out, what was left out and why, and what is in the file, a line each."""
    lines = [f"{stage}: {stages.made[stage]} made, {stages.kept[stage]} kept from before" for stage in stages.kept]
    lines += [f"left out, {reason}: {count}" for reason, count in (+made.dropped).items()]
    comparisons = sum(len([said for said in record.feedback if said.type == "comparison"]) for record, _ in made.records)
    last = f"{target}: {len(made.records)} records, {comparisons} comparisons"
    return "\n".join([*lines, last if made.records else f"no record is left, so {target} was not written"])
