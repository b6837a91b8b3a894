"""AlignGPT: levels by rank, level embeddings in pre-training, the gate in tuning, and what each stage may change."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyalign.cli.main import main
from polyalign.encoders import Encoder
from polyalign.errors import ConfigError, RecordError, TrainingError
from polyalign.evaluation.levels import add_levels, pairs_of, rank_buckets
from polyalign.objectives.base import FeedbackTensors
from polyalign.objectives.supervised import SFT
from polyalign.policies.adapters import trainable
from polyalign.policies.reference import AdaptersOff
from polyalign.policies.tiny_language import byte_tokenizer
from polyalign.records.jsonl import write_jsonl
from polyalign.records.samples import Example, Prompt, Sample
from polyalign.records.schema import Candidate, Message, Record, TextPart
from polyalign.records.store import MediaStore
from polyalign.records.views import VIEWS
from polyalign_image import fixture
from polyalign_image.alignment_levels import LEVELS_FILE, AlignmentLevelsPolicy, restore

RECORDS, MEDIA = fixture.records()
PRETRAIN: dict[str, Any] = {"stage": "pretrain", "language": "frozen", "projector": "full", "lora": None}


def samples(*levels: int | None) -> list[Sample]:
    """Chosen captions of the fixture's first records, each with a level."""
    found = []
    for record, level in zip(RECORDS, levels, strict=False):
        (example,) = VIEWS["pairs"](record, MEDIA)
        conditions = {} if level is None else {"level": level}
        found.append(Sample(record.id, example.samples[0].prompt, example.samples[0].response, record.id, MEDIA, conditions))
    return found


def sft_step(policy: AlignmentLevelsPolicy, items: list[Sample], rate: float = 1e-2) -> float:
    optimizer = torch.optim.SGD(trainable(policy).values(), lr=rate)
    examples = [Example(item.id, (item,)) for item in items]
    (term,) = SFT()(policy(policy.collate(items)), {}, FeedbackTensors.of(examples)).values()
    (term.sum / term.weight).backward()
    optimizer.step()
    return float(term.sum.detach() / term.weight)


# levels


def test_rank_buckets_of_1003_scores_are_even_and_follow_the_rank() -> None:
    scores = torch.rand(1003, generator=torch.Generator().manual_seed(0)).tolist()
    buckets = rank_buckets(scores, 8)
    assert set(Counter(buckets).values()) == {125, 126} and set(buckets) == set(range(8))
    ordered = [bucket for _, bucket in sorted(zip(scores, buckets, strict=True))]
    assert ordered == sorted(ordered)


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=40), st.integers(1, 9))
def test_ties_go_by_order_and_no_bucket_is_much_larger(scores: list[float], buckets: int) -> None:
    found = rank_buckets(scores, buckets)
    sizes = Counter(found)
    assert max(sizes.values()) - min(sizes[bucket] for bucket in range(buckets)) <= 1
    for first in range(len(scores)):
        for later in range(first + 1, len(scores)):
            if scores[first] <= scores[later]:
                assert found[first] <= found[later]


class Length(Encoder):
    """Similarity of picture and text falls with the text's length: cosine of (1, 0) and (cos, sin)."""

    name = "length"

    def encode_media(self, media: Any) -> torch.Tensor:
        return torch.tensor([[1.0, 0.0]] * len(media))

    def encode_text(self, texts: Any) -> torch.Tensor:
        angle = torch.tensor([min(len(text), 60) / 40 for text in texts])
        return torch.stack([angle.cos(), angle.sin()], -1)

    def fingerprint(self) -> str:
        return "length"


def captioned(folder: Path) -> list[Record]:
    """Six captions of one picture, short to long, and one record without a picture."""
    store = MediaStore(folder)
    picture = store.add(fixture.drawing("red"), "image", "image/png")
    from polyalign.records.schema import MediaPart

    asked = (Message(role="user", parts=(MediaPart(media=picture), TextPart(text="What?"))),)
    texts = ["x" * (5 * n + 1) for n in range(6)]
    made = [Record(id=str(n), prompt=asked, candidates=(Candidate(parts=text),)) for n, text in enumerate(texts)]  # type: ignore[arg-type]
    made.append(Record(id="plain", prompt="Hi", candidates=(Candidate(parts="Hello"),)))  # type: ignore[arg-type]
    write_jsonl(folder / "train.jsonl", iter(made))
    return made


