"""UniAct: the codebook, the heads whose likelihood is Huber's loss, and one policy for several bodies."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import polyalign
from polyalign.errors import ConfigError, RecordError
from polyalign.records.parquet import write_parquet
from polyalign.records.samples import Sample
from polyalign.records.store import MediaStore
from polyalign_action.codebook import Codes, GumbelCodebook, gumbel
from polyalign_action.episodes import candidate_of
from polyalign_action.fixture import InMemory
from polyalign_action.huber_head import HuberHead
from polyalign_action.reach import VIEW
from polyalign_action.reach_demonstrations import demonstrated, records
from polyalign_action.tasks import Task
from polyalign_action.uniact import UniActPolicy, build
from polyalign_action.uniact_config import UniActConfig
from polyalign_action.uniact_measures import agreement, explained

BODIES = ("Cursor", "Boat", "Arm", "Keys")


def policy_of(bodies: tuple[str, ...] = BODIES, **settings: Any) -> UniActPolicy:
    """Return a small policy, its heads' last layers large enough that what they are given shows."""
    names = tuple(f"Reach/{body}" for body in bodies)
    options: dict[str, Any] = {"hidden": (16,), "head_hidden": (16,), "codes": 6, "code_size": 5, "max_steps": 10, **settings}
    policy = build(UniActConfig(embodiments=names, view=VIEW, **options))
    if "base" not in settings:
        with torch.no_grad():
            for trunk in policy.trunks.values():
                trunk.last[-1].weight.mul_(10)  # type: ignore[index, union-attr, operator]
    return policy


def sample_of(body: str, seed: int, astray: int = 0, **changes: Any) -> Sample:
    media = InMemory()
    task, episode = demonstrated(body, seed, astray)
    return replace(Sample("s", task.prompt(), candidate_of(episode, media.add).parts, f"pair-{seed}", media), **changes)


def codebook(mode: Codes, temperatures: tuple[float, float] = (2.0, 0.5)) -> GumbelCodebook:
    return GumbelCodebook(4, 6, 3, mode, temperatures, torch.Generator().manual_seed(0))


# the likelihood


def test_the_loss_is_hubers_up_to_a_constant() -> None:
    """With scale 1 the negative log-likelihood minus that of a perfect prediction is Huber's loss, by a loop over elements."""
    head = HuberHead([2.0, 0.5], delta=0.1, initial_std=1.0)
    draw = torch.Generator().manual_seed(1)
    outputs, actions = (torch.randn(50, 2, generator=draw) * scale for scale in (0.1, 0.2))
    found = head.log_probs(outputs, outputs) - head.log_probs(outputs, actions)
    for row in range(50):
        expected = 0.0
        for column, unit in enumerate((2.0, 0.5)):
            error = abs(float(outputs[row, column] - actions[row, column])) / unit
            expected += error**2 / 2 if error <= 0.1 else 0.1 * (error - 0.05)
        assert float(found[row]) == pytest.approx(expected, abs=1e-5)


def test_the_density_integrates_to_one_and_draws_follow_it() -> None:
    """The mass by quadrature; the entropy and the share of draws below each tenth against a numerical integral."""
    head = HuberHead([2.0], delta=0.1, initial_std=0.3).double()
    grid = torch.linspace(-60, 60, 600_001, dtype=torch.float64)[:, None]
    width = float(grid[1] - grid[0])
    density = head.log_probs(torch.zeros_like(grid), grid).exp()
    assert float(density.sum() * width) == pytest.approx(1, abs=1e-4)
    assert float(head.entropy(torch.zeros(1, 1))) == pytest.approx(-float((density * density.log()).sum() * width), abs=1e-3)
    drawn = head.draw(torch.zeros(40_000, 1), head.noise(40_000, torch.Generator().manual_seed(0)))[:, 0]
    cumulative = density.cumsum(0) * width
    for place in torch.linspace(-3, 3, 13):
        expected = float(cumulative[int((place + 60) / width)])
        assert float((drawn < place).double().mean()) == pytest.approx(expected, abs=4 * 0.5 / 200)


# the codebook


def test_the_temperature_falls_in_a_line_and_only_training_moves_it() -> None:
    book = codebook("soft")
    found = []
    for done in (0.0, 0.25, 1.0):
        book.anneal(done)
        book(torch.randn(3, 4))
        found.append(float(book.temperature))
    assert found == [2.0, 1.625, 0.5]


