"""How a critic, and somebody who refines, are asked: the conversation a model is shown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from polyalign.records.samples import Prompt
from polyalign.records.schema import MediaPart, Message, Part, TextPart, text_of

_SECTION = re.compile(r"^\s*#{1,3}\s*refinement\s*:?\s*", re.IGNORECASE | re.MULTILINE)  # as align-anything's annotators write


def is_medium(parts: Sequence[Part]) -> bool:
    """Return whether a response is media and no text: it is refined by a better request, not rewritten."""
    return all(isinstance(part, MediaPart) for part in parts)


def critique_messages(prompt: Prompt, response: Sequence[Part], request: str) -> Prompt:
    """Return the conversation that asks for a critique: prompt, response, request. A response with media is shown by the user,
    since few chat templates let an assistant show anything."""
    if any(isinstance(part, MediaPart) for part in response):
        asked = Message(role="user", parts=(*_request(prompt), *response, TextPart(text=request)))
        return Prompt.of((asked,), prompt.media, prompt.conditions)
    return _continued(prompt, response, request)


def refine_messages(prompt: Prompt, response: Sequence[Part], critique: str, request: str) -> Prompt:
    """Return the conversation that asks for the response again: prompt, response, critique and request."""
    return _continued(prompt, response, f"{critique}\n\n{request}")


def better_request_messages(prompt: Prompt, critique: str, request: str) -> Prompt:
    """Return the conversation that asks for a better request for a medium, given the critique of what came of this one."""
    asked = Message(role="user", parts=(*_request(prompt), TextPart(text=f"\nCritique: {critique}\n\n{request}")))
    return Prompt.of((asked,), prompt.media, prompt.conditions)


def with_request(prompt: Prompt, text: str) -> Prompt:
    """Return the prompt with another text in its last message; media in it stay."""
    *before, last = prompt
    media = tuple(part for part in last.parts if isinstance(part, MediaPart))
    said = Message(role=last.role, parts=(*media, TextPart(text=text)))
    return Prompt.of((*before, said), prompt.media, prompt.conditions)


def refined_request(critique: str) -> str:
    """Return what stands under ``##Refinement:`` in a critique, or all of it."""
    return _SECTION.split(critique)[-1].strip()


def _continued(prompt: Prompt, response: Sequence[Part], asked: str) -> Prompt:
    said: Any = (
        *prompt,
        Message(role="assistant", parts=tuple(response)),
        Message(role="user", parts=(TextPart(text=asked),)),
    )
    return Prompt.of(said, prompt.media, prompt.conditions)


def _request(prompt: Prompt) -> tuple[Part, ...]:
    """Return the prompt as parts of one message: "Request: ", its texts and media."""
    texts = "\n".join(text_of(message.parts) for message in prompt)
    media = tuple(part for message in prompt for part in message.parts if isinstance(part, MediaPart))
    return (TextPart(text=f"Request: {texts}\n"), *media)
