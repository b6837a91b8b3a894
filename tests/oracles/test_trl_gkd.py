"""GKD against TRL 1.16's generalised Jensen-Shannon loss, on real models: value and gradient of the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from polyalign.objectives.base import FeedbackTensors
from polyalign.objectives.distillation import GKD
from polyalign.objectives.distillation_config import GKDConfig, TeacherConfig
from polyalign.policies.adapters import trainable
from polyalign.policies.completion_mask import PromptResponseEncoder
from polyalign.policies.config import TokensConfig
from polyalign.policies.tiny_language import byte_tokenizer, tiny_llama
from polyalign.policies.tokens import TokenPolicy
from polyalign.records.samples import Example, Sample
from polyalign.records.schema import Message, TextPart
from polyalign.training import teaching

TEXTS = {"Name a red fruit.": "Cherry.", "Hi": "A longer answer than the first one.", "Why?": ""}


def policy_of(seed: int, head_chunk: int | None = None) -> TokenPolicy:
    tokenizer = byte_tokenizer()
    config = TokensConfig(max_length=120, max_response=40, head_chunk=head_chunk)
    return TokenPolicy(tiny_llama(len(tokenizer), seed=seed, initializer_range=0.2), PromptResponseEncoder(tokenizer), config)


def samples() -> list[Sample]:
    return [
        Sample(question, (Message(role="user", parts=question),), (TextPart(text=text),), question)  # type: ignore[arg-type]
        for question, text in TEXTS.items()
    ]


@pytest.mark.parametrize("beta", [0.0, 0.2, 0.5, 1.0])
def test_gkd_equals_trl_on_all_tokens(beta: float, tmp_path: Path) -> None:
    """TRL reads whole rows and shifts labels itself; here rows are ids with -100 in front of the response and at padding."""
    trl: Any = pytest.importorskip("trl.experimental.gkd.gkd_trainer").GKDTrainer
    student, teacher = policy_of(1, head_chunk=7), policy_of(2)
    batch = student.collate(samples())
    ids, attention = batch.tensors["input_ids"], batch.tensors["attention_mask"]
    labels = ids.masked_fill(attention == 0, -100)
    labels[torch.arange(ids.shape[1]) < batch.tensors["prompt"][:, None]] = -100
    with torch.no_grad():
        said = teacher.model(ids, attention_mask=attention).logits
    own = student.model(ids, attention_mask=attention).logits
    expected = trl.generalized_jsd_loss(own[:, :-1], said[:, :-1], labels[:, 1:], beta=beta)
    slopes = torch.autograd.grad(expected, list(trainable(student).values()))

    teachers = teaching.Teachers(teacher)
    config = TeacherConfig.model_validate(
        {"policy": {"name": "text", "base": "unused"}, "top_k": 9999, "dtype": "float32", "store": str(tmp_path)}
    )
    store = teaching.open_store(config, teachers, student)
    teaching.teach(teachers, student, samples(), store, batch_size=2, quiet=True)
    student.collator.taught = store
    scores = student(student.collate(samples()), frozenset({"token_targets"}))
    feedback = FeedbackTensors.of([Example(sample.id, (sample,)) for sample in samples()])
    term = GKD(GKDConfig(beta=beta))(scores, {}, feedback)["distillation"]
    loss = term.sum / term.weight
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5, rel=1e-5)
    for found, slope in zip(torch.autograd.grad(loss, list(trainable(student).values())), slopes, strict=True):
        torch.testing.assert_close(found, slope, atol=1e-5, rtol=1e-4)
