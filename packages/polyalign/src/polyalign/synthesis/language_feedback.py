"""Learning from language feedback: sample, criticise, refine, filter, and pair the refinement with what it came from.

Align-Anything (arXiv 2412.15838): y ~ policy(x); c ~ critic(x, y); y* ~ policy(x, y, c); y* is preferred to y. For a generated
medium the critique becomes a better request, and y* is generated for that. What the published scripts lack: a filter (approval,
y* = y, length, a judge's agreement), and stages that keep what is done.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from polyalign.errors import TrainingError
from polyalign.records.samples import Prompt
from polyalign.records.schema import (
    Candidate,
    Comparison,
    Critique,
    Provenance,
    Record,
    Refinement,
    TextPart,
    text_of,
)
from polyalign.records.store import JoinedMedia
from polyalign.rewards.base import asked
from polyalign.synthesis.base import Found, Synthesized, Synthesizer
from polyalign.synthesis.config import LanguageFeedbackConfig, WriterConfig
from polyalign.synthesis.drafts import Draft
from polyalign.synthesis.filters import agreed, changed
from polyalign.synthesis.requests import (
    better_request_messages,
    critique_messages,
    is_medium,
    refine_messages,
    refined_request,
    with_request,
)
from polyalign.synthesis.stages import Stages
from polyalign.synthesis.writers import Request, Writers


class LanguageFeedback(Synthesizer):
    """See the module; what each stage left out is counted by reason."""

    def __init__(self, config: LanguageFeedbackConfig) -> None:
        self.config, self._writers = config, Writers()
        self._approval = re.compile(config.approval, re.IGNORECASE | re.DOTALL)

    def synthesize(self, found: Sequence[Found], stages: Stages) -> Synthesized:
        dropped: Counter[str] = Counter()
        drafts = self._criticised(list(self._answered(found, stages)), found, stages, dropped)
        drafts = self._refined(drafts, stages, dropped)
        drafts = agreed(changed(drafts, self.config.filters, dropped), self.config.filters, stages, dropped)
        by_record: dict[int, list[Draft]] = {}
        for draft in drafts:
            by_record.setdefault(draft.record, []).append(draft)
        return Synthesized(
            [(self._paired(found[at][0], members), members[0].media) for at, members in by_record.items()], dropped
        )

    def _answered(self, found: Sequence[Found], stages: Stages) -> Iterable[Draft]:
        """Yield the responses that are to be criticised: new ones, or the records' own candidates."""
        generator, drafts = self.config.generator, []
        for at, (record, media) in enumerate(found):
            source = JoinedMedia(media, stages.media)
            for number, candidate in enumerate(record.candidates):
                prompt = Prompt.of(record.prompt_of(number), source, record.conditions)
                drafts.append(Draft(at, prompt, candidate.parts, number, producers=(candidate.producer,)))
        if generator is None:
            yield from drafts
            return
        writer = self._writers.get(generator)
        prompts = {(draft.record, tuple(draft.prompt)): draft for draft in drafts}.values()
        wanted = [replace(draft, number=number) for draft in prompts for number in range(self.config.samples)]
        requests = [Request(draft.prompt, draft.unanswered, draft.number) for draft in wanted]
        for draft, parts in zip(wanted, writer.written("responses", requests, stages), strict=True):
            yield replace(draft, response=parts, producers=(writer.name,))

    def _criticised(self, drafts: Sequence[Draft], found: Sequence[Found], stages: Stages, dropped: Counter[str]) -> list[Draft]:
        """Return the drafts with a critique that asks for something."""
        if self.config.critic is None:
            criticised = [
                replace(draft, critique=text_of(said.parts), producers=(*draft.producers, said.annotator))
                for draft in drafts
                for said in found[draft.record][0].feedback
                if isinstance(said, Critique) and said.candidate == draft.number
            ]
            dropped["without a critique"] += len(drafts) - len({(draft.record, draft.number) for draft in criticised})
        else:
            writer, request = self._writers.get(self.config.critic), self.config.critique_request
            requests = [Request(critique_messages(draft.prompt, draft.response, request), draft.uncriticised) for draft in drafts]
            criticised = [
                replace(draft, critique=text_of(parts).strip(), producers=(*draft.producers, writer.name))
                for draft, parts in zip(drafts, writer.written("critiques", requests, stages), strict=True)
            ]
        wanting = [draft for draft in criticised if draft.critique and not self._approval.fullmatch(draft.critique)]
        dropped["approved by the critic"] += len(criticised) - len(wanting)
        return wanting

    def _refined(self, drafts: Sequence[Draft], stages: Stages, dropped: Counter[str]) -> list[Draft]:
        """Return the drafts with what came of their critiques: texts rewritten, media generated for a better request."""
        media = [draft for draft in drafts if is_medium(draft.response)]
        texts = [draft for draft in drafts if not is_medium(draft.response)]
        refined = self._rewritten(texts, stages) if texts else []
        if media:
            requested = self._requested(media, stages)
            better = [draft for draft in requested if draft.request and draft.request != asked(draft.prompt)]
            dropped["refined to the same request"] += len(requested) - len(better)
            refined += self._generated(better, stages) if better else []
        place = {(draft.record, draft.prompt, draft.number): at for at, draft in enumerate(drafts)}
        return sorted(refined, key=lambda draft: place[draft.record, draft.prompt, draft.number])

    def _rewritten(self, drafts: Sequence[Draft], stages: Stages) -> list[Draft]:
        config = self.config.refiner or self.config.generator
        assert config is not None
        told = self.config.refine_request
        requests = [
            Request(refine_messages(draft.prompt, draft.response, draft.critique, told), draft.unrefined, draft.number)
            for draft in drafts
        ]
        return self._with_refined(drafts, requests, "refinements", config, stages)

    def _requested(self, drafts: Sequence[Draft], stages: Stages) -> list[Draft]:
        """Return the drafts with a better request for their medium."""
        if self.config.refiner is None:
            return [replace(draft, request=refined_request(draft.critique)) for draft in drafts]
        told = self.config.prompt_request
        requests = [
            Request(better_request_messages(draft.prompt, draft.critique, told), draft.unrefined, draft.number)
            for draft in drafts
        ]
        written = self._writers.get(self.config.refiner).written("requests", requests, stages)
        return [replace(draft, request=refined_request(text_of(one))) for draft, one in zip(drafts, written, strict=True)]

    def _generated(self, drafts: Sequence[Draft], stages: Stages) -> list[Draft]:
        """Return the drafts with a medium generated for their better request, by the seed of the first one."""
        if self.config.generator is None:
            named = text_of(drafts[0].prompt[-1].parts)
            raise TrainingError(f"the response to {named!r} is a medium; a refined one needs a generator to make it")
        requests = [Request(with_request(draft.prompt, draft.request), draft.requested, draft.number) for draft in drafts]
        return self._with_refined(drafts, requests, "responses", self.config.generator, stages)

    def _with_refined(
        self, drafts: Sequence[Draft], requests: Sequence[Request], stage: str, config: WriterConfig, stages: Stages
    ) -> list[Draft]:
        writer = self._writers.get(config)
        written = writer.written(stage, requests, stages)
        return [
            replace(draft, refined=parts, producers=(*draft.producers, writer.name))
            for draft, parts in zip(drafts, written, strict=True)
        ]

    def _paired(self, record: Record, drafts: Sequence[Draft]) -> Record:
        """Return one record of a prompt's pairs: candidate 2k is a response, 2k + 1 its refinement."""
        candidates: list[Candidate] = []
        feedback: list[Any] = []
        for draft in drafts:
            own = None if tuple(draft.prompt) == record.prompt else tuple(draft.prompt)
            maker, critic, refiner = draft.producers
            first, second = len(candidates), len(candidates) + 1
            conditions = {"refined_request": draft.request} if draft.request else {}
            candidates += [
                Candidate(parts=draft.response, prompt=own, producer=maker),
                Candidate(parts=draft.refined, prompt=own, producer=refiner, conditions=conditions),
            ]
            critique = Critique(
                candidate=first, parts=(TextPart(text=draft.critique),), aspect=self.config.aspect, annotator=critic
            )
            ranking = Comparison(ranking=((second,), (first,)), aspect=self.config.aspect, annotator="language-feedback")
            feedback += [critique, Refinement(before=first, after=second, annotator=refiner), ranking]
        source = record.provenance.source if record.provenance else record.id
        return record.model_copy(
            update={
                "candidates": tuple(candidates),
                "feedback": tuple(feedback),
                "provenance": Provenance(source=source, method="language feedback"),
            }
        )
