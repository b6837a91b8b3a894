"""The `right_thing` reward: whether a word, a picture or a spoken word is of the thing that the prompt is of."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from polyalign.assets import resolve_model
from polyalign.encoders import build_encoder
from polyalign.errors import RewardError
from polyalign.rewards.base import Judged, Reward
from polyalign_any_to_any.config import RightThingConfig
from polyalign_any_to_any.speech_judge import SpeechJudge


class RightThing(Reward):
    """1 where the response is of the thing that the record's answer names and of the modality that its group asks for, else 0.

    A text has to be the name. A picture is taken for the thing whose name fits it best of all names, by an encoder of pictures
    and text; a clip for the word that the judge of speech hears. The names are those the judge of speech knows. Whoever answers
    with a picture where a word is due is wrong, and so is whoever answers with two things.
    """

    name = "right_thing"

    def __init__(self, config: RightThingConfig | None = None) -> None:
        self.config = config or RightThingConfig()

    @cached_property
    def speech(self) -> SpeechJudge:
        return SpeechJudge.load(Path(resolve_model(self.config.model)) / "judge")

    @cached_property
    def encoder(self) -> Any:
        return build_encoder(self.config.encoder)

    @cached_property
    def names(self) -> Tensor:
        return self.encoder.encode_text(self.speech.words)  # type: ignore[no-any-return]  # [words, D]

    def score(self, items: Sequence[Judged]) -> list[float]:
        seen = self.seen([item.output for item in items])
        return [float(found == self._due(item)) for item, found in zip(items, seen, strict=True)]

    def seen(self, outputs: Sequence[Any]) -> list[tuple[str, str] | None]:
        """Return (modality, thing) of each output; None where it is of no single modality."""
        found: list[tuple[str, str] | None] = [None] * len(outputs)
        kinds: dict[str, list[int]] = {}
        for place, output in enumerate(outputs):
            if isinstance(output, str):
                found[place] = ("text", output.strip())
            elif not isinstance(output, tuple):
                kinds.setdefault("image" if isinstance(output, Image.Image) else "audio", []).append(place)
        for kind, name in (("image", self.things_drawn), ("audio", self.speech.names_of)):
            places = kinds.get(kind, [])
            for place, thing in zip(places, name([outputs[place] for place in places]) if places else [], strict=True):
                found[place] = (kind, thing)
        return found

    def things_drawn(self, pictures: Sequence[Image.Image]) -> list[str]:
        fit = self.encoder.encode_media([picture.convert("RGB") for picture in pictures]) @ self.names.T
        return [self.speech.words[number] for number in fit.argmax(1).tolist()]

    def _due(self, item: Judged) -> tuple[str, str]:
        thing, wanted = item.conditions.get("answer"), item.conditions.get("wanted")
        if not isinstance(thing, str) or wanted not in ("text", "image", "audio"):
            raise RewardError(
                f"reward {self.name!r} found the conditions answer={thing!r} and wanted={wanted!r}; expected the name of a thing "
                "and text, image or audio"
            )
        return str(wanted), thing
