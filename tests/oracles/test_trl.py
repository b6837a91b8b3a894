"""TRL 1.16's own trainers as judges: values to 1e-5 and gradients on every weight of a tiny random Llama.

TRL computes a loss from its collated batch; we score the same token ids with a plain forward pass and call our objective.
Where definitions differ the test states the difference and checks it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from toys.scored import example, feedback_of

from polyalign.objectives.base import Objective
from polyalign.objectives.config import DPOConfig, HingeConfig, IPOConfig, KTOConfig, ORPOConfig, RobustConfig, SimPOConfig
from polyalign.objectives.kto import KTO
from polyalign.objectives.odds_ratio import ORPO
from polyalign.objectives.pairwise import DPO, SimPO
from polyalign.objectives.supervised import SFT
from polyalign.policies.base import Kind, Scores
from polyalign.records.samples import Edge

pytest.importorskip("trl", reason="the oracle trl is not installed; see requirements-dev.txt")

WORDS = "a b c d e f g h i j k l m n o p".split()
PAIRS = [
    {"prompt": "a b c", "chosen": " d e f", "rejected": " g h"},
    {"prompt": "b", "chosen": " i", "rejected": " j k l m"},
    {"prompt": "c a f e", "chosen": " n o p a b", "rejected": " o"},
    {"prompt": "p o", "chosen": " d d", "rejected": " e e e"},
]
BETA, SMOOTHING = 0.4, 0.2


@dataclass
class World:
    """Two unlike random models, a tokenizer, and where trainers may write."""

    policy: Any
    reference: Any
    tokenizer: Any
    folder: Any

    def settings(self, config: Any, **options: Any) -> Any:
        return config(
            output_dir=str(self.folder),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            per_device_train_batch_size=len(PAIRS),
            **options,
        )


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(["<pad>", "<eos>", "<unk>", "<bos>", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", bos_token="<bos>"
    )

    def model(seed: int) -> LlamaForCausalLM:
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            initializer_range=0.4,  # the default makes every distribution nearly uniform, and the test nearly blind
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=3,
        )
        return LlamaForCausalLM(config).eval()

    return World(model(0), model(1), tokenizer, tmp_path_factory.mktemp("trl"))


@pytest.fixture(scope="session")
def dpo_trainer(world: World) -> Any:
    from datasets import Dataset
    from trl import DPOConfig as TrlConfig
    from trl import DPOTrainer

    return DPOTrainer(
        model=world.policy,
        ref_model=world.reference,
        args=world.settings(TrlConfig),
        train_dataset=Dataset.from_list(PAIRS),
        processing_class=world.tokenizer,
    )


@pytest.fixture(scope="session")
def pairs(dpo_trainer: Any) -> dict[str, torch.Tensor]:
    """TRL's collated batch: chosen rows, then rejected rows."""
    return dpo_trainer.data_collator([dpo_trainer.train_dataset[i] for i in range(len(PAIRS))])


def scored(model: Any, ids: torch.Tensor, attention: torch.Tensor, completion: torch.Tensor) -> Scores:
    """Score completion tokens by a plain forward pass."""
    logits = model(input_ids=ids, attention_mask=attention).logits[:, :-1].float()
    log_probs = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    return Scores(log_probs[:, None], completion[:, None, 1:].bool(), torch.full(log_probs.shape, int(Kind.TOKEN)))


def ours(objective: Objective, world: World, batch: dict[str, torch.Tensor], feedback: Any) -> torch.Tensor:
    rows = batch["input_ids"], batch["attention_mask"], batch["completion_mask"]
    with torch.no_grad():
        reference = scored(world.reference, *rows)
    terms = objective(scored(world.policy, *rows), {"reference": reference}, feedback)
    return sum(term.sum / term.weight for term in terms.values())


def pair_feedback() -> Any:
    return feedback_of(example(2 * len(PAIRS), [Edge(i, len(PAIRS) + i) for i in range(len(PAIRS))]))


def gradients(model: Any, loss: torch.Tensor) -> list[torch.Tensor]:
    return torch.autograd.grad(loss, list(model.parameters()))


def assert_same(model: Any, mine: torch.Tensor, theirs: torch.Tensor) -> None:
    assert mine.item() == pytest.approx(theirs.item(), rel=1e-5, abs=1e-5)
    one, other = gradients(model, mine), gradients(model, theirs)
    largest = max(1.0, *(part.abs().max().item() for part in other))  # float32: errors are relative to the largest entry
    for left, right in zip(one, other, strict=True):
        torch.testing.assert_close(left, right, atol=1e-5 * largest, rtol=0)


def trl_dpo(trainer: Any, batch: dict[str, torch.Tensor], loss: str, smoothing: float = 0.0) -> torch.Tensor:
    trainer.loss_types, trainer.loss_weights = [loss], [1.0]
    trainer.beta, trainer.label_smoothing = BETA, smoothing
    return trainer.compute_loss(trainer.model, dict(batch))