def test_levels_are_written_as_conditions_and_records_without_a_pair_stay(tmp_path: Path) -> None:
    captioned(tmp_path / "source")
    counts = add_levels(tmp_path / "source", "train", tmp_path / "new" / "train.jsonl", Length(), 3)
    assert counts == {0: 2, 1: 2, 2: 2}
    rows = [json.loads(line) for line in (tmp_path / "new" / "train.jsonl").read_text().splitlines()]
    levels = [row["candidates"][0].get("conditions", {}).get("level") for row in rows]
    assert levels == [2, 2, 1, 1, 0, 0, None]  # the shortest fits best
    assert list((tmp_path / "new" / "media").iterdir())


def test_levels_by_the_real_clip_through_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captioned(tmp_path / "source")
    target = tmp_path / "levels.jsonl"
    assert main(["data", "levels", str(tmp_path / "source"), str(target), "--levels", "2"]) == 0
    assert "level 0: 3, level 1: 3" in capsys.readouterr().out
    assert main(["data", "validate", str(target)]) == 0


def test_data_without_a_pair_is_refused(tmp_path: Path) -> None:
    plain = Record(id="plain", prompt="Hi", candidates=(Candidate(parts="Hello"),))  # type: ignore[arg-type]
    assert pairs_of(plain) == [None]
    write_jsonl(tmp_path / "train.jsonl", iter([plain]))
    with pytest.raises(RecordError, match="no candidate that pairs one medium with text"):
        add_levels(tmp_path, "train", tmp_path / "new.jsonl", Length(), 2)


# the policy


def test_a_pretraining_step_changes_only_the_levels_of_the_batch_and_the_projector() -> None:
    policy = fixture.levels_policy(**PRETRAIN)
    names = {name.split(".")[0] if name.startswith("levels") else name.split(".")[2] for name in trainable(policy)}
    assert names == {"levels", "multi_modal_projector"}
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    sft_step(policy, samples(2, 5, 2))
    moved = (policy.levels.embeddings != before["levels.embeddings"]).any(1)
    assert moved.nonzero().flatten().tolist() == [2, 5]
    changed = {name for name, value in policy.state_dict().items() if not torch.equal(value, before[name])}
    assert all("projector" in name or name == "levels.embeddings" for name in changed) and len(changed) > 1
    assert all(p.grad is None for name, p in policy.named_parameters() if "vision_tower" in name)


def test_a_tuning_step_leaves_the_levels_as_they_are_and_moves_the_gate() -> None:
    policy = fixture.levels_policy()
    table, gate = policy.levels.embeddings.detach().clone(), policy.levels.gate[2].weight.detach().clone()
    sft_step(policy, samples(None, None), rate=100.0)
    assert torch.equal(policy.levels.embeddings, table) and not torch.equal(policy.levels.gate[2].weight, gate)
    assert all(p.grad is None for name, p in policy.named_parameters() if "vision_tower" in name)


def inserted(policy: AlignmentLevelsPolicy) -> torch.Tensor:
    batch = policy.rows(policy.collate(samples(None)))
    row, column = (batch.tensors["level_index"] >= 0).nonzero()[0].tolist()
    return policy.inserted(batch, policy.encode_media(batch), row, column).detach()  # type: ignore[arg-type]


def test_the_mixture_is_the_global_level_plus_the_gated_local_ones() -> None:
    """A gate of zeros is uniform; one of a large bias is one-hot."""
    policy = fixture.levels_policy()
    table, gate = policy.levels.embeddings.detach(), policy.levels.gate
    for layer in (gate[0], gate[2]):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    torch.testing.assert_close(inserted(policy), table[:7].mean(0) + table[7], rtol=0, atol=1e-6)
    with torch.no_grad():
        gate[2].bias[3] = 1e4
    torch.testing.assert_close(inserted(policy), table[3] + table[7], rtol=0, atol=1e-6)


@pytest.mark.parametrize("mixture", ["mean", "local", "global", "fixed"])
def test_ablations_insert_what_they_say(mixture: str) -> None:
    policy = fixture.levels_policy(mixture=mixture, fixed_level=2)
    table = policy.levels.embeddings.detach()
    if mixture == "local":  # a mixture of the first seven alone: within their span, its weights adding to 1
        weights = torch.linalg.lstsq(table[:7].T, inserted(policy)[:, None]).solution[:, 0]
        assert float(weights.sum()) == pytest.approx(1, abs=1e-4) and float(weights.min()) > 0
        return
    expected = {"mean": table[7] + table[:7].mean(0), "global": table[7], "fixed": table[2]}[mixture]
    torch.testing.assert_close(inserted(policy), expected, rtol=0, atol=1e-6)


