"""Easy-to-hard: a process reward that has seen easy problems only reranks, and trains, on hard ones (Sun et al. 2024).

Section numbers of arXiv 2403.09472: the generator is a language model made from code that has read solutions of all levels by
people who forget carries (`carrying`). Steps are labelled right or wrong on the generator's own solutions of EASY problems (3.2).
Hard problems come without labels and without answers: their solutions are reranked (3.3), and the generator is trained on them
by the process reward (3.4). Known answers are used to judge, never to train.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from animals import run
from carrying import EASY, FORGETS, HARD, Addition, answer_of, problems, solved
from ledger import Proof, options

from polyalign.evaluation.intervals import Interval, bootstrap, paired_gain
from polyalign.policies.tiny_language import byte_tokenizer, tiny_llama
from polyalign.records.jsonl import write_jsonl
from polyalign.records.schema import Record
from polyalign.rewards.base import Judged
from polyalign.rewards.reward_model import RewardModelReward
from polyalign.rewards.reward_model_config import RewardModelRewardConfig
from polyalign_text.config import TextConfig
from polyalign_text.policy import TextPolicy, build

TEXT = {"name": "text", "chat_template": "none", "max_length": 80, "max_response": 48, "rows": "plain"}
LINES = 44  # tokens of the longest solution


def trained(name: str, folder: Path, base: Path, records: Sequence[Record], steps: int, rate: float, **recipe: Any) -> Path:
    """Train a recipe on these records; return its run folder."""
    write_jsonl(folder / f"{name}-data" / "train.jsonl", records)
    whole = {
        "name": name,
        "policy": {**TEXT, "base": str(base)},
        "data": {"train": [{"path": str(folder / f"{name}-data")}]},
        "training": {
            "steps": steps,
            "batch_size": 64,
            "micro_batch_size": 32,
            "optimizer": {"learning_rate": rate, "schedule": "cosine", "warmup_steps": min(50, steps // 2)},
            "log_every": 100,
        },
        "report": {"prompts": 0},
    }
    for key, value in recipe.items():
        whole[key] = {**whole.get(key, {}), **value}
    run(whole, folder / name)
    return folder / name


def untaught(folder: Path) -> Path:
    """Write a model that has read nothing yet, and its tokenizer, as a folder that transformers loads."""
    tokenizer = byte_tokenizer(template=None)
    settings = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    tiny_llama(len(tokenizer), layers=2, hidden=64, **settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sampled(policy: TextPolicy, asked: Sequence[Addition], each: int, seed: int) -> list[list[str]]:
    """Return ``each`` solutions per problem, drawn at temperature 1."""
    policy.eval()
    prompts = [problem.prompt() for problem in asked]
    rollouts = policy.generate(prompts, samples_per_prompt=each, seed=seed, max_new_tokens=LINES, batch_size=512)
    return [[str(rollout.output) for rollout in rollouts[at * each : (at + 1) * each]] for at in range(len(asked))]


def complete(prompt: str, output: str) -> float:
    """A reward: 1 for as many lines as the problem has steps, which its text shows; says nothing of their being right."""
    return float(len(output.splitlines()) == len(prompt.strip()) // 2 - 1)


def right(problem: Addition, solution: str) -> bool:
    return answer_of(solution) == str(problem.answer)


def voted(answers: Sequence[str], weights: Sequence[float]) -> str:
    """Return the answer with the largest total weight, the first of equal ones; equal weights are a majority vote."""
    totals: dict[str, float] = {}
    for answer, weight in zip(answers, weights, strict=True):
        totals[answer] = totals.get(answer, 0.0) + weight
    return max(totals, key=lambda answer: totals[answer])


Choice = Callable[[Sequence[str], Sequence[float]], str]


def best(answers: Sequence[str], weights: Sequence[float]) -> str:
    """Return the answer of the solution with the highest score."""
    return answers[int(np.argmax(weights))]


def accuracies(asked: Sequence[Addition], solutions: list[list[str]], scores: np.ndarray, choose: Choice) -> list[float]:
    """Return 1 for each problem whose chosen answer is right. ``scores`` ``[problems, solutions]``."""
    chosen = [choose([answer_of(one) for one in own], row) for own, row in zip(solutions, scores)]
    return [float(answer == str(problem.answer)) for answer, problem in zip(chosen, asked, strict=True)]


def scored(run_folder: Path, asked: Sequence[Addition], solutions: list[list[str]]) -> np.ndarray:
    """Return what the reward model of a run gives each solution, ``[problems, solutions]``."""
    reward = RewardModelReward(RewardModelRewardConfig(run=str(run_folder), batch_size=256))
    items = [Judged(problem.prompt(), one) for problem, own in zip(asked, solutions, strict=True) for one in own]
    return np.array(reward.score(items)).reshape(len(asked), -1)


def shown(interval: Interval) -> dict[str, float]:
    return {name: round(value, 4) for name, value in vars(interval).items()}


def alone(asked: Sequence[Addition], solutions: list[list[str]]) -> list[list[float]]:
    """Return whether each single solution is right."""
    return [[float(right(problem, one)) for one in own] for problem, own in zip(asked, solutions, strict=True)]


def main() -> None:
    smoke = options(__doc__).smoke
    claim = "on hard problems, votes weighted by a process reward trained on easy ones beat majority vote, intervals apart"
    proof = Proof("easy-to-hard", claim, smoke)
    few = 8 if smoke else 1
    hard, easy = problems(HARD, 300 // few, "hard test"), problems(EASY, 300 // few, "easy test")
    labelled = [problem for problem in problems(EASY, 2000 // few, "easy train") if problem not in easy]
    unlabelled = [problem for problem in problems(HARD, 1000 // few, "hard train") if problem not in hard]
    with tempfile.TemporaryDirectory() as place:
        folder, draw = Path(place), random.Random(0)
        levels = tuple(range(1, max(HARD) + 1))
        corpus = [
            solved(f"corpus-{number}", problem, [problem.written(draw, FORGETS)])
            for number, problem in enumerate(problems(levels, 20_000 // few, "corpus"))
        ]
        sft = {"objective": {"name": "sft"}}
        reader = trained("corpus", folder, untaught(folder / "untaught"), corpus, 4 if smoke else 1000, 3e-3, **sft)
        generator = build(TextConfig.model_validate({**_options(), "base": str(reader / "model")}))
        attempts = sampled(generator, labelled, 4, seed=1)
        records = [solved(f"easy-{at}", problem, own, labelled=True) for at, (problem, own) in enumerate(zip(labelled, attempts))]
        assert {record.conditions["difficulty"] for record in records} <= set(EASY), "a hard problem is among the labelled"
        goal = {"name": "process_reward", "aggregate": "product"}
        process = trained("process", folder, reader / "model", records, 4 if smoke else 300, 1e-3, objective=goal)

        solutions = sampled(generator, hard, 16, seed=2)
        constant = np.ones((len(hard), 16))
        scores = scored(process, hard, solutions)
        chosen = {
            "majority_vote": accuracies(hard, solutions, constant, voted),
            "process_best_of_16": accuracies(hard, solutions, scores, best),
            "process_weighted_vote": accuracies(hard, solutions, scores, voted),
            "any_of_16": [float(max(row)) for row in alone(hard, solutions)],
        }
        found = {name: bootstrap(values) for name, values in chosen.items()}
        print("\n".join(f"hard, {name}: {interval}" for name, interval in found.items()), flush=True)

        prompts = [solved(f"hard-{at}", problem, ["unknown"]) for at, problem in enumerate(unlabelled)]
        judge = {"name": "reward_model", "run": str(process)}
        tuned_by = trained(
            "hard",
            folder,
            reader / "model",
            prompts,
            2 if smoke else 30,
            5e-4,
            objective={"name": "grpo", "kl_weight": 0.01},
            online={
                # Steps that are not written cannot be wrong: without the second factor the policy learns to write none.
                "rewards": [{"name": "product", "terms": [judge, {"name": f"{Path(__file__)}:complete"}]}],
                "decoding": {"max_new_tokens": LINES, "batch_size": 512},
            },
            training={"batch_size": 16, "micro_batch_size": 16, "log_every": 10},
        )
        tuned = build(TextConfig.model_validate({**_options(), "base": str(tuned_by / "model")}))
        by_level = {}
        for name, asked in (("easy", easy), ("hard", hard)):
            before, after = (alone(asked, sampled(policy, asked, 8, seed=3)) for policy in (generator, tuned))
            gain = paired_gain(before, after)
            by_level[name] = {"before": shown(bootstrap(before)), "after": shown(bootstrap(after)), "gain": shown(gain)}
        after = accuracies(hard, sampled(tuned, hard, 16, seed=2), constant, voted)
    proof.settle(
        found["process_weighted_vote"].low > found["majority_vote"].high,
        hard_problems=len(hard),
        labelled_easy_problems=len(labelled),
        hard_accuracy={name: shown(interval) for name, interval in found.items()},
        best_of_16_over_majority=shown(paired_gain(chosen["majority_vote"], chosen["process_best_of_16"])),
        weighted_over_majority=shown(paired_gain(chosen["majority_vote"], chosen["process_weighted_vote"])),
        single_answers_after_training_on_hard=by_level,
        majority_vote_after_training_on_hard=shown(bootstrap(after)),
    )


def _options() -> dict[str, Any]:
    return {name: value for name, value in TEXT.items() if name != "name"}


if __name__ == "__main__":
    main()