@pytest.mark.parametrize(
    ("loss", "smoothing", "config"),
    [
        ("sigmoid", 0.0, DPOConfig(beta=BETA)),
        ("hinge", 0.0, HingeConfig(beta=BETA)),
        ("ipo", 0.0, IPOConfig(beta=BETA)),
        ("robust", SMOOTHING, RobustConfig(beta=BETA, label_smoothing=SMOOTHING)),
        ("sigmoid_norm", 0.0, DPOConfig(beta=BETA, reduction="mean")),
    ],
)
def test_dpo_family_equals_trl(world, dpo_trainer, pairs, loss: str, smoothing: float, config: DPOConfig):
    theirs = trl_dpo(dpo_trainer, pairs, loss, smoothing)
    assert_same(world.policy, ours(DPO(config), world, pairs, pair_feedback()), theirs)


def test_trl_ignores_label_smoothing_of_the_sigmoid_loss_and_we_do_not(world, dpo_trainer, pairs):
    theirs = trl_dpo(dpo_trainer, pairs, "sigmoid", SMOOTHING)
    plain = ours(DPO(DPOConfig(beta=BETA)), world, pairs, pair_feedback())
    smoothed = ours(DPO(DPOConfig(beta=BETA, label_smoothing=SMOOTHING)), world, pairs, pair_feedback())
    assert theirs.item() == pytest.approx(plain.item(), abs=1e-5)
    assert abs(smoothed.item() - plain.item()) > 1e-3


def test_sft_equals_trl_on_the_chosen_responses(world, dpo_trainer, pairs):
    theirs = trl_dpo(dpo_trainer, pairs, "sft")
    chosen = {name: value[: len(PAIRS)] for name, value in pairs.items()}
    assert_same(world.policy, ours(SFT(), world, chosen, feedback_of(example(len(PAIRS)))), theirs)


@pytest.fixture(scope="session")
def cpo_trainer(world: World) -> Any:
    from datasets import Dataset
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    return CPOTrainer(
        model=world.policy,
        args=world.settings(CPOConfig, loss_type="simpo", cpo_alpha=0.0, beta=BETA, simpo_gamma=0.3, max_length=64),
        train_dataset=Dataset.from_list(PAIRS),
        processing_class=world.tokenizer,
    )


