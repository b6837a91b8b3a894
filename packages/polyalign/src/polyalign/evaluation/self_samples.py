"""``polyalign sample --records``: a policy's own answers as candidates of records, for D2O, or to be ranked and trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyalign.assets import resolve_dataset
from polyalign.errors import TrainingError
from polyalign.policies.base import Policy, Rollout
from polyalign.records.convert import moved
from polyalign.records.files import open_file, records_of, split_files
from polyalign.records.jsonl import write_jsonl
from polyalign.records.modality import Modality
from polyalign.records.samples import MediaSource, Prompt
from polyalign.records.schema import (
    SELF,
    Candidate,
    Comparison,
    MediaPart,
    Message,
    Record,
    Refinement,
    TextPart,
    candidates_named,
)
from polyalign.records.store import JoinedMedia, MediaStore
from polyalign.training.report.samples import PROMPTS_AT_ONCE, codec_of

if TYPE_CHECKING:
    from polyalign.training.config import SourceConfig

Found = tuple[Record, MediaSource]


def records_in(sources: Sequence[SourceConfig], tags: Sequence[str] = ()) -> Iterator[Found]:
    """Yield the records of the sources that carry all tags, each with what opens its media; ids get their source's number in
    front where there are several sources. Raises `RecordError` at the first bad one."""
    for number, source in enumerate(sources):
        for path in split_files(Path(resolve_dataset(source.path)), source.split):
            file = open_file(path, allow_outside=source.allow_outside, allow_urls=source.allow_urls)
            for record in islice(records_of(file), source.limit):
                if set(tags) <= set(record.tags):
                    named = {"id": f"{number}/{record.id}"} if len(sources) > 1 else {}
                    yield record.model_copy(update=named), file.media


def asked(prompts: Sequence[Prompt]) -> Iterator[Found]:
    """Yield a record with nothing but its prompt for each prompt. (A valid one once `write` has added an answer.)"""
    for number, prompt in enumerate(prompts):
        assert prompt.media is not None
        yield Record.model_construct(id=f"prompt-{number}", prompt=tuple(prompt), candidates=()), prompt.media


def write(
    policy: Policy,
    found: Iterable[Found],
    target: Path,
    *,
    count: int,
    seed: int = 0,
    prefixes: Sequence[str] = (),
    maker: str = "",
    decoding: dict[str, Any] | None = None,
) -> int:
    """Write the records to ``target`` (.jsonl), each with ``count`` answers of the policy to each of its distinct prompts; return
    how many records.

    The answers are candidates like any others, with the producer ``self:maker``. Their media, and those of the records, go into
    the store beside ``target``. Answers of an earlier call that nobody has judged since are dropped: they are of an older
    policy. ``prefixes``: texts that take turns in front of the prompt while answering it, and are not recorded.
    """
    if target.suffix != ".jsonl":
        raise TrainingError(f"records are written as JSON Lines; {str(target)!r} does not end in .jsonl")
    if target.exists():
        raise TrainingError(f"{str(target)!r} is there already; name another file with --records")
    store, producer = MediaStore(target.parent), f"{SELF}:{maker}" if maker else SELF
    policy.eval()
    return write_jsonl(target, _answered(policy, found, store, count, seed, prefixes, producer, decoding or {}))


def _answered(
    policy: Policy,
    found: Iterable[Found],
    store: MediaStore,
    count: int,
    seed: int,
    prefixes: Sequence[str],
    producer: str,
    decoding: dict[str, Any],
) -> Iterator[Record]:
    rest = iter(found)
    while part := list(islice(rest, PROMPTS_AT_ONCE)):
        wanted = [_prompts(record, media) for record, media in part]
        asked = [prompt for prompts in wanted for prompt in prompts]
        answers = iter(_answers(policy, asked, store, count, seed, prefixes, decoding))
        for (record, media), prompts in zip(part, wanted, strict=True):
            fresh = without_stale(record)
            added = [
                Candidate(parts=parts, prompt=None if prompt == record.prompt else tuple(prompt), producer=producer)
                for prompt in prompts
                for parts in next(answers)
            ]
            whole = fresh.model_copy(update={"candidates": (*fresh.candidates, *added)})
            yield moved(Record.model_validate(whole.model_dump()), JoinedMedia(media, store), store)


def _prompts(record: Record, media: MediaSource) -> list[Prompt]:
    own = [record.prompt_of(candidate) for candidate in range(len(record.candidates))] or [record.prompt]
    return [Prompt.of(messages, media) for messages in dict.fromkeys(own)]


def _answers(
    policy: Policy,
    prompts: Sequence[Prompt],
    store: MediaStore,
    count: int,
    seed: int,
    prefixes: Sequence[str],
    decoding: dict[str, Any],
) -> list[list[tuple[Any, ...]]]:
    """Return the parts of ``count`` answers for each prompt; answer k was given under prefix k modulo their number."""
    codec = codec_of(policy)
    answers: list[list[tuple[Any, ...]]] = [[] for _ in prompts]
    turns = prefixes or ("",)
    for turn, prefix in enumerate(turns[:count]):
        each = len(range(turn, count, len(turns)))
        worded = [_with_prefix(prompt, prefix) for prompt in prompts]
        rollouts = policy.generate(worded, samples_per_prompt=each, seed=seed, **decoding)
        for number, rollout in enumerate(rollouts):
            answers[number // each].append(parts_of(rollout, codec, store))
    return answers


def parts_of(rollout: Rollout, codec: tuple[Modality, str] | None, store: MediaStore) -> tuple[Any, ...]:
    """Return what a policy made as the parts of a candidate; a medium, encoded by the ``codec`` of its modality, goes into the
    store."""
    if codec is None:
        return rollout.parts or (TextPart(text=str(rollout.output)),)
    modality, mime = codec
    return (MediaPart(media=store.add(modality.encode(rollout.output, mime), modality.name, mime)),)


def _with_prefix(prompt: Prompt, prefix: str) -> Prompt:
    if not prefix:
        return prompt
    *before, last = prompt
    said = Message(role=last.role, parts=(TextPart(text=prefix), *last.parts))
    return Prompt.of((*before, said), prompt.media)


def without_stale(record: Record) -> Record:
    """Return the record without the policy's own answers that no feedback names; feedback follows its candidates."""
    named = {candidate for feedback in record.feedback for candidate in candidates_named(feedback)}
    kept = [at for at, made in enumerate(record.candidates) if at in named or not made.is_self_sample]
    place = {old: new for new, old in enumerate(kept)}

    def follow(feedback: Any) -> Any:
        if isinstance(feedback, Comparison):
            ranking = tuple(tuple(place[one] for one in tier) for tier in feedback.ranking)
            return feedback.model_copy(
                update={"ranking": ranking, "incomparable": tuple(place[one] for one in feedback.incomparable)}
            )
        if isinstance(feedback, Refinement):
            return feedback.model_copy(update={"before": place[feedback.before], "after": place[feedback.after]})
        return feedback.model_copy(update={"candidate": place[feedback.candidate]})

    feedback = tuple(follow(one) for one in record.feedback)
    return record.model_copy(update={"candidates": tuple(record.candidates[at] for at in kept), "feedback": feedback})
