"""Distillation at work on tiny real models: a student comes to prefer what its teacher prefers, on prompts it never saw.

Teacher and student first learn to say either of two answers; then the teacher alone learns by DPO which one is better. The
margin is the log-probability of the better answer less that of the worse one. The student never sees a preference
except, for dckd, which of two answers is which: what moves it are the teacher's stored distributions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from polyalign.objectives.base import Objective
from polyalign.objectives.config import DPOConfig
from polyalign.objectives.distillation import ADPA, DCKD, GKD
from polyalign.objectives.distillation_config import ADPAConfig, DCKDConfig, GKDConfig, TeacherConfig
from polyalign.objectives.pairwise import DPO
from polyalign.objectives.supervised import SFT
from polyalign.policies.completion_mask import PromptResponseEncoder
from polyalign.policies.config import TokensConfig
from polyalign.policies.reference import FrozenCopy
from polyalign.policies.tiny_language import byte_tokenizer, tiny_llama
from polyalign.policies.tokens import TokenPolicy
from polyalign.records.samples import Edge, Example, Sample
from polyalign.records.schema import Message, TextPart
from polyalign.training import teaching
from polyalign.training.batches import collate_examples
from polyalign.training.self_samples import SelfSamples, WithSelfSamples
from polyalign.training.window import WindowLoss

pytestmark = pytest.mark.slow  # a minute in all

WORDS = "tea rain moss iron salt wool reed clay lime dusk fern jade oak pear silk zinc".split()
BETTER, WORSE = "Yes, do.", "No, never."


def policy_of(seed: int, hidden: int) -> TokenPolicy:
    tokenizer = byte_tokenizer()
    model = tiny_llama(len(tokenizer), hidden=hidden, seed=seed, initializer_range=0.1)
    return TokenPolicy(model, PromptResponseEncoder(tokenizer), TokensConfig(max_length=80, max_response=24))


def pairs(words: list[str]) -> list[Example]:
    found = []
    for word in words:
        prompt = (Message(role="user", parts=f"May I take {word}?"),)  # type: ignore[arg-type]
        samples = tuple(Sample(f"{word}{n}", prompt, (TextPart(text=text),), word) for n, text in enumerate((BETTER, WORSE)))
        found.append(Example(word, samples, edges=(Edge(0, 1),)))
    return found


TRAIN, HELD_OUT = pairs(WORDS[:12]), pairs(WORDS[12:])
SINGLE = [Example(example.record_id, (sample,)) for example in TRAIN for sample in example.samples]


def train(policy: TokenPolicy, objective: Objective, examples: Any, steps: int, rate: float = 3e-3) -> None:
    reference = FrozenCopy(policy) if "reference" in objective.needs else None
    window = WindowLoss(policy, reference, objective, "cpu")
    optimizer = torch.optim.AdamW(policy.parameters(), lr=rate, weight_decay=0.0)
    micro = collate_examples(examples, policy.collator)
    for _ in range(steps):
        window.train([micro], lambda loss, last: loss.backward())
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def margin(policy: TokenPolicy) -> float:
    """Mean margin on held-out prompts, nats."""
    with torch.no_grad():
        values = policy(policy.collator([sample for example in HELD_OUT for sample in example.samples])).reduced()[:, 0]
    return float((values[::2] - values[1::2]).mean())


class Scene:
    """The teacher before and after DPO, and how to make the student that knows both answers."""

    def __init__(self) -> None:
        self.before = policy_of(1, hidden=48)
        train(self.before, SFT(), SINGLE, 40)
        self.tuned = policy_of(1, hidden=48)
        self.tuned.load_state_dict(self.before.state_dict())
        train(self.tuned, DPO(DPOConfig(beta=0.1)), TRAIN, 6, rate=1e-3)
        started = policy_of(2, hidden=32)
        train(started, SFT(), SINGLE, 40)
        self.start = {name: value.clone() for name, value in started.state_dict().items()}

    def student(self) -> TokenPolicy:
        policy = policy_of(2, hidden=32)
        policy.load_state_dict(self.start)
        return policy


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene()


def distilled(scene: Scene, objective: Objective, examples: list[Example], folder: Path, steps: int) -> TokenPolicy:
    student = scene.student()
    if "self_samples" in objective.needs:
        own = SelfSamples(folder, student, 2, 0, {"max_new_tokens": 12})
        own.draw([sample for example in examples for sample in example.samples])
        examples = [WithSelfSamples(examples, own)[number] for number in range(len(examples))]  # type: ignore[arg-type]
    teachers = teaching.Teachers(scene.tuned, scene.before)
    config = TeacherConfig.model_validate({"policy": {"name": "text", "base": "unused"}, "top_k": 32, "store": str(folder)})
    store = teaching.open_store(config, teachers, student)
    teaching.teach(teachers, student, [sample for example in examples for sample in example.samples], store, 16, quiet=True)
    student.collator.taught = store
    train(student, objective, examples, steps, rate=1e-3)
    student.collator.taught = None
    return student


def test_the_scene_is_what_it_says(scene: Scene) -> None:
    """The teacher has learned a margin of several nats; before, it and the student knew both answers and cared little."""
    assert margin(scene.tuned) > 4
    assert abs(margin(scene.before)) < 1 and abs(margin(scene.student())) < 1
    with torch.no_grad():
        worst = scene.student()(scene.student().collate([one for e in HELD_OUT for one in e.samples])).reduced("mean").min()
    assert worst > -0.7, "of about ten tokens only the first is undecided"


@pytest.mark.parametrize(
    ("objective", "steps"),
    [
        (GKD(GKDConfig(beta=0.0)), 60),
        (GKD(GKDConfig(beta=0.5)), 60),
        (GKD(GKDConfig(beta=1.0)), 60),
        (DCKD(DCKDConfig(nll_weight=0.1)), 60),
    ],
    ids=["forward", "js", "reverse", "dckd"],
)
def test_a_student_comes_most_of_the_way_to_its_teachers_margin(
    scene: Scene, objective: Objective, steps: int, tmp_path: Path
) -> None:
    found = margin(distilled(scene, objective, TRAIN, tmp_path, steps))
    goal, start = margin(scene.tuned), margin(scene.student())
    print(f"margin: teacher {goal:.2f}, student before {start:.2f}, after {found:.2f}")
    assert abs(goal - found) < 0.3 * abs(goal - start)


def test_adpa_moves_the_student_towards_the_teachers_margin_from_its_own_samples(scene: Scene, tmp_path: Path) -> None:
    """Likelihood of both answers is trained along; only the advantage on the student's own responses tells them apart."""
    found = margin(distilled(scene, ADPA(ADPAConfig(nll_weight=0.1)), SINGLE, tmp_path, 60))
    goal, start = margin(scene.tuned), margin(scene.student())
    print(f"margin: teacher {goal:.2f}, student before {start:.2f}, after {found:.2f}")
    assert found - start > 0.5 * (goal - start)
