"""Rewards that listen: words, loudness, pitch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyalign.errors import RewardError
from polyalign.records.files import open_file, records_of
from polyalign.records.modality import decoded
from polyalign.rewards.base import Judged
from polyalign_audio.clip_rules import Loudness, Pitch, median_pitch
from polyalign_audio.clips import chirp
from polyalign_audio.config import LoudnessConfig, PitchConfig, WordAccuracyConfig
from polyalign_audio.modality import Clip
from polyalign_audio.shipped import spoken_emoji
from polyalign_audio.word_accuracy import WordAccuracy, word_accuracy, word_errors, words


def heard(output: Any, answer: Any = "red apple") -> Judged:
    return Judged((), output, conditions={"answer": answer})


@pytest.mark.parametrize(
    ("said", "due", "errors"),
    [
        ("Red apple.", "red apple", 0),
        ("the red apple", "red apple", 1),  # put in
        ("apple", "red apple", 1),  # left out
        ("read apple", "red apple", 1),  # changed
        ("apple red", "red apple", 2),
        ("", "red apple", 2),
        ("a red apple pie", "red apple", 2),
    ],
)
def test_word_errors_are_counted_by_hand(said: str, due: str, errors: int) -> None:
    assert word_errors(words(said), words(due)) == errors
    assert word_accuracy(said, due) == max(0.0, 1 - errors / 2)


def test_word_errors_equal_those_of_brute_force() -> None:
    """Against the recursion of the definition, on random words from three."""
    from functools import cache

    @cache
    def distance(a: tuple[str, ...], b: tuple[str, ...]) -> int:
        if not a or not b:
            return len(a) + len(b)
        return min(distance(a[1:], b) + 1, distance(a, b[1:]) + 1, distance(a[1:], b[1:]) + (a[0] != b[0]))

    draw = np.random.default_rng(0)
    for _ in range(200):
        a, b = (tuple(draw.choice(list("xyz"), draw.integers(0, 6))) for _ in range(2))
        assert word_errors(list(a), list(b)) == distance(a, b)


def test_transcripts_are_judged_as_they_stand_and_clips_are_heard_once_each() -> None:
    reward, asked = WordAccuracy(), []

    class Deaf:
        def transcript(self, clip: Clip) -> str:
            asked.append(clip)
            return "red bus"

    reward.__dict__["recogniser"] = Deaf()
    clip = chirp(0.1, 8000)
    assert reward.score([heard("RED, apple!"), heard(clip), heard(Clip(clip.samples.copy(), 8000))]) == [1.0, 0.5, 0.5]
    assert len(asked) == 1
    assert WordAccuracy(WordAccuracyConfig(exact=True)).score([heard("red apple"), heard("red")]) == [1.0, 0.0]


@pytest.mark.parametrize("answer", [None, "", 3, "..."])
def test_an_answer_without_words_is_an_error(answer: Any) -> None:
    with pytest.raises(RewardError, match="under the condition 'answer'; expected words"):
        WordAccuracy().score([heard("red", answer)])


def test_other_outputs_are_refused() -> None:
    for reward in (WordAccuracy(), Loudness(), Pitch()):
        with pytest.raises(RewardError, match="judges sound, but the response is a int"):
            reward.score([heard(3)])


@pytest.mark.parametrize("hertz", [80.0, 120.0, 220.0, 440.0])
@pytest.mark.parametrize("rate", [8000, 22_050])
def test_the_pitch_of_a_buzz_is_found(hertz: float, rate: int) -> None:
    """Ten harmonics, as a voice has; 3 % is about half a semitone, and a lag of one sample at 440 Hz and 8 kHz is 5 %."""
    time = np.arange(rate // 2) / rate
    buzz = sum(np.sin(2 * np.pi * hertz * k * time) / k for k in range(1, 11) if hertz * k < rate / 2)
    found = median_pitch(Clip((0.1 * buzz).astype(np.float32), rate))
    assert found == pytest.approx(hertz, rel=max(0.03, hertz / rate))


def test_noise_and_silence_have_no_pitch_and_keep_no_limits() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 8000).astype(np.float32)
    assert median_pitch(Clip(np.zeros(8000, np.float32), 8000)) is None
    limits = Pitch(PitchConfig(minimum=50, maximum=600))
    assert limits.score([heard(Clip(np.zeros(8000, np.float32), 8000)), heard(Clip(noise[:100], 8000))]) == [0.0, 0.0]


def test_loudness_has_a_floor_a_ceiling_and_a_peak() -> None:
    """A sine of amplitude 0.3 has the root mean square 0.3 / sqrt(2) = 0.212."""
    clip = chirp(0.5, 8000)
    for settings, kept in (
        ({}, 1),
        ({"minimum": 0.3}, 0),
        ({"maximum": 0.1}, 0),
        ({"minimum": 0.2, "maximum": 0.22}, 1),
        ({"peak": 0.2}, 0),
    ):
        assert Loudness(LoudnessConfig(**settings)).score([heard(clip)]) == [kept]


def preferences(aspect: str, split: str = "test") -> list[tuple[Clip, Clip, Any]]:
    file = open_file(spoken_emoji() / f"{split}.jsonl")
    found = []
    for record in records_of(file):
        if f"aspect:{aspect}" in record.tags:
            (better,), (worse,) = record.feedback[0].ranking
            pair = [decoded(record.candidates[number].parts[0].media, file.media) for number in (better, worse)]
            found.append((*pair, record))
    return found


def test_speed_and_pitch_of_every_held_out_preference_are_as_asked_for() -> None:
    """What the labels say can be measured on the clips: slow speech is longer, a high voice has the higher pitch. The measure of
    pitch takes a harmonic for the voice in a few clips of one voice."""
    for better, worse, record in preferences("speed"):
        assert (better.duration > worse.duration) == (record.conditions["speed"] == "slow"), record.id
    right = [
        (median_pitch(better) or 0) > (median_pitch(worse) or 0) if record.conditions["pitch"] == "high" else
        (median_pitch(better) or 0) < (median_pitch(worse) or 0)
        for better, worse, record in preferences("pitch")
    ]  # fmt: skip
    assert np.mean(right) > 0.9


@pytest.mark.slow
def test_pocketsphinx_hears_the_words_that_were_asked_for_rather_than_others() -> None:
    pytest.importorskip("pocketsphinx", reason="needs polyalign-audio[recognise]")
    reward = WordAccuracy()
    pairs = preferences("words")
    scores = [
        reward.score([heard(clip, record.conditions["answer"]) for clip in (better, worse)]) for better, worse, record in pairs
    ]
    right, wrong = np.array(scores).mean(0)
    assert right > wrong + 0.05, (right, wrong)


def test_the_shipped_splits_share_neither_emoji_nor_voice() -> None:
    folder = spoken_emoji()

    def seen(name: str, condition: str) -> set[Any]:
        return {record.conditions[condition] for record in records_of(open_file(folder / name))}

    for condition in ("hexcode", "voice", "words"):
        assert not seen("train.jsonl", condition) & seen("test.jsonl", condition)
    assert len(list((folder / "media").iterdir())) == 3680
    assert sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()) < 16e6