def test_soft_choices_are_the_gumbel_softmax() -> None:
    book, states = codebook("soft"), torch.randn(7, 4)
    noise = gumbel(7, 6, torch.Generator().manual_seed(3))
    weights = torch.softmax((book.project(states) + noise) / 2.0, -1)
    torch.testing.assert_close(book(states, noise)[0], weights @ book.codes)
    torch.testing.assert_close(book(states, noise)[1], torch.log_softmax(book.project(states), -1))


def test_gumbel_noise_picks_codes_as_often_as_their_probabilities_say() -> None:
    logits = torch.tensor([0.1, 0.6, 0.3]).log()
    picked = (logits + gumbel(20_000, 3, torch.Generator().manual_seed(0))).argmax(-1)
    torch.testing.assert_close(torch.bincount(picked) / 20_000, logits.exp(), atol=4 * 0.5 / 141, rtol=0)


def test_hard_and_straight_through_give_one_code_and_only_the_latter_teaches_the_extractor() -> None:
    states = torch.randn(7, 4)
    for mode in ("hard", "straight_through"):
        book = codebook(mode)  # type: ignore[arg-type]
        universal, log_probs = book(states)
        torch.testing.assert_close(universal, book.codes[log_probs.argmax(-1)])
        assert universal.requires_grad == (mode == "straight_through")
    universal.square().sum().backward()
    assert book.project.weight.grad is not None and book.project.weight.grad.abs().sum() > 0


# the policy


def test_rollouts_of_several_bodies_score_again_as_they_were_played() -> None:
    policy = policy_of()
    prompts = [demonstrated(body, seed)[0].prompt() for seed in (1, 2) for body in BODIES]
    rollouts = policy.generate(prompts, samples_per_prompt=2, seed=5)
    scores = policy(policy.collator.of_rollouts(rollouts), frozenset({"entropy", "codes"}))
    for row, rollout in enumerate(rollouts):
        steps = len(rollout.output)
        assert rollout.output.environment == f"Reach/{BODIES[row // 2 % 4]}" and rollout.old_log_probs is not None
        torch.testing.assert_close(scores.log_probs[row, 0, :steps], rollout.old_log_probs, rtol=0, atol=1e-5)
        assert not scores.log_probs[row, 0, steps:].any()
    torch.testing.assert_close(scores.extras["codes"].exp().sum(-1)[scores.mask[:, 0]], torch.ones(int(scores.mask.sum())))


def test_a_trajectory_is_scored_alike_whoever_shares_its_batch() -> None:
    policy, samples = policy_of(), [sample_of(body, 3) for body in BODIES]
    together = policy(policy.collate(samples)).log_probs
    for row, sample in enumerate(samples):
        alone = policy(policy.collate([sample])).log_probs
        torch.testing.assert_close(together[row, :, : alone.shape[-1]], alone[0], rtol=1e-5, atol=1e-5)


def test_better_worse_and_reference_meet_the_same_noise_and_the_next_epoch_another() -> None:
    policy = policy_of()
    better, worse, later = sample_of("Arm", 3), sample_of("Arm", 3, astray=1), sample_of("Arm", 3, epoch=1)
    noise = policy.collate([better, worse, later]).tensors["noise"]  # [3, T, K]
    shared = min(len(demonstrated("Arm", 3, astray)[1]) for astray in (0, 1))
    torch.testing.assert_close(noise[0, :shared], noise[1, :shared], rtol=0, atol=0)
    assert not torch.equal(noise[0, :shared], noise[2, :shared])
    assert "noise" not in policy_of(noise=False).collate([better]).tensors


def test_the_instruction_decides_where_to_go() -> None:
    policy, (task, _) = policy_of(), demonstrated("Cursor", 4)
    other = Task(task.environment, task.seed, instruction="reach for the purple disc")
    one, two = (policy.generate([asked.prompt()], greedy=True)[0].output for asked in (task, other))
    assert not np.array_equal(one.actions, two.actions)


