"""The zoo's entry in the plugin list. Importing it costs milliseconds: no torch, no model is opened."""

from __future__ import annotations

from collections.abc import Iterable

from polyalign.plugins.hookspecs import hookimpl
from polyalign.plugins.specs import DatasetSpec, ModelSpec


@hookimpl
def polyalign_models() -> Iterable[ModelSpec]:
    return [
        ModelSpec(
            name="tiny-any",
            summary="Llama of transformers' layout with codes of media: words, emoji and spoken words into each other",
            target="polyalign_zoo.shipped:tiny_any",
            licence="Apache-2.0",
        ),
        ModelSpec(
            name="tiny-clip",
            summary="CLIP of open_clip's layout, trained on emoji in two drawing styles and their captions",
            target="polyalign_zoo.shipped:tiny_clip",
            licence="Apache-2.0",
        ),
        ModelSpec(
            name="tiny-listener",
            summary="Qwen2-Audio of transformers' layout that describes tunes of a few notes and often hears a flute for a reed",
            target="polyalign_zoo.shipped:tiny_listener",
            licence="Apache-2.0",
        ),
        ModelSpec(
            name="tiny-musicgen",
            summary="MusicGen of transformers' layout that plays tunes of a few notes, trained on tunes made by a program",
            target="polyalign_zoo.shipped:tiny_musicgen",
            licence="Apache-2.0",
        ),
        ModelSpec(
            name="tiny-sd",
            summary="text-to-image pipeline of diffusers' layout, trained on emoji in two drawing styles mixed",
            target="polyalign_zoo.shipped:tiny_sd",
            licence="Apache-2.0",
        ),
        ModelSpec(
            name="tiny-t2v",
            summary="text-to-video pipeline of CogVideoX's layout that moves coloured shapes, trained on clips made by a program",
            target="polyalign_zoo.shipped:tiny_t2v",
            licence="Apache-2.0",
        ),
        ModelSpec(
            name="tiny-vlm",
            summary="LLaVA of transformers' layout that describes emoji and answers questions about them",
            target="polyalign_zoo.shipped:tiny_vlm",
            licence="Apache-2.0",
        ),
    ]


@hookimpl
def polyalign_datasets() -> Iterable[DatasetSpec]:
    return [
        DatasetSpec(
            name="emoji-styles",
            summary="one caption, two drawing styles: style B over style A, and contrast grids within a subgroup",
            target="polyalign_zoo.shipped:emoji_styles",
            licence="Noto Emoji pictures Apache-2.0, Twemoji pictures CC-BY-4.0, captions MIT",
        )
    ]
