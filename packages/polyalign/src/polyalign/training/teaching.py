"""Before a distillation: teachers read the training data once, and what they say goes into a store.

The teacher scores the very token rows that the student will be trained on, so the positions agree whatever the teacher's
own template is. What is in the store already, from a run that was killed or from another recipe, is not scored again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from polyalign.cache import cache_folder
from polyalign.errors import ConfigError, TrainingError
from polyalign.objectives.distillation_config import ADPAConfig, DistillationConfig, TeacherConfig
from polyalign.objectives.terms import WeightedSumConfig
from polyalign.policies.base import Policy
from polyalign.policies.completion_mask import Encoded
from polyalign.policies.teacher_store import HEADER, Header, Row, TeacherStore, row_key, rows_of
from polyalign.policies.tokens import TokenPolicy
from polyalign.records.samples import Sample
from polyalign.training.batches import ExampleSource
from polyalign.training.progress import Progress
from polyalign.training.self_samples import SelfSamples, WithSelfSamples

if TYPE_CHECKING:
    from polyalign.config import Resolved

logger = logging.getLogger(__name__)
ROWS_PER_FILE = 64  # what a killed run can lose
TEACH_FIRST = "run `polyalign teach` with this recipe first"


@dataclass(frozen=True)
class Teachers:
    """The teacher, and what it was before it was tuned to preferences if an objective asks for that."""

    tuned: TokenPolicy
    reference: TokenPolicy | None = None


def teacher_of(config: object) -> TeacherConfig | None:
    """Return the teacher that an objective's configuration names; None if the objective learns from none.

    Raises `ConfigError` where one is missing, lacks what the objective needs, or terms of a sum name different ones.
    """
    terms = [term.config for term in config.terms] if isinstance(config, WeightedSumConfig) else [config]
    asked = [term for term in terms if isinstance(term, DistillationConfig)]
    if not asked:
        return None
    teachers = [term.teacher for term in asked]
    if None in teachers:
        raise ConfigError(
            "objective.teacher is missing: name who teaches, for example teacher: {policy: {name: text, base: FOLDER}}"
        )
    if any(teacher != teachers[0] for teacher in teachers):
        raise ConfigError("the terms of this objective name different teachers; one store serves a run, so name the same one")
    teacher = cast(TeacherConfig, teachers[0])
    for term in (term for term in asked if isinstance(term, ADPAConfig)):
        if term.states == "self_samples" and not teacher.self_samples:
            raise ConfigError(
                "adpa learns on responses that the student sampled, but objective.teacher.self_samples is 0; set it to 1 or "
                "more, or objective.states: responses"
            )
        if teacher.reference is None:
            raise ConfigError("adpa compares two teachers: name the one before preference tuning in objective.teacher.reference")
    return teacher


def load_teachers(config: TeacherConfig, student: TokenPolicy, device: str) -> Teachers:
    """Load the teachers and make sure that they read the student's tokens. Raises `ConfigError` where they do not."""
    tuned = config.policy.load(device)
    reference = config.reference.load(device) if config.reference is not None else None
    for name, teacher in (("policy", tuned), ("reference", reference)):
        if teacher is not None:
            check_vocabulary(student, teacher, f"objective.teacher.{name}")
    return Teachers(tuned, reference)


def check_vocabulary(student: TokenPolicy, teacher: Policy, where: str) -> None:
    """Raise `ConfigError` unless every token has the same id for both, and the teacher's context holds the student's rows."""
    if not isinstance(teacher, TokenPolicy):
        raise ConfigError(f"{where} is a {type(teacher).__name__}, which gives no distribution over tokens")
    own, theirs = student.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    other = sorted(token for token in own.keys() | theirs.keys() if own.get(token) != theirs.get(token))
    if other:
        token = other[0]
        raise ConfigError(
            f"{where} does not share the student's tokenizer: {len(other)} of {len(own.keys() | theirs.keys())} tokens differ, "
            f"for example {token!r}, id {own.get(token, 'none')} for the student, {theirs.get(token, 'none')} for the teacher. "
            "Distributions over different tokens cannot be compared; take a teacher of the same model family"
        )
    if teacher.collator.max_length < student.collator.max_length:
        raise ConfigError(
            f"{where} reads rows of {teacher.collator.max_length} tokens, the student's may have {student.collator.max_length}; "
            f"raise {where}.max_length or lower policy.max_length"
        )


def store_folder(config: TeacherConfig) -> Path:
    """Return where the recipe keeps what its teacher says: the folder it names, else one of the cache, named by who teaches."""
    if config.store:
        return Path(config.store).expanduser()
    teachers = [config.policy.model_dump(mode="json"), config.reference and config.reference.model_dump(mode="json")]
    content = json.dumps([*teachers, config.top_k, config.dtype], sort_keys=True)
    return cache_folder() / "teachers" / hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def open_store(config: TeacherConfig, teachers: Teachers, student: TokenPolicy) -> TeacherStore:
    """Open the store of these teachers, which may be empty. Raises `TrainingError` where the folder holds another teacher's."""
    vocabulary = min(student.vocabulary_size, teachers.tuned.vocabulary_size)
    before = teachers.reference.fingerprint() if teachers.reference is not None else None
    tokens, top_k = tokens_hash(student), min(config.top_k, vocabulary)
    header = Header(teachers.tuned.fingerprint(), before, tokens, vocabulary, top_k, config.dtype)
    return TeacherStore(store_folder(config), header)


