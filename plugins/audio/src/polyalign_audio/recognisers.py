"""Speech recognisers that a reward asks what is said in a clip. They are judges, frozen and outside every policy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from polyalign.errors import RewardError
from polyalign_audio.modality import Clip

RATE = 16_000  # Hz, what both recognisers were made for
FULL_SCALE = 32_767


class Recogniser(ABC):
    """Returns what is said in a clip."""

    @abstractmethod
    def transcript(self, clip: Clip) -> str: ...


class PocketSphinx(Recogniser):
    """A small recogniser of American English whose model comes with the package: quick, deterministic, often wrong."""

    def __init__(self) -> None:
        try:
            from pocketsphinx import Decoder
        except ModuleNotFoundError as error:
            raise RewardError(
                "the recogniser 'pocketsphinx' is not installed: pip install 'polyalign-audio[recognise]', or name a Whisper"
            ) from error
        self.decoder: Any = Decoder(samprate=RATE, loglevel="FATAL")

    def transcript(self, clip: Clip) -> str:
        samples = (np.clip(clip.at(RATE).samples, -1, 1) * FULL_SCALE).astype(np.int16)
        self.decoder.start_utt()
        self.decoder.process_raw(samples.tobytes(), no_search=False, full_utt=True)
        self.decoder.end_utt()
        found = self.decoder.hyp()
        return str(found.hypstr) if found is not None else ""


class Whisper(Recogniser):
    """Any Whisper of transformers, greedy. ``base``: as in ``policy.base``."""

    def __init__(self, base: str) -> None:
        from transformers import WhisperForConditionalGeneration, WhisperProcessor

        from polyalign.assets import resolve_model

        folder = resolve_model(base)
        self.processor: Any = WhisperProcessor.from_pretrained(folder)
        self.model: Any = WhisperForConditionalGeneration.from_pretrained(folder).eval().requires_grad_(False)

    def transcript(self, clip: Clip) -> str:
        heard = self.processor.feature_extractor(clip.at(RATE).samples, sampling_rate=RATE, return_tensors="pt")
        ids = self.model.generate(heard["input_features"], do_sample=False)
        return str(self.processor.tokenizer.decode(ids[0], skip_special_tokens=True))


def recogniser_of(name: str) -> Recogniser:
    return PocketSphinx() if name == "pocketsphinx" else Whisper(name)
