"""Sound as codes of EnCodec and Mimi: what a frame is, what may stand where, and a policy that hears and says such codes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyalign.errors import ConfigError, MediaError
from polyalign.objectives.pairwise import DPO
from polyalign.plugins.registry import registry
from polyalign.policies.adapters import trainable
from polyalign.policies.base import Kind
from polyalign.policies.reference import FrozenCopy
from polyalign.policies.tiny_language import byte_tokenizer, tiny_llama
from polyalign.records.samples import Prompt
from polyalign.records.views import VIEWS
from polyalign.training.batches import collate_examples
from polyalign.training.window import WindowLoss
from polyalign_any_to_any.config import AnyToAnyConfig
from polyalign_any_to_any.fixture import records
from polyalign_any_to_any.media.base import open_tokenizer
from polyalign_any_to_any.media.codecs import CodecTokenizer, EncodecTokenizer, MimiTokenizer, codec_tokenizer
from polyalign_any_to_any.media.speech import clip_of
from polyalign_any_to_any.policy import MixedTokenPolicy, assembled
from polyalign_any_to_any.spans import pieces

SIZE = 16  # codes a codebook
RATE = 8000


def tiny_encodec(**more: Any) -> Any:
    """A random codec of frames of 160 samples, with 2, 4 or 8 codebooks."""
    from transformers import EncodecConfig, EncodecModel

    settings = {
        "sampling_rate": RATE, "hidden_size": 8, "num_filters": 4, "upsampling_ratios": [8, 5, 4], "codebook_size": SIZE,
        "codebook_dim": 8, "num_lstm_layers": 1, "target_bandwidths": [0.4, 0.8, 1.6],
    }  # fmt: skip
    return drawn(lambda: EncodecModel(EncodecConfig(**{**settings, **more})))


def tiny_mimi() -> Any:
    """A random codec of frames of 160 samples, with 8 codebooks, the first apart."""
    from transformers import MimiConfig, MimiModel

    config = MimiConfig(
        sampling_rate=RATE, hidden_size=16, num_filters=4, upsampling_ratios=[5, 4, 4], codebook_size=SIZE, codebook_dim=8,
        vector_quantization_hidden_dimension=8, num_quantizers=8, upsample_groups=16, num_hidden_layers=1,
        intermediate_size=32, num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    return drawn(lambda: MimiModel(config))


def drawn(make: Callable[[], Any]) -> Any:
    """Return a codec with codebooks drawn at random, which transformers leaves at 0, and weights so wide that sounds differ."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make().eval()
        for name, weight in model.named_parameters():
            if name.endswith("original0"):  # EnCodec's lengths of weights
                weight.data.mul_(2.0)
        for name, buffer in model.named_buffers():
            if name.endswith((".embed", ".embed_sum")):
                buffer.normal_(0, 0.1)
    return model


def tone(seconds: float, rate: int = RATE) -> Any:
    time = np.arange(round(seconds * rate)) / rate
    return clip_of(0.3 * np.sin(2 * np.pi * (300 + 400 * time) * time), rate)


MAKERS: dict[str, Callable[[], CodecTokenizer]] = {
    "encodec": lambda: EncodecTokenizer.of(tiny_encodec(), codebooks=3, seconds=0.5),
    "mimi": lambda: MimiTokenizer.of(tiny_mimi(), codebooks=3, seconds=0.5),
}
each_codec = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def own_codes(tokenizer: CodecTokenizer, clip: Any) -> torch.Tensor:
    """Return what transformers' model writes of the clip with all it has, the first codebooks of it, ``[K, F]``."""
    samples = torch.as_tensor(clip.samples)[None, None]
    with torch.no_grad():
        if isinstance(tokenizer, EncodecTokenizer):
            return tokenizer.model.encode(samples, bandwidth=1.6).audio_codes[0, 0, : tokenizer.unit]
        return tokenizer.model.encode(samples).audio_codes[0, : tokenizer.unit]


