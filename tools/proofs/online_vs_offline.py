"""Online against offline preference training where the truth is known (after Tang et al. 2024, arXiv 2405.08448).

A gold reward labels 300 pairs of the reference's own answers. Offline, the policy trains on these pairs. Online, a proxy reward
model that has learnt from the same pairs ranks what the policy itself answers at every step. Same loss, same optimiser, and
neither sees the gold reward, which judges both at equal divergence from the reference. Two more arms tell causes apart: online
with the gold reward in the proxy's place (what a perfect proxy would give), and offline on the pairs that the online run met,
shuffled (whether coverage explains the gap).

What it can show: in a bandit, online data differ from offline data in which answers they COVER, and in nothing else that the
paper studies. It cannot confirm the paper's claim that coverage is not the whole explanation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from bandit import ANSWERS, Table, TableReward, World, answered, preferred, question
from ledger import ROOT, Proof, options

from polyalign.evaluation.intervals import bootstrap, paired_gain
from polyalign.objectives.base import Objective
from polyalign.objectives.reward_modeling.bradley_terry import BradleyTerry
from polyalign.plugins.registry import registry
from polyalign.policies.reference import FrozenCopy, Reference
from polyalign.randomness import keyed_seed
from polyalign.records.samples import Example, Sample
from polyalign.training.batches import MicroBatch, collate_examples
from polyalign.training.config import OnlineConfig, Slot, TrainingConfig
from polyalign.training.online import RolloutSteps
from polyalign.training.rollouts import Judges
from polyalign.training.window import WindowLoss

PAIRS, BATCH, BETA = 300, 32, 0.1
EVERY = 5  # steps between points of a path
BUDGETS = (0.3, 0.6, 1.0, 1.5)  # nats
Path = list[tuple[float, float]]  # (KL, gold reward), from the reference on


class Listed:
    """Examples in memory, in a keyed order that changes with every pass."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]

    def position(self, position: int, seed: int) -> tuple[int, int]:
        epoch, place = divmod(position, len(self.examples))
        order = sorted(range(len(self.examples)), key=lambda index: keyed_seed(seed, epoch, index))
        return order[place], epoch


def batches(examples: Sequence[Example], policy: Table, steps: int, seed: int) -> Iterator[list[MicroBatch]]:
    """Yield ``steps`` batches of the examples, pass after pass."""
    draw = torch.Generator().manual_seed(seed)
    order: list[int] = []
    for _ in range(steps):
        while len(order) < BATCH:
            order += torch.randperm(len(examples), generator=draw).tolist()
        chosen, order = order[:BATCH], order[BATCH:]
        yield [collate_examples([examples[index] for index in chosen], policy.collator)]


@cache
def known(seed: int) -> tuple[World, list[Example], torch.Tensor]:
    """Return a world, the pairs that the gold reward labelled, and the rewards ``[50]`` that a Bradley-Terry model learns from
    them: the proxy."""
    world = World.of(seed)
    pairs = world.pairs(PAIRS, seed)
    policy, model = Table(world.reference).requires_grad_(False), BradleyTerry()
    model.attach(policy, pairs)
    loss = WindowLoss(policy, None, model, "cpu")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.06, weight_decay=0.1)
    for window in batches(pairs, policy, 150, seed):
        loss.train(window, lambda value, last: value.backward())
        optimizer.step()
        optimizer.zero_grad()
    answers = policy.collate([answered(str(answer), answer) for answer in range(ANSWERS)])
    return world, pairs, model.rewards(policy(answers, model.wants)).detach()


def path_of(
    world: World, policy: Table, reference: Reference, objective: Objective, windows: Iterator[list[MicroBatch]], rate: float
) -> Path:
    """Train on the windows; return where the policy was on the way."""
    loss = WindowLoss(policy, reference, objective, "cpu")
    optimizer = torch.optim.AdamW(policy.parameters(), lr=rate, weight_decay=0.0)
    path = [world.place(policy)]
    for step, window in enumerate(windows, 1):
        loss.train(window, lambda value, last: value.backward())
        optimizer.step()
        optimizer.zero_grad()
        if step % EVERY == 0:
            path.append(world.place(policy))
    return path


def online_windows(
    policy: Table, reference: Reference, objective: Objective, proxy: torch.Tensor, steps: int, seed: int, met: list[Example]
) -> Iterator[list[MicroBatch]]:
    """Yield batches of pairs that the policy of that moment answers and the proxy ranks; ``met`` collects them."""
    asked = Listed([Example(f"question-{n}", (Sample(f"q{n}", question(n), (), f"q{n}"),)) for n in range(BATCH)])
    online = OnlineConfig(rewards=(Slot(name="table"),), samples_per_prompt=2)
    judges = Judges(online, {"table": TableReward(proxy)}, {})
    settings = TrainingConfig(steps=steps, batch_size=BATCH, seed=seed)
    rounds = RolloutSteps(asked, policy, objective, reference, judges, online, settings)
    for step in range(steps):
        window = rounds[step].micro_batches
        for micro in window:
            answers = micro.batch.tensors["answers"].tolist()
            edges = zip(micro.feedback.edges.better.tolist(), micro.feedback.edges.worse.tolist())
            met += [preferred(len(met) + n, answers[better], answers[worse]) for n, (better, worse) in enumerate(edges)]
        yield window


