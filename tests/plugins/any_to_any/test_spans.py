"""Where media may begin, what they may hold and where they end: decoding and scoring follow one grammar."""

from __future__ import annotations

import torch

from polyalign_any_to_any.fixture import small_media
from polyalign_any_to_any.media.base import MediaTokenizer
from polyalign_any_to_any.spans import Span, Vocabulary, Writing, pieces

WORDS = 10  # ids 0 to 9 are words; 9 ends a turn
END = (9,)


class Frames(MediaTokenizer):
    """Two codebooks of two codes, at most three frames: codes 0 and 1 come first, then 2 or 3."""

    kind, modality, codes, length, longest, unit = "frames", "audio", 4, None, 6, 2

    def encode(self, medium: object) -> list[int]:
        return [0, 2]

    def decode(self, codes: object) -> object:
        return codes

    def allowed(self, place: int) -> range:
        return range(0, 2) if place == 0 else range(2, 4)


def vocabulary() -> Vocabulary:
    """Pictures of four of eight codes (10 to 19), in lines of two (break 20); then frames of two codebooks (21 to 26)."""
    picture, _ = small_media()
    image = Span(picture, (10,), tuple(range(12, 20)), (11,), line=2, line_break=20)
    return Vocabulary(27, [image, Span(Frames(), (21,), (23, 24, 25, 26), (22,))])


def written(choose: list[int], want: str | None = None, room: int = 40) -> tuple[list[int], list[set[int]]]:
    """Write what ``choose`` picks wherever there is a choice; return the ids, and what could be chosen from each time."""
    writing, ids, choices = Writing(vocabulary(), END, want, room), [], []
    for _ in range(room):
        mask = writing.mask()
        if mask is None:
            token = writing.forced[0]
        else:
            choices.append(set(mask.nonzero().flatten().tolist()))
            if not choose:
                break
            token = choose.pop(0)
            assert token in choices[-1]
        writing.write(token)
        ids.append(token)
    return ids, choices


def test_a_picture_has_its_length_its_line_breaks_and_its_end() -> None:
    ids, choices = written([12, 19, 13, 14], want="image")
    assert ids == [10, 12, 19, 20, 13, 14, 20, 11, 9]  # head, two lines with their breaks, tail, end of turn
    assert choices[:4] == [set(range(12, 20))] * 4


def test_sound_may_end_after_any_whole_frame_but_not_before_the_first() -> None:
    ids, choices = written([23, 26, 22], want="audio")
    assert choices[:3] == [{23, 24}, {25, 26}, {23, 24, 22}]
    assert ids == [21, 23, 26, 22, 9]
    assert written([23, 25, 24, 25, 23, 26], want="audio")[0] == [21, 23, 25, 24, 25, 23, 26, 22, 9]  # full: the end is forced


def test_media_begin_only_where_they_fit_and_codes_never_stand_among_words() -> None:
    assert written([], room=40)[1] == [{*range(10), 10, 21}]
    assert written([], room=9)[1] == [{*range(10), 10, 21}]  # both take 8 ids at most, and a word must still fit
    assert written([], room=8)[1] == [set(range(10))]
    assert written([], want="text")[1] == [set(range(10))]


def test_scores_are_normalised_over_what_may_stand_in_a_place() -> None:
    known = vocabulary()
    previous = torch.tensor([3, 10, 12, 20, 11, 21, 23, 25])
    reachable = [set(row.nonzero().flatten().tolist()) for row in known.allowed[known.follows[previous]]]
    words, codes = {*range(10), 10, 21}, set(range(12, 20))
    assert reachable == [words, codes, codes, codes, words, {22, 23, 24}, {25, 26}, {22, 23, 24}]
    log_probs = known.masked(torch.randn(8, 27), known.follows[previous]).log_softmax(-1)
    for row, ids in zip(log_probs, reachable):
        torch.testing.assert_close(row[sorted(ids)].exp().sum(), torch.tensor(1.0))
    assert known.unscored == {11, 20}  # breaks and ends of pictures are never chosen; where sound ends is


def test_responses_are_taken_apart_as_they_were_put_together() -> None:
    known = vocabulary()
    image, audio = known.spans
    ids = [1, *image.block([0, 7, 3, 3]), 2, 5, *audio.block([1, 2]), *audio.block([0, 3]), 9]
    assert pieces(known, ids) == [
        ("text", [1]),
        ("image", [0, 7, 3, 3]),
        ("text", [2, 5]),
        ("audio", [1, 2]),
        ("audio", [0, 3]),
        ("text", [9]),
    ]