def finished_store(config: TeacherConfig, student: TokenPolicy, samples: Sequence[Sample]) -> TeacherStore | None:
    """Open a store that holds all of these samples, without a teacher; None if there is none or something is missing.

    Who taught is then known by the store's name only: a teacher whose folder changed since is noticed by `polyalign teach`.
    """
    if not (store_folder(config) / HEADER).is_file():
        return None
    store = TeacherStore(store_folder(config))
    header = store.header
    if header.tokens != tokens_hash(student):
        raise ConfigError(
            f"the teacher store {str(store.folder)!r} was written for another tokenizer than the student's; teacher and student "
            "must share it. Take a teacher of the same model family, and a store of its own"
        )
    if header.vocabulary > student.vocabulary_size:
        raise ConfigError(
            f"the teacher store {str(store.folder)!r} speaks of {header.vocabulary} token ids, the student knows "
            f"{student.vocabulary_size}; name another store"
        )
    wanted = min(config.top_k, header.vocabulary), config.dtype, config.reference is not None
    found = header.top_k, header.dtype, header.reference is not None
    if wanted != found:
        raise ConfigError(
            f"the teacher store {str(store.folder)!r} holds (top_k, dtype, reference) = {found}, the recipe says {wanted}; "
            "change objective.teacher, or name another store"
        )
    return store if all(row_key(row) in store for row in student.collator.encode_all(samples)) else None


def tokens_hash(student: TokenPolicy) -> str:
    content = json.dumps(sorted(student.tokenizer.get_vocab().items()))
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def teach(
    teachers: Teachers, student: TokenPolicy, samples: Sequence[Sample], store: TeacherStore, batch_size: int, quiet: bool = False
) -> int:
    """Let the teachers read what the store does not hold yet; return how many rows that were.

    Rows of like length are read together. Every `ROWS_PER_FILE` rows reach the disk.
    """
    for name in store.drop_damaged():
        logger.warning("%s in %s was damaged; its rows are read again", name, store.folder)
    missing: dict[str, tuple[Sample, Encoded]] = {}
    for sample, row in zip(samples, student.collator.encode_all(samples), strict=True):
        if (key := row_key(row)) not in store:
            missing.setdefault(key, (sample, row))
    keys = sorted(missing, key=lambda key: (len(missing[key][1]), key))
    with Progress("teacher", 0, -(-len(keys) // ROWS_PER_FILE), not quiet) as progress:
        for file in _cut(keys, ROWS_PER_FILE):
            rows: dict[str, Row] = {}
            for part in _cut(file, batch_size):
                found = _said(teachers, student, [missing[key] for key in part], store.header)
                rows |= dict(zip(part, found, strict=True))
            store.add(rows)
            progress.advance({})
    return len(keys)


def _said(teachers: Teachers, student: TokenPolicy, asked: Sequence[tuple[Sample, Encoded]], header: Header) -> list[Row]:
    samples, rows = zip(*asked, strict=True)
    batch = student.collator.layout(samples, rows, torch.ones(len(rows)), None).to(teachers.tuned.model.device)
    ids, said = teachers.tuned.likeliest(batch, header.top_k, within=header.vocabulary)
    before = None
    if teachers.reference is not None:
        before = teachers.reference.likeliest(batch, header.top_k, ids, within=header.vocabulary)[1]
    return rows_of(batch.mask[:, 0], ids, said, before)


def _cut(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (items[start : start + size] for start in range(0, len(items), size))


@dataclass(frozen=True)
class Prepared:
    """Example sets, with the student's own samples where they are asked for, and what had to be made for them just now."""

    data: ExampleSource
    held_out: ExampleSource | None
    store: TeacherStore | None = None
    rows: int = 0
    drawn: int = 0


def prepare(
    resolved: Resolved, student: Policy, data: ExampleSource, held_out: ExampleSource | None = None, *, verify: bool = False
) -> Prepared:
    """Put the distributions of the recipe's teacher, if it names one, into the student's batches.

    What is missing is made first: the student samples, teachers are loaded, read, and are let go. Where nothing is missing no
    teacher is loaded, unless ``verify`` asks to compare it with the store and the store's bytes with their hashes. Processes
    of a distributed run make nothing, so there the store must be complete.
    """
    config = teacher_of(resolved.objective_config)
    if config is None:
        return Prepared(data, held_out)
    if not isinstance(student, TokenPolicy):
        raise ConfigError(f"{type(student).__name__} has no distribution over tokens that a teacher could be compared with")
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    drawn = 0
    if config.self_samples:
        own = SelfSamples(store_folder(config), student, config.self_samples, resolved.recipe.training.seed, config.decoding)
        if not alone and any(own.lacks(sample) for sample in _samples(data, held_out)):
            raise TrainingError(f"several processes cannot sample for {str(own.folder)!r}; {TEACH_FIRST}")
        drawn = own.draw(list(_samples(data, held_out)))
        data = WithSelfSamples(data, own)
        held_out = WithSelfSamples(held_out, own) if held_out is not None else None
    samples = list(_samples(data, held_out))
    rows, store = 0, None if verify else finished_store(config, student, samples)
    if store is None:
        if not alone:
            raise TrainingError(f"several processes cannot fill {str(store_folder(config))!r}; {TEACH_FIRST}")
        teachers = load_teachers(config, student, str(student.model.device))
        store = open_store(config, teachers, student)
        rows = teach(teachers, student, samples, store, config.batch_size)
    student.collator.taught = store
    return Prepared(data, held_out, store, rows, drawn)


def _samples(*sets: ExampleSource | None) -> Iterator[Sample]:
    for data in sets:
        for index in range(len(data) if data is not None else 0):
            yield from data[index].samples  # type: ignore[index]
