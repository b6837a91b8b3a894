"""Examples that a critic learns from: L = -E log p(critique | prompt, response), by the ``sft`` objective."""

from __future__ import annotations

from collections.abc import Sequence

from polyalign.records.samples import Prompt
from polyalign.records.schema import Candidate, Critique
from polyalign.synthesis.base import Found, Synthesized, Synthesizer
from polyalign.synthesis.config import CritiqueExamplesConfig
from polyalign.synthesis.requests import critique_messages
from polyalign.synthesis.stages import Stages


class CritiqueExamples(Synthesizer):
    """One record per critique: asked as `LanguageFeedback` asks its critic, answered with the critique."""

    def __init__(self, config: CritiqueExamplesConfig) -> None:
        self.config = config

    def synthesize(self, found: Sequence[Found], stages: Stages) -> Synthesized:
        made = Synthesized()
        for record, media in found:
            critiques = [
                said for said in record.feedback if isinstance(said, Critique) and self.config.aspect in (None, said.aspect)
            ]
            made.dropped["without a critique"] += not critiques
            for number, said in enumerate(critiques):
                prompt = Prompt.of(record.prompt_of(said.candidate), media)
                asked = critique_messages(prompt, record.candidates[said.candidate].parts, self.config.critique_request)
                answer = Candidate(parts=said.parts, producer=said.annotator)
                update = {"id": f"{record.id}/critique-{number}", "prompt": tuple(asked), "candidates": (answer,), "feedback": ()}
                made.records.append((record.model_copy(update=update), media))
        return made
