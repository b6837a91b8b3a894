"""Tiny text-to-video policies with records they can read, for the cells test and for this plugin's own."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import numpy as np

from polyalign.policies.feature_cache import FeatureCache
from polyalign.policies.fixture import PolicyFixture, grid
from polyalign.policies.pipelines.config import AttentionLoraConfig
from polyalign.policies.pipelines.families import family_of
from polyalign.policies.pipelines.frozen import FrozenPipeline
from polyalign.records.schema import Candidate, Comparison, MediaPart, Message, Record
from polyalign.records.store import MemoryMedia
from polyalign_video.clip import Clip
from polyalign_video.modality import VideoModality
from polyalign_video.text_to_video import tiny
from polyalign_video.text_to_video.config import TextToVideoConfig
from polyalign_video.text_to_video.families import FAMILIES
from polyalign_video.text_to_video.policy import TextToVideoPolicy

COLOURS = {"red": (220, 20, 20), "green": (20, 160, 40), "blue": (30, 40, 220), "black": (0, 0, 0)}
SIDE, FRAMES, FPS = 16, 5, 5.0
PIPELINES = {"wan": tiny.wan, "cogvideox": tiny.cogvideox, "ltx": tiny.ltx}
_FEATURES = {name: FeatureCache() for name in PIPELINES}  # frozen encoders are the same in every copy of a fixture


def moving(colour: str, moves: bool) -> Clip:
    """Return a square of a colour on white that crosses the clip from left to right, or does not move."""
    frames = np.full((FRAMES, SIDE, SIDE, 3), 255, dtype=np.uint8)
    for number, frame in enumerate(frames):
        left = 2 + 2 * number if moves else 6
        frame[6:10, left : left + 4] = COLOURS[colour]
    return Clip(frames, FPS)


def clips() -> tuple[list[Record], MemoryMedia]:
    """Return four comparisons (a square that moves is preferred to one that does not) and two grids (colours), with media."""
    media, codec = MemoryMedia(), VideoModality()

    def shown(colour: str, moves: bool) -> tuple[MediaPart, ...]:
        return (MediaPart(media=media.add(codec.encode(moving(colour, moves), "image/webp"), "video", "image/webp")),)

    records = [
        Record(
            id=f"pair-{colour}",
            prompt=f"a {colour} square",  # type: ignore[arg-type]
            candidates=(Candidate(parts=shown(colour, True)), Candidate(parts=shown(colour, False))),
            feedback=(Comparison(ranking=((0,), (1,))),),
        )
        for colour in COLOURS
    ]
    for first, second in (("red", "green"), ("blue", "black")):
        asked = [(Message(role="user", parts=f"a moving {colour}"),) for colour in (first, second)]  # type: ignore[arg-type]
        answers = [shown(first, True), shown(second, True)]
        records.append(grid(f"grid-{first}-{second}", asked, answers, columns=False))
    return records, media


@cache
def _pipeline(name: str) -> tuple[FrozenPipeline, Any]:
    made = PIPELINES[name]()
    family = family_of(FAMILIES, type(made).__name__, name)
    return FrozenPipeline(made, family), getattr(made, family.denoiser)


def policy(pipeline: str, seed: int = 0, **settings: Any) -> TextToVideoPolicy:
    """Return a fresh tiny policy ("wan", "cogvideox" or "ltx"), with LoRA of rank 4 unless ``lora`` says otherwise."""
    frozen, network = _pipeline(pipeline)
    side = 32 if pipeline == "ltx" else SIDE  # the least that its call accepts
    size = {"frames": FRAMES, "height": side, "width": side, "max_sequence_length": tiny.TEXT_LENGTH, "fps": FPS}
    config = TextToVideoConfig(base=f"tiny {pipeline}", **({"lora": AttentionLoraConfig(rank=4)} | size | settings))
    made = TextToVideoPolicy(frozen.assemble(copy.deepcopy(network)), config, seed)
    made.collator.features = _FEATURES[pipeline]
    return made


def fixtures() -> tuple[PolicyFixture, ...]:
    """Return one fixture per architecture, LTX with a decision per latent frame; the cells test runs objectives on each."""
    records, media = clips()

    def fixture(pipeline: str, kind: str, **settings: Any) -> PolicyFixture:
        drawn = {name: {"sampler": {"kind": name, "steps": 3}} for name in (kind, "ode")}
        rate = 1e-3 if pipeline == "ltx" else 3e-4  # larger steps leave the region that awm and gspo trust at once
        return PolicyFixture(
            lambda: policy(pipeline, **settings), records, media, rate, decoding=drawn[kind], decoding_whole=drawn["ode"]
        )

    return fixture("wan", "sde"), fixture("cogvideox", "ddim"), fixture("ltx", "sde", per_frame=True)
