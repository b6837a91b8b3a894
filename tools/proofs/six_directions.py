"""How the six directions of `zoo:tiny-any` are judged, and what those judges make of real media: the most a model could reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from polyalign.evaluation.intervals import bootstrap
from polyalign.records.modality import decoded
from polyalign.records.schema import MediaPart, MediaRef, Record
from polyalign_any_to_any.right_thing import RightThing

RATE, SILENCE = 16_000, 4_000  # Hz, samples before and after a word


class Sphinx:
    """Pocketsphinx, a recogniser made by others, told which words there are."""

    def __init__(self, words: Sequence[str]) -> None:
        from pocketsphinx import Decoder

        self.decoder: Any = Decoder(samprate=RATE, loglevel="FATAL", lm=None)
        self.decoder.add_jsgf_string("words", f"#JSGF V1.0; grammar words; public <word> = {' | '.join(words)};")
        self.decoder.activate_search("words")

    def names_of(self, clips: Sequence[Any]) -> list[str]:
        return [self.heard(clip) for clip in clips]

    def heard(self, clip: Any) -> str:
        quiet = np.zeros(SILENCE, np.int16)
        samples = (np.clip(clip.at(RATE).samples, -1, 1) * 32_767).astype(np.int16)
        self.decoder.start_utt()
        self.decoder.process_raw(np.concatenate([quiet, samples, quiet]).tobytes(), no_search=False, full_utt=True)
        self.decoder.end_utt()
        found = self.decoder.hyp()
        return str(found.hypstr) if found is not None else ""


@cache
def sphinx() -> Sphinx:
    return Sphinx(RightThing().speech.words)


def heard_by_pocketsphinx(items: Sequence[Any]) -> list[float]:
    """1 for each clip in which pocketsphinx hears the due word, else 0; 0 for what is no clip."""
    return [float(hasattr(item.output, "samples") and sphinx().heard(item.output) == item.conditions["answer"]) for item in items]


def ceiling(records: Sequence[Record], media: Any, tokenizers: Mapping[str, Any]) -> dict[str, str]:
    """Return what share of real media each judge recognises, as they are and through the model's own codec."""
    judge = RightThing()
    judges = {
        "image": {"tiny-clip": judge.things_drawn},
        "audio": {"judge of speech": judge.speech.names_of, "pocketsphinx": sphinx().names_of},
    }
    found = {}
    for modality, whose in judges.items():
        for what in ("held-out prompts", "answers"):
            refs = {ref: str(record.conditions["answer"]) for record in records for ref in media_of(record, what, modality)}
            real = [decoded(ref, media) for ref in refs]
            again = [tokenizers[modality].decode(tokenizers[modality].encode(medium)) for medium in real]
            for who, names_of in whose.items():
                for how, seen in (("real", real), ("through the codec", again)):
                    right = [float(name == said) for name, said in zip(refs.values(), names_of(seen), strict=True)]
                    found[f"{modality}, {what}, {how}, by {who}"] = f"{bootstrap(right)} of {len(right)}"
    return found


def media_of(record: Record, what: str, modality: str) -> list[MediaRef]:
    parts = record.candidates[0].parts if what == "answers" else record.prompt[0].parts
    return [part.media for part in parts if isinstance(part, MediaPart) and part.media.modality == modality]
