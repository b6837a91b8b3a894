"""A response on its way through the stages of language feedback."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from polyalign.records.modality import decoded
from polyalign.records.samples import MediaSource, Prompt
from polyalign.records.schema import MediaPart, text_of
from polyalign.rewards.base import Judged, asked
from polyalign.synthesis.writers import Parts


@dataclass(frozen=True)
class Draft:
    """One response on its way through the stages. ``producers`` made the response, the critique and the refinement."""

    record: int
    prompt: Prompt
    response: Parts
    number: int = 0
    critique: str = ""
    refined: Parts = ()
    request: str = ""  # what a refined medium was generated for
    producers: tuple[str | None, ...] = ()

    @property
    def media(self) -> MediaSource:
        assert self.prompt.media is not None
        return self.prompt.media

    def output(self, parts: Parts) -> Any:
        """Return a response decoded: its text, a medium, or a tuple where it is made of several parts."""
        if not any(isinstance(part, MediaPart) for part in parts):
            return text_of(parts)
        outputs = [decoded(part.media, self.media) if isinstance(part, MediaPart) else part.text for part in parts]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    # What a function is given in place of a conversation: to answer, to criticise, to refine, to generate anew.

    def unanswered(self) -> tuple[Any, ...]:
        return (asked(self.prompt),)

    def uncriticised(self) -> tuple[Any, ...]:
        return asked(self.prompt), self.output(self.response)

    def unrefined(self) -> tuple[Any, ...]:
        return asked(self.prompt), self.output(self.response), self.critique

    def requested(self) -> tuple[Any, ...]:
        return (self.request,)

    def judged(self, parts: Parts) -> Judged:
        return Judged.of(self.prompt, self.output(parts))

    def content(self) -> Any:
        """Return prompt, response and refinement as JSON data."""
        told = [message.model_dump(mode="json") for message in self.prompt]
        return [told, *([part.model_dump(mode="json") for part in parts] for parts in (self.response, self.refined))]