@each_codec
def test_codes_are_the_models_own_frame_by_frame(make: Callable[[], CodecTokenizer]) -> None:
    """Number f x K + k is k x 16 + the model's code of codebook k in frame f."""
    tokenizer, clip = make(), tone(0.2)
    expected = own_codes(tokenizer, clip)
    found = tokenizer.encode(clip)
    assert found == [int(expected[k, f]) + SIZE * k for f in range(expected.shape[1]) for k in range(3)]
    assert len(set(found)) > 6, "a codec that writes nearly the same everywhere tests nothing"
    assert all(code in tokenizer.allowed(place) for place, code in enumerate(found))


@each_codec
def test_a_round_trip_sounds_as_the_model_decodes_its_own_codes(make: Callable[[], CodecTokenizer]) -> None:
    tokenizer, clip = make(), tone(0.2)
    books = own_codes(tokenizer, clip)
    with torch.no_grad():
        if isinstance(tokenizer, EncodecTokenizer):
            expected = tokenizer.model.decode(books[None, None], [None]).audio_values[0, 0]
        else:
            expected = tokenizer.model.decode(books[None]).audio_values[0, 0]
    again = tokenizer.decode(tokenizer.encode(clip))
    assert again.rate == RATE and len(again.samples) == 10 * 160
    np.testing.assert_allclose(again.samples, expected.clamp(-1, 1), atol=2 / 2**15)  # 16 bits
    assert expected.std() > 10 / 2**15


@each_codec
@pytest.mark.parametrize(("samples", "frames"), [(0, 1), (1, 1), (160, 1), (161, 2), (1599, 10), (1600, 10), (4000, 25)])
def test_a_frame_is_160_samples_and_a_clip_whole_frames(make: Callable[[], CodecTokenizer], samples: int, frames: int) -> None:
    tokenizer = make()
    clip = type(tone(0.1))(np.zeros(samples, dtype=np.float32), RATE)
    codes = tokenizer.encode(clip)
    assert len(codes) == 3 * frames
    assert len(tokenizer.decode(codes).samples) == 160 * frames
    assert tokenizer.longest == 3 * 25 and tokenizer.length is None and tokenizer.codes == 3 * SIZE


@each_codec
def test_other_rates_are_resampled_and_long_clips_refused(make: Callable[[], CodecTokenizer]) -> None:
    tokenizer = make()
    assert len(tokenizer.encode(tone(0.2, 16_000))) == 30
    with pytest.raises(MediaError, match=r"a clip of 0.60 s takes 90 codes, and this tokenizer writes at most 75 \(0.5 s\)"):
        tokenizer.encode(tone(0.6))


@each_codec
@pytest.mark.parametrize("codes", [[], [SIZE, 0, 2 * SIZE], [0, SIZE, 3 * SIZE]], ids=["none", "unordered", "unknown"])
def test_codes_out_of_place_are_no_clip(make: Callable[[], CodecTokenizer], codes: list[int]) -> None:
    with pytest.raises(MediaError, match="each frame takes one code of each codebook"):
        make().decode(codes)


@each_codec
def test_a_saved_tokenizer_is_opened_again(make: Callable[[], CodecTokenizer], tmp_path: Path) -> None:
    first, clip = make(), tone(0.2)
    first.save(tmp_path / "audio")
    again = open_tokenizer(tmp_path / "audio")
    assert again.encode(clip) == first.encode(clip) and again.fingerprint() == first.fingerprint()
    np.testing.assert_array_equal(again.decode(first.encode(clip)).samples, first.decode(first.encode(clip)).samples)
    assert (again.unit, again.codes, again.longest) == (first.unit, first.codes, first.longest)


@pytest.mark.parametrize("make", [tiny_encodec, tiny_mimi])
def test_a_codec_of_transformers_becomes_a_tokenizer(make: Callable[[], Any], tmp_path: Path) -> None:
    model = make()
    model.save_pretrained(tmp_path)
    found, clip = codec_tokenizer(str(tmp_path), codebooks=2, seconds=1.0), tone(0.2)
    kind = EncodecTokenizer if make is tiny_encodec else MimiTokenizer
    assert type(found) is kind and found.encode(clip) == kind.of(model, codebooks=2, seconds=1.0).encode(clip)