def test_the_gate_reads_the_question_against_every_visual_token() -> None:
    """By hand: mean embedding of the prompt's words without pictures, dotted with each visual token, through the gate."""
    policy = fixture.levels_policy()
    batch = policy.rows(policy.collate(samples(None)))
    features = policy.encode_media(batch)
    assert features is not None
    encoded = policy.collator.encode(samples(None)[0])
    place = policy.encoder.level_place(encoded.prompt)
    words = [t for at, t in enumerate(encoded.prompt) if t not in policy.encoder.media_ids and at != place]
    mean = policy.model.get_input_embeddings()(torch.tensor(words)).mean(0)
    expected = torch.softmax(policy.levels.gate(features.rows @ mean), -1)
    row, column = (batch.tensors["level_index"] >= 0).nonzero()[0].tolist()
    torch.testing.assert_close(policy.gate_weights(batch, features, row, column), expected, rtol=1e-5, atol=1e-6)


def test_the_level_stands_behind_the_start_token_and_is_never_scored() -> None:
    plain, with_level = fixture.policy(), fixture.levels_policy()
    ones, others = (policy.collate(samples(None, None)) for policy in (plain, with_level))
    assert ones.mask.sum() == others.mask.sum()  # the loss is over the same targets
    assert torch.equal(ones.tensors["targets"], others.tensors["targets"])
    model, processor = fixture.tiny_llava()
    processor.tokenizer = byte_tokenizer(fixture.TEMPLATE, more=["<image>"])
    processor.tokenizer.bos_token = "<|start|>"
    policy = AlignmentLevelsPolicy(model, type(with_level.encoder)(processor, model.config.image_token_id), with_level.config)
    batch = policy.collate(samples(None))
    (place,) = (batch.tensors["level_index"][0] >= 0).nonzero().flatten().tolist()
    assert place == 1 and batch.tensors["input_ids"][0, 0] == processor.tokenizer.bos_token_id
    assert batch.tensors["predictors"].min() > 1


def test_text_without_a_picture_gets_no_level() -> None:
    policy = fixture.levels_policy()
    words = Sample("t", (Message(role="user", parts="Hi"),), (TextPart(text="Hello"),), "t", MEDIA)  # type: ignore[arg-type]
    batch = policy.collate([words, *samples(None)])
    assert (batch.tensors["level_index"][0] == -1).all() and (batch.tensors["level_index"][1] >= 0).sum() == 1
    alone = fixture.policy()(fixture.policy().collate([words])).log_probs[0]
    torch.testing.assert_close(policy(batch).log_probs[0, :, : alone.shape[1]], alone)


