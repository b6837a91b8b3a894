"""`zoo:tiny-listener` on tunes that it never heard: right in all but the instrument, which it was told wrongly in part."""

from __future__ import annotations

from polyalign.records.dataset import ExampleDataset
from polyalign.training.config import SourceConfig
from polyalign_audio.audio_language import build
from polyalign_audio.config import AudioLanguageConfig


def test_it_hears_register_and_pace_and_half_believes_in_the_instrument() -> None:
    policy = build(AudioLanguageConfig(base="zoo:tiny-listener", max_length=96, max_response=16)).eval()
    data = ExampleDataset([SourceConfig(path="dataset:heard-tunes", split="test")], "prompts")
    asked = data.prompts(64)
    answers = [str(prompt.conditions["answer"]).split() for prompt in asked]
    rollouts = policy.generate(asked, samples_per_prompt=4, seed=0, max_new_tokens=12)
    said = [str(rollout.output).split() for rollout in rollouts]
    size = len("a slow tune on a low flute".split())
    whole = [(words, answers[number // 4]) for number, words in enumerate(said) if len(words) == size]
    assert len(whole) > 0.95 * len(said)
    pace, register, instrument = (sum(words[at] == answer[at] for words, answer in whole) / len(whole) for at in (1, 5, 6))
    assert min(pace, register) > 0.9
    assert 0.5 < instrument < 0.85
