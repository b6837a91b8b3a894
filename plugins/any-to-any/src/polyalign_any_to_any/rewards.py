"""Whether a response is of the thing that its record's answer names, whatever it is made of: a word, a picture or speech."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch.nn.functional import normalize

from polyalign.assets import resolve_model
from polyalign.errors import RewardError
from polyalign.rewards.base import Judged, Reward
from polyalign_any_to_any.config import RightThingConfig
from polyalign_any_to_any.speech_judge import SpeechJudge
from polyalign_audio.modality import Clip
from polyalign_image.clip import ClipEncoder
from polyalign_image.config import ClipConfig


class RightThing(Reward):
    """1 for the right thing, 0 for another. A word must be the answer's; of a picture, CLIP must find the answer's caption the
    closest of all; of a clip, a classifier of spoken words must hear the answer. Neither judge had a part in making the model
    that is judged. Chance is one over the number of words that the classifier knows."""

    def __init__(self, config: RightThingConfig) -> None:
        self.judge = SpeechJudge.load(Path(resolve_model(config.model)) / "judge")
        self.clip = ClipEncoder(ClipConfig(model=config.clip))
        self.captions = normalize(self.clip.encode_text(self.judge.words), dim=-1)

    def score(self, items: Sequence[Judged]) -> list[float]:
        """Return 1.0 or 0.0 per item. Raises `RewardError` for a record without an answer, or one that no judge knows."""
        for item in items:
            if item.conditions.get("answer") not in self.judge.words:
                raise RewardError(
                    f"reward 'right_thing' wants the condition 'answer', one of {', '.join(self.judge.words)}; "
                    f"found {item.conditions.get('answer')!r}"
                )
        named: dict[int, str] = {at: item.output.strip() for at, item in enumerate(items) if isinstance(item.output, str)}
        pictures = {at: item.output for at, item in enumerate(items) if isinstance(item.output, Image.Image)}
        if pictures:
            fit = normalize(self.clip.encode_media(list(pictures.values())), dim=-1) @ self.captions.T
            named |= dict(zip(pictures, (self.judge.words[best] for best in fit.argmax(1).tolist()), strict=True))
        clips = {at: item.output for at, item in enumerate(items) if isinstance(item.output, Clip)}
        if clips:
            named |= dict(zip(clips, self.judge.names_of(list(clips.values())), strict=True))
        return [float(named.get(at) == item.conditions["answer"]) for at, item in enumerate(items)]
