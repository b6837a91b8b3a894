"""Rewards that listen to generated sound: notes, speech quality, fit to the prompt."""

from __future__ import annotations

import random
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyalign.errors import PolyalignError, RewardError
from polyalign.records.schema import Message, TextPart
from polyalign.rewards.base import Judged
from polyalign_audio.clap import ClapEncoder, ClapScore
from polyalign_audio.dnsmos import DnsMos
from polyalign_audio.generation_config import ClapConfig, DnsMosConfig, TuneRuleConfig
from polyalign_audio.generation_fixture import tone
from polyalign_audio.modality import Clip
from polyalign_audio.pipeline_fixture import clap_sizes, roberta_words
from polyalign_audio.tunes import TuneRule, notes_of, pitch_of

RATE = 8000
with_speechmos = pytest.mark.skipif(
    find_spec("speechmos") is None or find_spec("onnxruntime") is None, reason="needs the extra polyalign-audio[quality]"
)


def heard(text: str, output: Any) -> Judged:
    return Judged((Message(role="user", parts=(TextPart(text=text),)),), output)


def tune(pitches: list[float], seconds: float = 0.28, overtones: bool = False) -> Clip:
    """Return notes one after another with 40 ms of silence between them."""
    time = np.arange(round((seconds - 0.04) * RATE)) / RATE
    parts = []
    for hertz in pitches:
        note = np.sin(2 * np.pi * hertz * time) + overtones * (
            0.9 * np.sin(4 * np.pi * hertz * time) + 0.7 * np.sin(6 * np.pi * hertz * time)
        )
        parts += [0.3 * note, np.zeros(round(0.04 * RATE))]
    return Clip(np.concatenate(parts).astype(np.float32), RATE)


