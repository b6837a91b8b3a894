"""The video-language policy: clips, pictures and text in one prompt, scored as transformers itself would."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from polyalign.errors import RecordError
from polyalign.records.samples import Sample
from polyalign.records.schema import MediaPart, Message, TextPart
from polyalign.records.store import MemoryMedia
from polyalign_video.config import VideoLanguageConfig
from polyalign_video.fixture import drawing, policy, tiny_qwen
from polyalign_video.modality import VideoModality
from polyalign_video.video_language import VideoLanguagePolicy, build

MEDIA = MemoryMedia()
Piece = str | MediaPart


def clip(move: str, frames: int = 4, side: int = 16) -> MediaPart:
    data = VideoModality().encode(drawing(move, frames, side), "image/webp")
    return MediaPart(media=MEDIA.add(data, "video", "image/webp"))


def picture() -> MediaPart:
    buffer = io.BytesIO()
    Image.fromarray(drawing("left").frames[0]).save(buffer, "PNG")
    return MediaPart(media=MEDIA.add(buffer.getvalue(), "image", "image/png"))


def sample(name: str, answer: str, *prompt: Piece) -> Sample:
    parts = tuple(TextPart(text=piece) if isinstance(piece, str) else piece for piece in prompt)
    return Sample(name, (Message(role="user", parts=parts),), (TextPart(text=answer),), name, media=MEDIA)


def wide(**settings: object) -> VideoLanguagePolicy:
    """A tiny policy whose weights are drawn so wide that a feature in a wrong place shows."""
    model, processor = tiny_qwen()
    with torch.no_grad():
        torch.manual_seed(0)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
    return policy((model, processor), lora=None, max_length=300, **settings).eval()


def test_scores_are_those_of_transformers_own_processor_and_forward() -> None:
    """Two clips and a picture in one prompt, with text between; positions in time, height and width are the model's own."""
    found = wide()
    asked = ("First ", clip("left"), " then ", picture(), " and ", clip("up", frames=3), "?")
    item = sample("mixed", "it moves", *asked)
    scores = found(found.collate([item, sample("text", "no", "Hm?")]), frozenset())
    processor, kinds = found.encoder.processor, found.encoder.kinds
    text = found.encoder.rendered(item.prompt)
    clips = [
        kinds["video"].open(MEDIA.read(part.media))
        for part in asked
        if isinstance(part, MediaPart) and part.media.modality == "video"
    ]
    pictures = [kinds["image"].open(MEDIA.read(asked[3].media))]  # type: ignore[union-attr]
    given = kinds["video"].arguments(clips) | kinds["image"].arguments(pictures)
    inputs = processor(text=[text + "it moves<|end|>"], **given, return_tensors="pt")
    inputs.pop("video_metadata", None)
    inputs["second_per_grid_ts"] = torch.as_tensor(inputs["second_per_grid_ts"])
    with torch.no_grad():
        logits = found.model(**inputs).logits[0].log_softmax(-1)
    ids = inputs["input_ids"][0]
    count = int(scores.mask[0].sum())
    expected = logits[:-1].gather(1, ids[1:, None])[-count:, 0]
    torch.testing.assert_close(scores.log_probs[0, 0, :count], expected, rtol=1e-4, atol=1e-4)
    assert inputs["video_grid_thw"].tolist() == [[2, 4, 4], [2, 4, 4]]  # an odd number of frames is filled up


@pytest.mark.parametrize("tower", ["frozen", "full"])
def test_the_tower_runs_once_for_each_distinct_shape_however_many_prompts_share_a_clip(tower: str) -> None:
    found = policy(lora=None, tower=tower)
    seen: list[int] = []
    found.model.model.visual.patch_embed.register_forward_hook(lambda module, given, output: seen.append(len(output)))
    shared = clip("left")
    batch = found.collate([sample(str(n), "yes", shared, f"{n}?") for n in range(3)] + [sample("p", "yes", picture(), "?")])
    found(batch, frozenset())
    assert sorted(seen) == [16, 32]  # the picture's 16 patches; 2 pairs of frames of the one clip


def test_the_order_and_the_rate_of_frames_matter() -> None:
    found = wide()
    fast, codec = drawing("left"), VideoModality()
    slow = type(fast)(fast.frames, fast.fps / 4)
    parts = [
        MediaPart(media=MEDIA.add(codec.encode(made, "image/webp"), "video", "image/webp"))
        for made in (fast, drawing("right"), slow)
    ]
    scores = found(found.collate([sample(str(n), "it moves", part, "?") for n, part in enumerate(parts)]), frozenset())
    left, right, slowly = scores.log_probs.sum((1, 2)).tolist()
    assert abs(left - right) > 1e-3 and abs(left - slowly) > 1e-3


@pytest.mark.parametrize(("settings", "tokens"), [({"frames": 8}, 16), ({"frames": 2}, 4), ({"frames": 8, "fps": 2.0}, 8)])
def test_frames_are_a_budget_of_tokens(settings: dict[str, float], tokens: int) -> None:
    """Four tokens a pair of frames; eight frames at 4 fps last 2 s, so 2 fps look at four."""
    found = policy(**settings)
    row = found.collator.encode(sample("a", "yes", clip("left", frames=8), "?"))
    assert row.prompt_media[0].tokens == tokens == sum(token in found.encoder.media_ids for token in row.prompt)


def test_a_clip_that_does_not_fit_names_what_to_lower() -> None:
    found = policy(frames=64, max_length=80, max_response=8)
    with pytest.raises(RecordError, match=r"takes 80 tokens for its 1 clips .* lower policy.frames"):
        found.collate([sample("a", "yes", clip("left", frames=40), "?")])
    with pytest.raises(RecordError, match="holds a audio part, but this policy reads text"):
        sound = MediaPart(media=MEDIA.add(b"sound", "audio", "audio/wav"))
        found.collate([sample("a", "yes", sound)])


def test_a_saved_policy_is_built_again_with_its_processor(tmp_path: Path) -> None:
    first = policy(lora=None)
    first.save(tmp_path / "model")
    again = build(VideoLanguageConfig(base=str(tmp_path / "model"), frames=4, max_length=160, max_response=48))
    items = [sample("a", "yes", clip("left"), "What?"), sample("b", "no", picture(), "What?")]
    expected, found = (made.eval()(made.collate(items), frozenset()).log_probs for made in (first, again))
    np.testing.assert_allclose(found.detach(), expected.detach(), atol=1e-5)
