"""Tiny random any-to-any models with records of all their media: what the cells test and this plugin's own tests train on."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from polyalign.plugins.registry import registry
from polyalign.policies.base import Policy
from polyalign.policies.fixture import PolicyFixture, grid
from polyalign.policies.tiny_language import byte_tokenizer, tiny_llama
from polyalign.records.schema import Candidate, Comparison, MediaPart, Message, Part, Record, TextPart
from polyalign.records.store import MemoryMedia
from polyalign_any_to_any.config import AnyToAnyConfig
from polyalign_any_to_any.media.pictures import PictureTokenizer
from polyalign_any_to_any.media.speech import RATE, SpeechTokenizer, clip_of
from polyalign_any_to_any.policy import assembled

COLOURS = ("red", "green", "blue", "orange")
PITCHES = (300, 500, 800, 1200)  # Hz


def small_media() -> tuple[PictureTokenizer, SpeechTokenizer]:
    """Return random tokenizers: pictures of 4 codes, sounds of up to 6."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return PictureTokenizer(side=8, codes=8), SpeechTokenizer(codes=8, width=8, latent=4, longest=6)


def policy(seed: int = 0, **settings: Any) -> Policy:
    """Return a fresh tiny policy over text, pictures and sounds."""
    tokenizer = byte_tokenizer()
    config = AnyToAnyConfig(base="tiny", **{"max_length": 160, "max_response": 48, **settings})
    return assembled(tiny_llama(len(tokenizer), layers=1), tokenizer, small_media(), config, seed)


def picture(colour: str, side: int = 16) -> Image.Image:
    made = Image.new("RGB", (side, side), "white")
    ImageDraw.Draw(made).ellipse((2, 2, side - 3, side - 3), fill=colour)
    return made


def tone(pitch: int, seconds: float = 0.12) -> Any:
    return clip_of(0.3 * np.sin(2 * np.pi * pitch * np.arange(int(seconds * RATE)) / RATE))


def records(modalities: tuple[str, ...] = ("image", "audio")) -> tuple[list[Record], MemoryMedia]:
    """Return four comparisons under one prompt each, with every medium on both sides, then two grids."""
    media = MemoryMedia()
    codecs = {name: registry().get("modalities", name).load()() for name in ("image", "audio")}

    def image(number: int) -> Part:
        return MediaPart(media=media.add(codecs["image"].encode(picture(COLOURS[number]), "image/png"), "image", "image/png"))

    def audio(number: int) -> Part:
        return MediaPart(media=media.add(codecs["audio"].encode(tone(PITCHES[number]), "audio/flac"), "audio", "audio/flac"))

    made = {"image": image, "audio": audio}

    def asked(number: int, first: str) -> tuple[Message, ...]:
        return (Message(role="user", parts=(made[first](number), TextPart(text="Again?"))),)

    def told(number: int, last: str = "") -> tuple[Part, ...]:
        parts = (TextPart(text=COLOURS[number]), *(made[modality](number) for modality in modalities))
        return (*parts, TextPart(text=last)) if last else parts

    found = []
    for number in range(4):
        # Last words of their own, since untrained models hardly see which medium belongs to which.
        candidates = (Candidate(parts=told(number, "Yes.")), Candidate(parts=told((number + 1) % 4, "Hm?")))
        prompt = asked(number, modalities[number % len(modalities)])
        found.append(
            Record(id=f"pair-{number}", prompt=prompt, candidates=candidates, feedback=(Comparison(ranking=((0,), (1,))),))
        )
    for first, second in ((0, 1), (2, 3)):
        shown = [asked(number, modalities[0]) for number in (first, second)]
        found.append(grid(f"grid-{first}", shown, [told(first), told(second)]))
    return found, media


def fixture() -> PolicyFixture:
    """Return what the cells test needs."""
    made, media = records()
    return PolicyFixture(build=partial(policy), records=made, media=media, decoding={"max_new_tokens": 16})