def test_a_new_body_learns_by_its_head_alone(tmp_path: Path) -> None:
    """Two steps of the trainer: extractor and codes stay bit for bit, the head moves."""
    policy_of().save(tmp_path / "model")
    store = MediaStore(tmp_path / "media")
    write_parquet(tmp_path / "train.parquet", list(records(["Wheels"], range(2), store.add)), store)
    settings = {"hidden": [16], "head_hidden": [16], "codes": 6, "code_size": 5, "base": str(tmp_path / "model")}
    settings |= {
        "embodiments": ["Reach/Wheels"],
        "choice": "hard",
        "trains": "heads",
        "heads_see": "all",
        "temperature": [2.0, 0.5],
    }
    run = polyalign.train(
        "action/uniact-reach",
        out=tmp_path / "run",
        data={"train": [{"path": str(tmp_path / "train.parquet")}], "eval": []},
        training={"steps": 2, "batch_size": 2, "eval_every": None},
        policy=settings,
        **{"report.prompts": 0},
    )
    before = policy_of(("Wheels",), base=str(tmp_path / "model"), choice="hard", trains="heads").state_dict()
    after = policy_of(("Wheels",), base=str(run.folder / "model"), choice="hard", trains="heads").state_dict()
    moved = {name.partition(".")[0] for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved == {"trunks", "codebook"}  # of the codebook its temperature alone:
    assert torch.equal(after["codebook.codes"], before["codebook.codes"])
    assert float(before["codebook.temperature"]) == 2.0 and float(after["codebook.temperature"]) == 0.5  # annealed by the trainer


def test_explained_is_one_for_the_expert_and_zero_for_its_mean() -> None:
    policy = policy_of(("Cursor",), head_hidden=(4,))
    episodes = [demonstrated("Cursor", seed) for seed in range(5)]
    taken = np.concatenate([episode.actions for _, episode in episodes])
    with torch.no_grad():
        trunk: Any = policy.trunks["Reach/Cursor"]
        trunk.last[-1].weight.zero_()
        trunk.last[-1].bias.copy_(torch.from_numpy(taken.mean(0)))
    assert explained(policy, episodes) == pytest.approx(0, abs=1e-6)
    shown = [(task, replace(episode, actions=np.tile(taken.mean(0), (len(episode), 1)))) for task, episode in episodes]
    shown[0][1].actions[0] += 1e-3  # some variance to explain
    assert explained(policy, shown) == pytest.approx(0, abs=0.1)


def test_agreement_compares_the_same_situations() -> None:
    policy = policy_of(("Cursor", "Keys"))
    one, other = ([demonstrated(body, seed) for seed in range(3)] for body in ("Cursor", "Keys"))
    assert agreement(policy, one, other) == 1  # both see the same ten numbers
    with pytest.raises(RecordError, match="same seeds"):
        agreement(policy, one, other[1:])


def test_what_does_not_fit_is_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match="fewer than policy.view=10"):
        build(UniActConfig(embodiments=("CartPole-v1",), view=10))
    with pytest.raises(ConfigError, match="has heads for Reach/Cursor, Reach/Boat"):
        policy_of().generate([Task("Reach/Wheels", 1).prompt()])
    with pytest.raises(ValueError, match="train it soft"):
        UniActConfig(embodiments=("Reach/Arm",), view=10, choice="hard")
    with pytest.raises(ValueError, match="name one twice"):
        UniActConfig(embodiments=("Reach/Arm", "Reach/Arm"), view=10)


def test_an_even_choice_costs_nothing_and_a_certain_one_log_k() -> None:
    from polyalign.objectives.base import FeedbackTensors
    from polyalign.policies.base import Scores
    from polyalign.records.samples import Example
    from polyalign_action.uniact_config import UniActObjectiveConfig
    from polyalign_action.uniact_objective import UniActCloning

    feedback = FeedbackTensors.of([Example("r", (sample_of("Keys", 1),))])
    mask = torch.tensor([[[True, True, False]]])
    for logits, expected in ((torch.zeros(8), 0.0), (torch.tensor([50.0, *[0.0] * 7]), math.log(8))):
        extras = {"codes": torch.log_softmax(logits, -1).expand(1, 3, 8)}
        scores = Scores(torch.zeros(1, 1, 3), mask, torch.zeros(1, 3, dtype=torch.long), extras)  # type: ignore[arg-type]
        term = UniActCloning(UniActObjectiveConfig(entropy_coef=0.5))(scores, {}, feedback)["code_use"]
        assert float(term.sum / term.weight) == pytest.approx(0.5 * expected, abs=1e-4)
        assert set(UniActCloning()(scores, {}, feedback)) == {"nll"}  # UniAct's code leaves the term out
