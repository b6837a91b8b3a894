"""The data set `moving-emoji`: its labels are what the pixels say."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from polyalign.assets import resolve_dataset
from polyalign.records.files import open_file, records_of, split_files
from polyalign.records.modality import decoded
from polyalign.records.samples import MediaSource
from polyalign.records.schema import Comparison, MediaPart, Record, text_of
from polyalign_video.clip import Clip
from polyalign_video.motion import amount, move_of, named_in, progress


def split(name: str, limit: int | None = None) -> Iterator[tuple[Record, MediaSource]]:
    (file,) = (open_file(path) for path in split_files(resolve_dataset("dataset:moving-emoji"), name))
    for record in list(records_of(file))[:limit]:
        yield record, file.media


def clips_of(record: Record, media: MediaSource) -> list[Clip]:
    """Return the clips of the candidates, or of the prompt."""
    parts = [part for candidate in record.candidates for part in candidate.parts]
    parts = [part for part in parts if isinstance(part, MediaPart)] or [
        p for p in record.prompt[0].parts if isinstance(p, MediaPart)
    ]
    return [decoded(part.media, media) for part in parts]


def best_of(record: Record) -> int:
    (comparison,) = record.feedback
    assert isinstance(comparison, Comparison)
    return comparison.ranking[0][0]


def test_the_preferred_clip_makes_the_move_that_the_caption_names_and_the_others_do_not() -> None:
    count = 0
    for record, media in split("test"):
        clips, move = clips_of(record, media), named_in(text_of(record.prompt[0].parts))
        assert move == record.conditions["move"]
        scores = [progress(clip, str(move), 0.3) for clip in clips]
        assert np.argmax(scores) == best_of(record) and sorted(scores)[-2] < 0.5 < max(scores), record.id
        assert [move_of(clip) for clip in clips] == [candidate.conditions["move"] for candidate in record.candidates], record.id
        count += 1
    assert count > 80


def test_broken_orders_hold_the_same_frames_and_show_that_they_are_broken() -> None:
    seen: set[str] = set()
    for record, media in split("orders.test"):
        orders = [str(candidate.conditions["order"]) for candidate in record.candidates]
        clips = dict(zip(orders, clips_of(record, media), strict=True))
        forward = clips.pop("forward")
        assert orders[best_of(record)] == "forward" and amount(forward) >= 0.012
        for order, clip in clips.items():
            assert clip.frames.shape == (8, 32, 32, 3) and clip.duration == pytest.approx(forward.duration, rel=0.01)
            known = {frame.tobytes() for frame in forward.frames}
            assert {frame.tobytes() for frame in clip.frames} <= known
            if order == "frozen":
                assert amount(clip) == 0
            if order == "shuffled":
                assert amount(clip) > 1.3 * amount(forward)
            if order == "reversed":
                np.testing.assert_array_equal(clip.frames, forward.frames[::-1])
        seen |= clips.keys()
    assert seen == {"frozen", "shuffled", "reversed"}


def test_answers_are_true_and_held_out_emoji_are_in_no_training_file() -> None:
    for record, media in split("questions.test", 40):
        (clip,) = clips_of(record, media)
        answer = record.candidates[best_of(record)].parts
        assert text_of(answer) == record.conditions["answer"] == f"it {named_in(text_of(answer)) and text_of(answer)[3:]}"
        assert named_in(text_of(answer)) == move_of(clip)
    for prefix in ("", "questions."):
        names = [{record.conditions["name"] for record, _ in split(prefix + part)} for part in ("train", "test")]
        assert not names[0] & names[1]
