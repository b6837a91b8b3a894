"""Tiny policies with records they can read, for the cells test and for this plugin's own."""

from __future__ import annotations

import copy
import io
from functools import cache
from typing import Any

from PIL import Image, ImageDraw

from polyalign.policies.feature_cache import FeatureCache
from polyalign.policies.fixture import PolicyFixture, grid
from polyalign.policies.pipelines.config import AttentionLoraConfig
from polyalign.policies.pipelines.families import family_of
from polyalign.policies.pipelines.frozen import FrozenPipeline
from polyalign.records.schema import Candidate, Comparison, MediaPart, Message, Record
from polyalign.records.store import MemoryMedia
from polyalign_text_to_image import tiny
from polyalign_text_to_image.config import TextToImageConfig
from polyalign_text_to_image.families import FAMILIES
from polyalign_text_to_image.policy import TextToImagePolicy

COLOURS = ("red", "green", "blue", "orange", "purple", "black")
SHAPES = ("disc", "square")
PIPELINES = {"flow": tiny.flow, "unet": tiny.unet, "unet_xl": tiny.unet_xl}
RESOLUTION = {"flow": 16, "unet": 32, "unet_xl": 32}  # smaller than the pipelines' own: 256 latents are enough to test on
_FEATURES = {name: FeatureCache() for name in PIPELINES}  # frozen encoders are the same in every copy of a fixture


def drawing(colour: str, shape: str, side: int = 32) -> bytes:
    """Return a PNG of one filled shape on white."""
    picture = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(picture)
    box = (side // 4, side // 4, 3 * side // 4, 3 * side // 4)
    (draw.ellipse if shape == "disc" else draw.rectangle)(box, fill=colour)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def drawings() -> tuple[list[Record], MemoryMedia]:
    """Return six comparisons (a disc is preferred to a square) and three grids (colours; tagged "grid"), with their media."""
    media = MemoryMedia()

    def picture(colour: str, shape: str) -> tuple[MediaPart, ...]:
        return (MediaPart(media=media.add(drawing(colour, shape), "image", "image/png")),)

    records = [
        Record(
            id=f"pair-{colour}",
            prompt=f"a {colour} shape",  # type: ignore[arg-type]
            candidates=(Candidate(parts=picture(colour, "disc")), Candidate(parts=picture(colour, "square"))),
            feedback=(Comparison(ranking=((0,), (1,))),),
        )
        for colour in COLOURS
    ]
    for first, second in zip(COLOURS[::2], COLOURS[1::2], strict=True):
        asked = [(Message(role="user", parts=f"a {colour} disc"),) for colour in (first, second)]  # type: ignore[arg-type]
        answers = [picture(first, "disc"), picture(second, "disc")]
        records.append(grid(f"grid-{first}-{second}", asked, answers, columns=False))
    return records, media


@cache
def _pipeline(name: str) -> tuple[FrozenPipeline, Any]:
    made = PIPELINES[name]()
    family = family_of(FAMILIES, type(made).__name__, name)
    return FrozenPipeline(made, family), getattr(made, family.denoiser)


def policy(pipeline: str, seed: int = 0, **settings: Any) -> TextToImagePolicy:
    """Return a fresh tiny policy ("flow", "unet" or "unet_xl"), with LoRA of rank 4 unless ``lora`` says otherwise."""
    frozen, network = _pipeline(pipeline)
    options = {"lora": AttentionLoraConfig(rank=4), "resolution": RESOLUTION[pipeline], **settings}
    config = TextToImageConfig(base=f"tiny {pipeline}", **options)
    made = TextToImagePolicy(frozen.assemble(copy.deepcopy(network)), config, seed)
    made.collator.features = _FEATURES[pipeline]
    return made


def drawn_by(kind: str) -> dict[str, Any]:
    """Return decoding options: three steps of a sampler."""
    return {"sampler": {"kind": kind, "steps": 3}}


def flow() -> PolicyFixture:
    """Return the Stable Diffusion 3 fixture."""
    records, media = drawings()
    idle = ("transformer_blocks.0.attn.add_q_proj",)
    return PolicyFixture(
        lambda: policy("flow"), records, media, idle=idle, decoding=drawn_by("sde"), decoding_whole=drawn_by("ode")
    )


def unet() -> PolicyFixture:
    """Return the Stable Diffusion 1.x fixture."""
    records, media = drawings()
    return PolicyFixture(lambda: policy("unet"), records, media, decoding=drawn_by("ddim"), decoding_whole=drawn_by("ode"))


def fixtures() -> tuple[PolicyFixture, ...]:
    """Return one fixture per architecture; the cells test runs every objective on each."""
    return flow(), unet()