@pytest.mark.parametrize("hertz", [110.0, 196.0, 262.0, 523.0, 700.0])
@pytest.mark.parametrize("overtones", [False, True])
def test_pitch_is_the_fundamental_even_under_strong_overtones(hertz: float, overtones: bool) -> None:
    window = tune([hertz], 0.08, overtones).samples[: RATE // 25]
    assert pitch_of(window, RATE) == pytest.approx(hertz, rel=0.02)


def test_noise_and_silence_have_no_pitch() -> None:
    noise = np.random.default_rng(0).normal(size=RATE).astype(np.float32) * 0.3
    assert notes_of(Clip(noise, RATE)) == [] == notes_of(Clip(np.zeros(RATE, np.float32), RATE))


def test_notes_are_found_where_they_begin() -> None:
    found = notes_of(tune([200.0, 250.0, 250.0]))
    assert [note.start for note in found] == pytest.approx([0.0, 0.28, 0.56], abs=0.041)
    assert [note.pitch for note in found] == pytest.approx([200.0, 250.0, 250.0], rel=0.02)


@pytest.mark.parametrize(
    ("prompt", "clip", "expected"),
    [
        ("a slow rising tune on a low flute", tune([150, 200, 250]), 1.0),
        ("a slow falling tune on a low flute", tune([150, 200, 250]), 2 / 3),
        ("a fast rising tune on a high flute", tune([150, 200, 250]), 1 / 3),
        ("a rising tune", tune([150, 250, 200]), 0.5),  # one step of two goes up
        ("a fast falling tune", tune([600, 500, 400], 0.16), 1.0),
        ("a rising tune", tune([200]), 0.0),  # one note is no tune
    ],
)
def test_tune_rule_counts_the_words_that_are_heard(prompt: str, clip: Clip, expected: float) -> None:
    assert TuneRule().score([heard(prompt, clip)]) == [pytest.approx(expected)]


def test_tune_rule_hears_the_words_it_is_configured_for_and_says_what_it_lacks() -> None:
    assert TuneRule(TuneRuleConfig(words="falling")).score([heard("sing", tune([300, 200]))]) == [1.0]
    with pytest.raises(RewardError, match="finds none of rising, falling"):
        TuneRule().score([heard("sing", tune([300, 200]))])
    with pytest.raises(RewardError, match="judges sound, but the response is a str"):
        TuneRule().score([heard("a rising tune", "la la")])


@with_speechmos
def test_dnsmos_orders_speech_by_noise_and_judges_equal_clips_once() -> None:
    """A clip of dataset:spoken-emoji, then with noise; the network runs once for each clip, whatever batch it comes in."""
    from polyalign_audio.modality import AudioModality
    from polyalign_audio.shipped import spoken_emoji

    path = min(path for path in spoken_emoji().rglob("*") if path.suffix in (".flac", ".ogg", ".wav"))
    clean = AudioModality().decode(path.read_bytes())
    draw = np.random.default_rng(0)
    noisy = Clip((clean.samples + 0.1 * draw.normal(size=len(clean.samples))).astype(np.float32), clean.rate)
    reward = DnsMos()
    scored = reward.evaluate([heard("", clean), heard("", noisy), heard("", clean)])
    assert scored.values[0] == scored.values[2] > scored.values[1]
    assert set(scored.aspects) == {"signal", "background", "overall"}
    assert scored.aspects["background"][0] > scored.aspects["background"][1]
    assert all(0.5 < value < 5 for values in scored.aspects.values() for value in values)
    calls = []
    network = reward.network
    reward._network = type("Counted", (), {"run": lambda self, *a: calls.append(1) or network.run(*a)})()
    assert reward.score([heard("", noisy), heard("", clean)]) == [scored.values[1], scored.values[0]] and not calls
    assert DnsMos(DnsMosConfig(aspect="background")).score([heard("", clean)]) == [pytest.approx(scored.aspects["background"][0])]


def test_dnsmos_refuses_what_is_no_sound() -> None:
    with pytest.raises(RewardError, match="judges sound"):
        DnsMos().score([heard("", "text")])


@pytest.fixture(scope="module")
def clap_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random ClapModel with tokenizer and feature extractor, as a hub folder has them."""
    from transformers import ClapConfig as Sizes
    from transformers import ClapFeatureExtractor, ClapModel, RobertaTokenizer

    folder = tmp_path_factory.mktemp("clap")
    torch.manual_seed(0)
    ClapModel(Sizes(**clap_sizes())).save_pretrained(folder)
    RobertaTokenizer(vocab=roberta_words(), merges=[], model_max_length=32).save_pretrained(folder)
    ClapFeatureExtractor(
        feature_size=8, sampling_rate=RATE, hop_length=1200, max_length_s=1, fft_window_size=256
    ).save_pretrained(folder)
    return folder


def test_clap_is_the_cosine_of_transformers_own_embeddings(clap_folder: Path) -> None:
    from transformers import AutoFeatureExtractor, AutoTokenizer, ClapModel

    clip = tone(300.0, 1.0, RATE)
    found = ClapScore(ClapConfig(model=str(clap_folder), device="cpu")).score(
        [heard("a high note", clip), heard("thunder", clip)]
    )
    model = ClapModel.from_pretrained(clap_folder).eval()
    sound = AutoFeatureExtractor.from_pretrained(clap_folder)([clip.samples], sampling_rate=RATE, return_tensors="pt")
    text = AutoTokenizer.from_pretrained(clap_folder)(["a high note", "thunder"], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**sound, **text).logits_per_audio[0] / model.logit_scale_a.exp()
    assert found == pytest.approx(logits.tolist(), abs=1e-5)
    assert found[0] != found[1]


def test_clap_hears_the_beginning_of_long_clips_and_the_same_each_time(clap_folder: Path) -> None:
    encoder = ClapEncoder(ClapConfig(model=str(clap_folder), device="cpu", batch_size=1))
    short, other = tone(300.0, 1.0, RATE), tone(60.0, 1.0, RATE)
    long = Clip(np.concatenate([short.samples, other.samples]), RATE)
    np.random.seed(0), random.seed(0)
    rows = encoder.encode_media([short, long, long.at(2 * RATE), other])
    torch.testing.assert_close(rows[0], rows[1])
    assert float(rows[0] @ rows[2]) > float(rows[0] @ rows[3])
    torch.testing.assert_close(rows.norm(dim=-1), torch.ones(4))
    assert encoder.content_key(short) != encoder.content_key(long)


def test_clap_says_what_a_folder_lacks(tmp_path: Path) -> None:
    with pytest.raises(PolyalignError, match="cannot be loaded.*tokenizer"):
        ClapEncoder(ClapConfig(model=str(tmp_path)))