def test_codecs_that_cannot_be_written_as_codes_alone_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="codebooks=9: the codec has 8"):
        MimiTokenizer.of(tiny_mimi(), codebooks=9)
    with pytest.raises(ConfigError, match="keeps loudness beside its codes"):
        EncodecTokenizer.of(tiny_encodec(normalize=True))
    with pytest.raises(ConfigError, match="writes 2 channels"):
        EncodecTokenizer.of(tiny_encodec(audio_channels=2))
    tiny_llama(300).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="is a llama model; expected one of encodec, mimi"):
        codec_tokenizer(str(tmp_path))


def codec_policy(make: Callable[[], CodecTokenizer]) -> MixedTokenPolicy:
    tokenizer = byte_tokenizer()
    config = AnyToAnyConfig(base="tiny", max_length=200, max_response=100)
    return assembled(tiny_llama(len(tokenizer), layers=1), tokenizer, [make()], config)


def pairs_of(policy: MixedTokenPolicy) -> Any:
    made, media = records(("audio",))
    return collate_examples([e for record in made if not record.tags for e in VIEWS["pairs"](record, media)], policy.collator)


@each_codec
def test_a_code_is_scored_among_those_of_its_codebook(make: Callable[[], CodecTokenizer]) -> None:
    """By brute force: logits of the model on plain rows, the softmax over the 16 codes of the place (17 with the end, before a
    frame)."""
    policy = codec_policy(make).eval()
    batch = pairs_of(policy).batch
    scores = policy(batch)
    (span,) = policy.vocabulary.spans
    ids, row = batch.tensors["input_ids"], 0
    with torch.no_grad():
        logits = policy.model(input_ids=ids[row : row + 1], attention_mask=batch.tensors["attention_mask"][row : row + 1]).logits[
            0
        ]
    head = int((ids[row] == span.head[0]).nonzero()[-1])  # of the response, the last clip
    frames = 6
    places = scores.mask[row, 0].nonzero().flatten()
    predictors = batch.tensors["predictors"][row]
    checked = 0
    for place in places:
        at = int(predictors[place]) - head  # which code of the clip comes next
        if not 0 <= at < 3 * frames:
            continue
        allowed = [span.ids[code] for code in span.tokenizer.allowed(at)] + ([span.tail[0]] if at % 3 == 0 else [])
        target = int(batch.tensors["targets"][row, place])
        assert target in allowed
        expected = logits[head + at, allowed].log_softmax(-1)[allowed.index(target)]
        torch.testing.assert_close(scores.log_probs[row, 0, place], expected, rtol=1e-4, atol=1e-5)
        assert batch.kind[row, place] == int(Kind.MEDIA)
        checked += 1
    assert checked == 3 * frames


@each_codec
def test_a_policy_learns_from_pairs_and_says_a_clip(make: Callable[[], CodecTokenizer]) -> None:
    """The DPO loss starts at ln 2 and one step raises the margin; what is drawn is whole frames, each code of its codebook."""
    policy = codec_policy(make)
    micro = pairs_of(policy)
    window = WindowLoss(policy, FrozenCopy(policy), DPO(), "cpu")
    optimizer = torch.optim.AdamW(trainable(policy).values(), lr=1e-3, weight_decay=0.0)
    first = window.train([micro], lambda loss, last: loss.backward())["loss"]
    optimizer.step()
    optimizer.zero_grad()
    second = window.evaluate([micro])["loss"]
    assert first == pytest.approx(np.log(2), rel=1e-5) and second < first

    made, media = records(("audio",))
    prompts = [Prompt.of(record.prompt, media) for record in made if not record.tags]
    (span,) = policy.vocabulary.spans
    for rollout in policy.generate(prompts, seed=3, respond="audio", max_new_tokens=80):
        (modality, codes), *_ = pieces(policy.vocabulary, rollout.decisions[0].ids.tolist())
        assert modality == "audio" and rollout.modalities == ("audio",) and len(codes) % 3 == 0
        assert all(code in span.tokenizer.allowed(place) for place, code in enumerate(codes))
        assert len(rollout.output.samples) == 160 * len(codes) // 3 > 0 and rollout.output.rate == RATE
        assert registry().get("modalities", "audio").load()().encode(rollout.output, "audio/flac")
