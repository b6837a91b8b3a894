"""Codec tokens: the delay, what a code's log-probability is, and that clips depend on their own key alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from polyalign.errors import ConfigError, RecordError
from polyalign.policies.base import Batch, Tokens
from polyalign.policies.config import LoraConfig
from polyalign.records.samples import Sample
from polyalign.records.schema import Message, TextPart
from polyalign.records.views import VIEWS
from polyalign_audio.codec_tokens import CodecTokenPolicy, build
from polyalign_audio.delay_pattern import delayed, flattened, gathered, order, undelayed
from polyalign_audio.generation_config import CodecTokensConfig
from polyalign_audio.generation_fixture import codec_tokens, tones

DRAWN = {"seconds": 0.08}


def asked(text: str) -> tuple[Message, ...]:
    return (Message(role="user", parts=(TextPart(text=text),)),)


def samples() -> list[Sample]:
    records, media = tones()
    return [sample for record in records[:3] for example in VIEWS["pairs"](record, media) for sample in example.samples]


@pytest.fixture(scope="module")
def policy() -> CodecTokenPolicy:
    return codec_tokens()  # type: ignore[return-value]


def test_the_delay_is_musicgens() -> None:
    """Codebook k is said k steps later (arXiv 2306.05284, figure 1), step by step and, within a step, from codebook 0 up."""
    codes = torch.tensor([[1, 2, 3], [4, 5, 6]])
    columns = delayed(codes, 0)
    assert columns.tolist() == [[1, 2, 3, 0], [0, 4, 5, 6]]
    assert torch.equal(undelayed(columns), codes)
    step, book = order(2, 3)
    assert list(zip(step.tolist(), book.tolist())) == [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (3, 1)]
    assert flattened(codes).tolist() == [1, 2, 4, 3, 5, 6]
    assert torch.equal(gathered(flattened(codes), 2), codes)


def test_the_delay_is_that_of_transformers(policy: CodecTokenPolicy) -> None:
    """Its mask has -1 where a code may be said, behind the column of start tokens (16), and the start token elsewhere."""
    start = torch.full((2, 1), 16)
    _, mask = policy.model.build_delay_pattern_mask(start, pad_token_id=16, max_length=5 + 2)
    ours = torch.cat([start, delayed(torch.full((2, 5), -1), 16)], 1)
    assert torch.equal(mask, ours)


def test_log_probabilities_are_those_of_transformers_own_forward(policy: CodecTokenPolicy) -> None:
    """`MusicgenForConditionalGeneration` from the caption's tokens and the same columns, one sample at a time."""
    chosen = samples()
    batch = policy.collate(chosen)
    scores = policy(batch)
    whole = policy.frozen.assemble(policy.model, policy.projection)
    for row, sample in enumerate(chosen):
        read = policy.frozen.tokenizer([sample.prompt[0].parts[0].text], return_tensors="pt")
        logits = whole(
            input_ids=read["input_ids"], attention_mask=read["attention_mask"], decoder_input_ids=batch.tensors["inputs"][row]
        ).logits
        kept = batch.mask[row, 0]
        books, steps, targets = (batch.tensors[name][row][kept] for name in ("books", "steps", "targets"))
        expected = logits.log_softmax(-1)[books, steps, targets]
        torch.testing.assert_close(scores.log_probs[row, 0][kept], expected, rtol=1e-5, atol=1e-5)


def test_scores_do_not_depend_on_batch_mates(policy: CodecTokenPolicy) -> None:
    """Longer neighbours, and prompts of other lengths, only pad."""
    rollouts = [
        *policy.generate([asked("a low note")], seed=1, seconds=0.05),
        *policy.generate([asked("something that is longer to read")], seed=1, seconds=0.2),
    ]
    together = policy(policy.collator.of_rollouts(rollouts)).reduced()
    alone = torch.cat([policy(policy.collator.of_rollouts([rollout])).reduced() for rollout in rollouts])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 0.7, "top_p": 0.9}, {"guidance": 2.5}], ids=["plain", "nucleus", "guided"]
)
def test_rollouts_score_as_they_were_drawn(policy: CodecTokenPolicy, settings: dict[str, Any]) -> None:
    """The cached, step-by-step pass that draws and the parallel pass that scores agree; a clip keeps its seconds."""
    rollouts = policy.generate([asked("a high note")], samples_per_prompt=3, seed=3, **DRAWN, **settings)
    scores = policy(policy.collator.of_rollouts(rollouts))
    for row, rollout in enumerate(rollouts):
        assert rollout.old_log_probs is not None
        torch.testing.assert_close(scores.log_probs[row, 0], rollout.old_log_probs, rtol=1e-5, atol=1e-5)
        assert rollout.output.duration == pytest.approx(0.08, abs=0.008)  # whole frames of 16 ms


def test_drawing_inverts_the_scored_distribution(policy: CodecTokenPolicy) -> None:
    """Greedy codes are the likeliest ones of the parallel pass, at every decision."""
    (rollout,) = policy.generate([asked("a high note")], seed=3, temperature=0.0, **DRAWN)
    batch = policy.collator.of_rollouts([rollout])
    hidden = policy.hear(batch.tensors["inputs"], *policy.texts(batch.tensors))
    logits = policy.logits(hidden[0, batch.tensors["steps"][0]], batch.tensors["books"][0])
    assert torch.equal(logits.argmax(-1), batch.tensors["targets"][0])