def as_pairs(trainer: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The batch of the CPO and ORPO trainers, and the same rows as ours: chosen, then rejected."""
    theirs = trainer.data_collator([trainer.train_dataset[i] for i in range(len(PAIRS))])
    both = trainer.concatenated_inputs(theirs, padding_value=0)
    rows = {
        "input_ids": both["concatenated_input_ids"].clamp(min=0),
        "attention_mask": both["concatenated_attention_mask"],
        "completion_mask": both["concatenated_labels"] != -100,
    }
    return theirs, rows


def test_simpo_equals_trl(world, cpo_trainer):
    batch, rows = as_pairs(cpo_trainer)
    theirs = cpo_trainer.compute_loss(world.policy, batch)
    assert_same(world.policy, ours(SimPO(SimPOConfig(beta=BETA, gamma=0.3)), world, rows, pair_feedback()), theirs)


@pytest.mark.parametrize(
    ("loss", "smoothing", "config"),
    [
        ("sigmoid", SMOOTHING, DPOConfig(beta=BETA, label_smoothing=SMOOTHING)),
        ("ipo", 0.0, IPOConfig(beta=BETA, reduction="sum")),
    ],
)
def test_losses_that_trl_keeps_only_in_cpo_equal_it_on_log_ratios(
    world, cpo_trainer, pairs, monkeypatch, loss: str, smoothing: float, config: DPOConfig
):
    """cDPO and IPO on sums: TRL's CPO loss, fed with log-ratios in place of log-probabilities, is the same formula."""
    monkeypatch.setattr(cpo_trainer, "loss_type", loss)
    monkeypatch.setattr(cpo_trainer, "label_smoothing", smoothing)
    rows = pairs["input_ids"], pairs["attention_mask"], pairs["completion_mask"]
    with torch.no_grad():
        reference = scored(world.reference, *rows).reduced()[:, 0]
    ratios = scored(world.policy, *rows).reduced()[:, 0] - reference
    theirs = cpo_trainer.cpo_loss(*ratios.chunk(2))[0].mean()
    assert_same(world.policy, ours(DPO(config), world, pairs, pair_feedback()), theirs)


@pytest.fixture(scope="session")
def orpo_trainer(world: World) -> Any:
    from datasets import Dataset
    from trl.experimental.orpo import ORPOConfig as TrlConfig
    from trl.experimental.orpo import ORPOTrainer

    return ORPOTrainer(
        model=world.policy,
        args=world.settings(TrlConfig, beta=BETA, max_length=64),
        train_dataset=Dataset.from_list(PAIRS),
        processing_class=world.tokenizer,
    )


def test_odds_ratio_term_equals_trl(world, orpo_trainer):
    batch, rows = as_pairs(orpo_trainer)
    chosen, rejected = orpo_trainer.concatenated_forward(world.policy, batch)[:2]
    theirs = -orpo_trainer.odds_ratio_loss(chosen, rejected)[0].mean()
    scores = scored(world.policy, rows["input_ids"], rows["attention_mask"], rows["completion_mask"])
    term = ORPO(ORPOConfig(odds_weight=BETA))(scores, {}, pair_feedback())["odds_ratio"]
    assert_same(world.policy, term.sum / term.weight, theirs)


def test_orpo_differs_from_trl_by_the_prompt_in_the_first_term(world, orpo_trainer):
    """TRL: cross-entropy over prompt and response. Ours: over the response. Nothing else differs."""
    batch, rows = as_pairs(orpo_trainer)
    theirs, _ = orpo_trainer.get_batch_loss_metrics(world.policy, batch)
    mine = ours(ORPO(ORPOConfig(odds_weight=BETA)), world, rows, pair_feedback())
    half = slice(0, len(PAIRS))
    ids, attention = rows["input_ids"][half], rows["attention_mask"][half]
    logits = world.policy(input_ids=ids, attention_mask=attention).logits[:, :-1].transpose(1, 2)

    def cross_entropy(counted: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits, ids[:, 1:].masked_fill(~counted[:, 1:].bool(), -100))

    difference = cross_entropy(attention) - cross_entropy(rows["completion_mask"][half])
    assert abs(difference.item()) > 1e-3
    assert_same(world.policy, mine + difference, theirs)


@pytest.fixture(scope="session")
def kto_trainer(world: World) -> Any:
    from datasets import Dataset
    from trl import KTOConfig as TrlConfig
    from trl import KTOTrainer

    rows = [
        {"prompt": p["prompt"], "completion": p["chosen" if i % 2 else "rejected"], "label": bool(i)} for i, p in enumerate(PAIRS)
    ]
    return KTOTrainer(
        model=world.policy,
        ref_model=world.reference,
        args=world.settings(TrlConfig, beta=BETA, desirable_weight=1.0, undesirable_weight=1.4),
        train_dataset=Dataset.from_list(rows),
        processing_class=world.tokenizer,
    )


@pytest.fixture(params=[False, True], ids=["as is", "policy and reference swapped"])
def exchanged(world: World, request):
    """Exchange the weights of the two models for one test (TRL fits each model's head for its role, so not the models)."""
    if request.param:
        _exchange(world)
    yield
    if request.param:
        _exchange(world)


@torch.no_grad()
def _exchange(world: World) -> None:
    for one, other in zip(world.policy.parameters(), world.reference.parameters(), strict=True):
        kept = one.clone()
        one.copy_(other)
        other.copy_(kept)


def test_kto_equals_trl(world, kto_trainer, exchanged):
    """Three desirable, one undesirable. Exchanging the models negates z0's mean, so one of the two cases is the clamped one."""
    batch = kto_trainer.data_collator([kto_trainer.train_dataset[i] for i in range(len(PAIRS))])
    theirs = kto_trainer.compute_loss(world.policy, batch)

    def both(model: Any) -> Scores:
        """The completions, then the mismatched ones, as one batch."""
        parts = [
            scored(model, *(batch[f"{p}{n}"] for n in ("input_ids", "attention_mask", "completion_mask"))) for p in ("", "KL_")
        ]
        longest = max(part.kind.shape[1] for part in parts)
        pad: Callable[[torch.Tensor], torch.Tensor] = lambda x: F.pad(x, (0, longest - x.shape[-1]))  # noqa: E731
        return Scores(*(torch.cat([pad(getattr(part, n)) for part in parts]) for n in ("log_probs", "mask", "kind")))

    count = len(PAIRS)
    labels = [1 if label else -1 for label in batch["label"]] + [0] * count
    feedback = feedback_of(example(2 * count, labels=labels, mismatched=range(count, 2 * count)))
    with torch.no_grad():
        frozen = both(world.reference)
    scores = both(world.policy)
    objective = KTO(KTOConfig(beta=BETA, undesirable_weight=1.4, kl="mismatch"))
    term = objective(scores, {"reference": frozen}, feedback)["preference"]
    assert_same(world.policy, term.sum / term.weight, theirs)

    means = [(s.reduced() - f.reduced())[count:].mean().item() for s, f in ((scores, frozen), (frozen, scores))]
    assert means[0] == pytest.approx(-means[1], abs=1e-5) and abs(means[0]) > 0.1