def test_candidates_of_unequal_levels_do_not_share_a_row_and_equal_ones_do() -> None:
    policy = fixture.levels_policy(**PRETRAIN)
    one = samples(3)[0]
    other = Sample("other", one.prompt, (TextPart(text="No."),), one.draw_key, MEDIA, {"level": 3})
    third = Sample("third", one.prompt, (TextPart(text="No!"),), one.draw_key, MEDIA, {"level": 4})
    assert len(policy.rows(policy.collate([one, other, third])).tensors["input_ids"]) == 2
    shared = policy(policy.collate([one, other, third])).log_probs
    policy.shares = False
    torch.testing.assert_close(shared, policy(policy.collate([one, other, third])).log_probs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("level", [None, 8, -1, "high"])
def test_pretraining_without_a_level_says_how_to_get_one(level: Any) -> None:
    policy = fixture.levels_policy(**PRETRAIN)
    item = samples(0)[0]
    conditions = {} if level is None else {"level": level}
    with pytest.raises(TrainingError, match="polyalign data levels|write levels again"):
        policy.collate([Sample("s", item.prompt, item.response, "s", MEDIA, conditions)])


def test_captions_are_likelier_under_the_level_that_made_them() -> None:
    """Recovery. A toy model says either caption of any picture, and the one that a hint in front asks for. Then levels and
    projector alone are pre-trained without hints: the right level's loss is below the wrong one's."""
    captions, hints = {7: "A disc.", 0: "Nothing here."}, {7: "77777", 0: "....."}

    def items(told: dict[int, int], hinted: bool = False) -> list[Sample]:
        """``told``: the level that goes with the captions of each true level."""
        made = []
        for level, shown in told.items():
            for item in samples(0, 0):
                parts = (TextPart(text=hints[level]), *item.prompt[0].parts[:1]) if hinted else item.prompt[0].parts
                prompt = (Message(role="user", parts=parts),)
                response = (TextPart(text=captions[level]),)
                made.append(Sample(f"{level}-{item.id}", prompt, response, "k", MEDIA, {"level": shown}))
        return made

    def learn(policy: Any, data: list[Sample], steps: int, rate: float) -> None:
        optimizer = torch.optim.AdamW(trainable(policy).values(), lr=rate)
        batch = policy.collate(data)
        for _ in range(steps):
            optimizer.zero_grad()
            (-policy(batch).reduced("mean").mean()).backward()
            optimizer.step()

    right, wrong = {0: 0, 7: 7}, {0: 7, 7: 0}
    made = fixture.tiny_llava()
    learn(fixture.policy(made, lora=None), items(right, hinted=True) + items(right), 80, 1e-2)
    policy = fixture.levels_policy(made, **PRETRAIN)
    learn(policy, items(right), 20, 5e-2)
    with torch.no_grad():
        loss = [float(-policy(policy.collate(items(told))).reduced("mean").mean()) for told in (right, wrong)]
    assert loss[0] < loss[1] / 2, loss


def test_reference_scores_use_the_levels_and_the_gate_of_the_start() -> None:
    policy = fixture.levels_policy()
    batch = policy.collate(samples(None, None))
    before = AdaptersOff(policy)(batch).log_probs
    torch.testing.assert_close(policy(batch).log_probs.detach(), before)
    with torch.no_grad():
        for parameter in trainable(policy).values():
            parameter.add_(0.3)
    assert not torch.allclose(policy(batch).log_probs, before)
    torch.testing.assert_close(AdaptersOff(policy)(batch).log_probs, before)
    assert policy.fingerprint() == fixture.levels_policy().fingerprint()
    assert policy.fingerprint() != fixture.levels_policy(mixture="mean").fingerprint()


def test_levels_and_gate_are_saved_beside_the_model_and_restored(tmp_path: Path) -> None:
    policy = fixture.levels_policy(**PRETRAIN)
    sft_step(policy, samples(1, 2), rate=1.0)
    policy.save(tmp_path)
    assert (tmp_path / LEVELS_FILE).is_file() and (tmp_path / "processor_config.json").is_file()
    again = fixture.levels_policy(seed=5)
    restore(again, tmp_path)
    assert torch.equal(again.levels.embeddings, policy.levels.embeddings)
    assert torch.equal(again.start.embeddings, policy.levels.embeddings)
    with pytest.raises(ConfigError, match=r"set policy\.levels to 8"):
        restore(fixture.levels_policy(levels=4), tmp_path)
    with pytest.raises(ConfigError, match="run the pretrain stage"):
        restore(fixture.levels_policy(), tmp_path / "elsewhere")


def test_generation_starts_from_the_same_embeddings_as_scoring() -> None:
    """Every greedy token is the likeliest one of the scoring pass. Prompts of unequal length are padded on the left."""
    policy = fixture.levels_policy()
    with torch.no_grad():
        policy.levels.embeddings.mul_(20)  # what is inserted matters
    items = samples(None, None)
    longer = (Message(role="user", parts=(*items[1].prompt[0].parts, TextPart(text=" Say more."))),)
    prompts = [Prompt.of(items[0].prompt, MEDIA), Prompt.of(longer, MEDIA)]
    rollouts = policy.generate(prompts, max_new_tokens=6, temperature=0.0)
    batch = policy.rows(policy.collator.of_rollouts(rollouts))
    hidden = policy.states(batch)
    logits = policy.head(hidden[batch.tensors["row"][:, None], batch.tensors["predictors"]])
    logits[..., sorted(policy.encoder.media_ids)] = -torch.inf
    for number, rollout in enumerate(rollouts):
        ids = rollout.decisions[0].ids  # type: ignore[union-attr]
        assert logits[number, : len(ids)].argmax(-1).tolist() == ids.tolist()