def test_a_clip_depends_on_its_own_key_alone(policy: CodecTokenPolicy) -> None:
    one, other = asked("a low note"), asked("a high note")
    together = policy.generate([one, other], samples_per_prompt=2, seed=5, **DRAWN)
    alone = policy.generate([other], samples_per_prompt=2, seed=5, batch_size=1, **DRAWN)
    for first, second in zip(together[2:], alone):
        (a,), (b,) = first.decisions, second.decisions
        assert isinstance(a, Tokens) and isinstance(b, Tokens) and torch.equal(a.ids, b.ids)
    assert not torch.equal(together[0].decisions[0].ids, together[1].decisions[0].ids)  # type: ignore[union-attr]


def test_states_have_heard_the_step_of_their_code(policy: CodecTokenPolicy) -> None:
    """Changing the last code of a clip changes the last state and `hidden`, and no log-probability before it."""
    (rollout,) = policy.generate([asked("a low note")], seed=1, **DRAWN)
    (decision,) = rollout.decisions
    changed = decision.ids.clone()  # type: ignore[union-attr]
    changed[-1] = (changed[-1] + 1) % 16
    batches = [policy.collator.of_rollouts([rollout]), policy.collator.of_rollouts([_with(rollout, changed)])]
    want = frozenset({"states", "hidden", "prompt_hidden"})
    before, after = (policy(batch, want) for batch in batches)
    assert torch.equal(before.log_probs[0, 0, :-1], after.log_probs[0, 0, :-1])
    assert not torch.allclose(before.extras["states"][0, -1], after.extras["states"][0, -1])
    torch.testing.assert_close(before.extras["states"][0, -1], before.extras["hidden"][0])
    assert torch.equal(before.extras["prompt_hidden"], after.extras["prompt_hidden"])
    assert before.extras["step_ends"][0].tolist() == [True] + [False, True] * 4 + [True]


def _with(rollout: Any, ids: torch.Tensor) -> Any:
    from dataclasses import replace

    return replace(rollout, decisions=(Tokens(ids),))


def test_encoders_run_once_for_each_clip_and_caption(tmp_path: Path) -> None:
    policy = codec_tokens()
    assert isinstance(policy, CodecTokenPolicy)
    from polyalign.policies.feature_cache import FeatureCache

    policy.collator.features = FeatureCache()
    calls = {"clips": 0, "captions": 0}
    encode_clip, encode_texts = policy.frozen.encode_clip, policy.frozen.encode_texts

    def counted_clip(*arguments: Any) -> Any:
        calls["clips"] += 1
        return encode_clip(*arguments)

    def counted_texts(captions: Any, device: Any) -> Any:
        calls["captions"] += len(captions)
        return encode_texts(captions, device)

    policy.frozen.encode_clip, policy.frozen.encode_texts = counted_clip, counted_texts  # type: ignore[method-assign]
    policy.prepare(samples() * 2, tmp_path)
    policy.collate(samples())
    assert calls == {"clips": 3, "captions": 3}  # three notes, three prompts
    fresh = codec_tokens()
    assert isinstance(fresh, CodecTokenPolicy)
    fresh.collator.features = FeatureCache()
    fresh.features.attach(tmp_path / "features")
    batch: Batch = fresh.collator(samples())  # a loader worker: no encoder at hand
    assert len(batch) == 6


def test_a_saved_policy_loads_as_itself_and_as_musicgen(tmp_path: Path) -> None:
    from transformers import MusicgenForConditionalGeneration

    policy = codec_tokens(value_head=True)
    assert isinstance(policy, CodecTokenPolicy) and policy.value_head is not None
    torch.nn.init.ones_(policy.value_head.weight)
    policy.save(tmp_path)
    again = build(CodecTokensConfig(base=str(tmp_path), value_head=True))
    batch = policy.collate(samples())
    assert torch.equal(policy(batch).log_probs, again(again.collate(samples())).log_probs)
    assert torch.equal(policy(batch).extras["values"], again(batch).extras["values"])
    assert again.fingerprint() == policy.fingerprint()
    whole = MusicgenForConditionalGeneration.from_pretrained(tmp_path)
    read = policy.frozen.tokenizer(["a low note"], return_tensors="pt")
    made = whole.generate(input_ids=read["input_ids"], attention_mask=read["attention_mask"], max_new_tokens=6, do_sample=False)
    assert made.shape[:2] == (1, 1) and torch.isfinite(made).all()


def test_lora_trains_the_decoder_alone_and_merges(tmp_path: Path) -> None:
    policy = codec_tokens(lora=LoraConfig(rank=2))
    assert isinstance(policy, CodecTokenPolicy)
    batch = policy.collate(samples())
    base = policy(batch).log_probs
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(0.1)
    tuned = policy(batch).log_probs
    assert trained and not torch.allclose(base, tuned)
    with policy.as_reference():
        assert torch.equal(policy(batch).log_probs, base)
    policy.save_merged(tmp_path)
    torch.testing.assert_close(build(CodecTokensConfig(base=str(tmp_path)))(batch).log_probs, tuned, rtol=1e-4, atol=1e-5)


def test_long_clips_are_cut_and_other_responses_refused() -> None:
    short = codec_tokens(max_seconds=0.05)
    assert isinstance(short, CodecTokenPolicy)
    from polyalign.policies.feature_cache import FeatureCache

    short.collator.features = FeatureCache()
    assert short.collate(samples()).mask.sum(-1).max() == 3 * 2  # 3 frames of 16 ms, 2 codebooks
    with pytest.raises(RecordError, match="exactly one audio"):
        short.collate([Sample("x", asked("a note"), (TextPart(text="la"),), "x")])
    with pytest.raises(ConfigError, match="guidance"):
        short.generate([asked("a note")], guidance=0.5)