def arms(seed: int, loss: str, steps: int, rate: float) -> dict[str, Path]:
    """Return the path of each arm in one world."""
    world, pairs, proxy = known(seed)
    spec = registry().get("objectives", loss)
    made: Callable[[], Any] = lambda: spec.load()(spec.load_config()(beta=BETA))  # noqa: E731
    start, met = Table(world.reference), list[Example]()
    reference = FrozenCopy(start)
    found = {}
    for arm, judge, seen in (("online", proxy, met), ("online_by_gold", world.gold, list[Example]())):
        policy = Table(world.reference)
        windows = online_windows(policy, reference, made(), judge, steps, seed, seen)
        found[arm] = path_of(world, policy, reference, made(), windows, rate)
    offline, replayed = Table(world.reference), Table(world.reference)
    return found | {
        "offline": path_of(world, offline, reference, made(), batches(pairs, offline, steps, seed), rate),
        "replayed": path_of(world, replayed, reference, made(), batches(met, replayed, steps, seed), rate),
    }


def within(path: Path, budget: float) -> float:
    """Return the gold reward where the path last was within the budget of divergence."""
    return [gold for kl, gold in path if kl <= budget][-1]


def drawn(paths: dict[str, dict[str, list[Path]]]) -> None:
    """Write the frontier as a picture: every seed thin, the mean over seeds at each divergence thick."""
    import matplotlib
    import numpy as np

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(paths), figsize=(5 * len(paths), 4), sharey=True, squeeze=False)
    grid = np.linspace(0, 3, 61)
    for axis, (loss, by_arm) in zip(axes[0], paths.items()):
        for colour, (arm, found) in zip(("tab:blue", "black", "tab:red", "tab:green"), by_arm.items()):
            means = np.mean([[within(path, budget) for budget in grid] for path in found], 0)
            for path in found:
                axis.plot([kl for kl, _ in path], [gold for _, gold in path], color=colour, alpha=0.15, linewidth=0.7)
            axis.plot(grid, means, color=colour, label=arm)
        axis.set(xlim=(0, 3), title=loss, xlabel="KL(policy || reference), nats")
        axis.legend()
    axes[0][0].set_ylabel("gold reward")
    figure.tight_layout()
    figure.savefig(ROOT / "docs" / "proofs" / "online-vs-offline.png", dpi=110)


def main() -> None:
    smoke = options(__doc__).smoke
    claim = "at a KL of at most 1.5 nats, online with a perfect proxy beats offline in at least 4 of 5 worlds, by IPO and by DPO"
    proof = Proof("online-vs-offline", claim, smoke)
    seeds, steps = range(2 if smoke else 8), 20 if smoke else 200
    rates = {"ipo": 0.04, "dpo": 0.04}
    paths: dict[str, dict[str, list[Path]]] = {}
    for loss, rate in rates.items():
        by_seed = [arms(seed, loss, steps, rate) for seed in seeds]
        paths[loss] = {arm: [found[arm] for found in by_seed] for arm in by_seed[0]}
    table: dict[str, Any] = {}
    for loss, by_arm in paths.items():
        for budget in BUDGETS:
            gold = {arm: [within(path, budget) for path in found] for arm, found in by_arm.items()}
            wins = {
                arm: sum(on > off for on, off in zip(gold[arm], gold["offline"]))
                for arm in ("online", "online_by_gold", "replayed")
            }
            row: dict[str, Any] = {arm: vars(bootstrap(values)) for arm, values in gold.items()}
            row["online_minus_offline"] = vars(paired_gain(gold["offline"], gold["online"]))
            row["online_by_gold_minus_offline"] = vars(paired_gain(gold["offline"], gold["online_by_gold"]))
            table[f"{loss}, KL <= {budget}"] = row | {"wins_over_offline": wins}
        highest = {arm: [max(gold for _, gold in path) for path in found] for arm, found in by_arm.items()}
        table[f"{loss}, highest on the path"] = {arm: vars(bootstrap(values)) for arm, values in highest.items()}
    if not smoke:
        (ROOT / "docs" / "proofs").mkdir(exist_ok=True)
        drawn(paths)
    agreement = [float(torch.corrcoef(torch.stack([proxy, world.gold]))[0, 1]) for world, _, proxy in map(known, seeds)]
    holds = all(table[f"{loss}, KL <= 1.5"]["wins_over_offline"]["online_by_gold"] >= 0.8 * len(seeds) for loss in rates)
    proof.settle(holds, worlds=len(seeds), proxy_gold_correlation=vars(bootstrap(agreement)), gold_reward=table)


if __name__ == "__main__":
    main()
