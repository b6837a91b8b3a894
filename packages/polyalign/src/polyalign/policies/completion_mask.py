"""From messages to token ids, knowing for each token whether it is the model's decision. Nothing is guessed from lengths."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from torch import Tensor

from polyalign.errors import ConfigError, RecordError
from polyalign.records.samples import MediaSource, Sample
from polyalign.records.schema import MediaPart, Message, TextPart, text_of

_MARK = "\u2063response\u2063"  # invisible separators: no template alters or trims them


@dataclass(frozen=True, eq=False)
class Medium:
    """One medium of a prompt or response. ``key``: equal content and settings, equal key.

    ``tokens``: how many features its encoder makes of it; as many placeholder tokens stand for it in a row, unless it is not
    ``placed`` among them (a decoder attends to it from outside); ``load``: returns the inputs of the model's own encoder,
    of this medium alone (decoding it is put off until a batch needs it). ``modality``: which of the policy's media it is; may
    stay empty where it reads one kind.
    """

    key: str
    tokens: int
    load: Callable[[], Mapping[str, Tensor]]
    modality: str = field(default="", kw_only=True)
    placed: bool = field(default=True, kw_only=True)


class Piece(NamedTuple):
    """A prompt or a response as token ids, with the media that its placeholders stand for, in their order."""

    ids: tuple[int, ...]
    media: tuple[Medium, ...] = ()


@dataclass(frozen=True)
class Encoded:
    """Token ids of one sample. The ids of ``response`` are scored, its end-of-turn token included, except placeholders of
    media; no id of ``prompt`` is.

    ``dropped`` counts prompt tokens lost at the front, ``cut`` response tokens lost at the end. ``prompt_media`` and
    ``response_media`` stand in the order of their placeholders. ``tag``: what else the prompt's embeddings depend on; samples
    share a row only where it is equal.
    """

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    dropped: int = 0
    cut: int = 0
    prompt_media: tuple[Medium, ...] = ()
    response_media: tuple[Medium, ...] = ()
    tag: Hashable = None

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)

    @property
    def media(self) -> tuple[Medium, ...]:
        return self.prompt_media + self.response_media


class PromptResponseEncoder:
    """Turns a prompt and a response into ids the way the model meets them when it generates.

    The prompt is rendered up to the point where the assistant starts to speak, the response is tokenised apart (so a token
    never straddles the border), and the template's own end of turn follows. Special tokens written inside a response's
    text are spelt out as ordinary text.

    ``chat_template``: "auto" uses the tokenizer's template if it has one; "none" never does. Without a template the texts
    of all messages are joined by a newline, the tokenizer puts its usual start token in front, and the response follows at
    once: prompt + response + end-of-text. Give the prompt its own trailing space or newline where the model needs one.

    ``settings``: what the encoder inputs of media depend on, as text; it enters the policy's fingerprint.
    """

    settings = ""

    def __init__(self, tokenizer: Any, chat_template: Literal["auto", "none"] = "auto") -> None:
        if tokenizer.eos_token_id is None:
            raise ConfigError("the tokenizer has no end-of-text token (eos_token); set one, or generation could never stop")
        self.tokenizer = tokenizer
        self.uses_template = chat_template == "auto" and bool(tokenizer.chat_template)
        self.end_ids: tuple[int, ...] = self._end_of_turn() if self.uses_template else (tokenizer.eos_token_id,)
        self.media_ids: frozenset[int] = frozenset()  # ids of placeholders, in encoders that read media
        self.ids_by_modality: dict[str, int] = {}  # the same, each under its modality

    @property
    def unscored_ids(self) -> frozenset[int]:
        """Return the ids that are no decisions where they stand in a response: placeholders of media."""
        return self.media_ids

    def encode(self, samples: Sequence[Sample], max_length: int, max_response: int) -> list[Encoded]:
        """Return the ids of each sample within the limits. A prompt that several samples share is rendered once."""
        prompts: dict[tuple[Message, ...], Piece] = {}
        rows = []
        for sample in samples:
            if sample.prompt not in prompts:
                prompts[sample.prompt] = self.prompt(sample.prompt, sample.media)
            response = self.response(sample.response, sample.media)
            rows.append(self.fit(prompts[sample.prompt], response, max_length, max_response, f"sample {sample.id!r}"))
        return rows

    def prompt(self, prompt: tuple[Message, ...], media: MediaSource | None) -> Piece:
        """Return what stands in front of the response. Encoders that read media override this and `response`."""
        return Piece(self.prompt_ids(prompt))

    def response(self, response: Sequence[TextPart | MediaPart], media: MediaSource | None) -> Piece:
        return Piece(self.response_ids(response))

    def prompt_ids(self, prompt: tuple[Message, ...]) -> tuple[int, ...]:
        """Return the ids in front of the response. A prompt that ends with an assistant message is continued, not answered."""
        text = self.rendered(prompt)
        if self.uses_template:
            return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        ids = list(self.tokenizer(text)["input_ids"])
        while ids and ids[-1] in (self.tokenizer.eos_token_id, getattr(self.tokenizer, "sep_token_id", None)):
            ids.pop()  # tokenizers that close every text would close the prompt too
        start = self.tokenizer.bos_token_id if self.tokenizer.bos_token_id is not None else self.tokenizer.eos_token_id
        return tuple(ids) or (start,)  # the first response token needs something to be predicted from

    def rendered(self, prompt: tuple[Message, ...]) -> str:
        """Return the text in front of the response."""
        if not self.uses_template:
            return "\n".join(self.text(message.parts, "prompt") for message in prompt)
        turns = [{"role": message.role, "content": self.content(message.parts)} for message in prompt]
        continues = bool(turns) and turns[-1]["role"] == "assistant"
        return self._render(turns, add_generation_prompt=not continues, continue_final_message=continues)

    def response_ids(self, response: Sequence[TextPart | MediaPart]) -> tuple[int, ...]:
        """Return the ids of the response, its end-of-turn token included."""
        text = self.text(response, "response")
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return (*ids, *self.end_ids)

    def content(self, parts: Sequence[TextPart | MediaPart]) -> Any:
        """Return what the chat template takes as a message's content."""
        return self.text(parts, "prompt")

    def text(self, parts: Sequence[TextPart | MediaPart], where: str) -> str:
        """Return the text of message parts. A policy that reads media overrides this with its placeholder tokens."""
        for part in parts:
            if isinstance(part, MediaPart):
                raise RecordError(
                    f"the {where} holds a {part.media.modality} part, but this policy reads and writes text only; "
                    "choose a policy of that modality (`polyalign list policies`) or leave these records out with data.tags"
                )
        return text_of(tuple(parts))

    def fit(self, prompt: Piece, response: Piece, max_length: int, max_response: int, whose: str) -> Encoded:
        """Return both within the limits: the response is kept and cut only past ``max_response`` (then it has no end of
        turn, since the text goes on), and the prompt loses its oldest tokens."""
        cut = max(0, len(response.ids) - max_response)
        kept = response.ids[: len(response.ids) - cut]
        dropped = max(0, len(prompt.ids) + len(kept) - max_length)
        return Encoded(prompt.ids[dropped:], kept, dropped, cut, prompt.media, response.media)

    def _render(self, turns: list[dict[str, Any]], **how: bool) -> str:
        from jinja2 import TemplateError

        try:
            return str(self.tokenizer.apply_chat_template(turns, tokenize=False, **how))
        except TemplateError as error:
            raise RecordError(
                f"the tokenizer's chat template refuses a prompt with the roles {[turn['role'] for turn in turns]}: {error}. "
                "Change the roles in the records, or set policy.chat_template: none"
            ) from error

    def _end_of_turn(self) -> tuple[int, ...]:
        """Read off the template how an assistant's turn ends: up to its first special token, else the end-of-text token."""
        said = {role: self.content((TextPart(text=text),)) for role, text in (("user", "?"), ("assistant", _MARK))}
        rendered = self._render([{"role": role, "content": content} for role, content in said.items()])
        _, mark, tail = rendered.rpartition(_MARK)
        if not mark:
            raise ConfigError(
                "the tokenizer's chat template does not print the assistant's message, so responses cannot be scored; "
                "use another template, or set policy.chat_template: none"
            )
        ids = self.tokenizer(tail, add_special_tokens=False)["input_ids"]
        special = {index for index, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        special.add(self.tokenizer.eos_token_id)
        for position, index in enumerate(ids):
            if index in special:
                return tuple(ids[: position + 1])
        return (self.tokenizer.eos_token_id,)
