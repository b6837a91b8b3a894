"""SALMON: one reward model judges by whatever principles its prompt names, also turned round (Sun et al. 2023, arXiv 2310.05910).

Responses are short strings of letters; a principle wants many of one letter, or many letters. Training pairs carry one or
two principles, half of them negated, and the most pronounced decides; a tenth of the labels are wrong, as in the paper. On
held-out sets of eight responses the model then judges by one principle at a time, and its choice must turn with it.
"""

from __future__ import annotations

import random
import tempfile
from itertools import combinations
from pathlib import Path

import numpy as np
from easy_to_hard import shown, trained
from ledger import Proof, options

from polyalign.evaluation.intervals import bootstrap
from polyalign.policies.tiny_language import tiny_llama, word_tokenizer
from polyalign.records.principles import ASKED, NEGATION, Principle, conditioned
from polyalign.records.schema import Candidate, Comparison, Message, Record, TextPart
from polyalign.rewards.base import Judged
from polyalign.rewards.reward_model import RewardModelReward
from polyalign.rewards.reward_model_config import RewardModelRewardConfig

LETTERS = "ab"
PRINCIPLES = [*(Principle(letter, f"Many {letter}") for letter in LETTERS), Principle("length", "Many letters")]
PROMPT = (Message(role="user", parts=(TextPart(text="Write."),)),)


def kept(principle: Principle, response: str) -> float:
    """Return how far the response keeps a principle: a count."""
    return float(len(response.split()) if principle.name == "length" else response.count(principle.name))


def untaught(folder: Path) -> Path:
    """Write a model that knows no word yet, and its tokenizer, as a folder that transformers loads."""
    said = " ".join(["Write.", ASKED, "-", NEGATION, *(principle.text for principle in PRINCIPLES), *LETTERS])
    tokenizer = word_tokenizer(list(dict.fromkeys(said.split())))
    tiny_llama(len(tokenizer), layers=3, hidden=64, initializer_range=0.1, eos_token_id=1, pad_token_id=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def written(count: int, draw: random.Random) -> list[str]:
    """Return distinct responses of 4 to 12 letters; each has its own taste for the letters."""
    found = dict[str, None]()
    while len(found) < count:
        taste = [draw.expovariate(1) for _ in LETTERS]
        found.setdefault(" ".join(draw.choices(LETTERS, taste, k=draw.randint(4, 12))))
    return list(found)


def compared(number: int, responses: list[str]) -> Record:
    """Return a record that compares two responses by every principle, where they differ; the strength is the difference."""
    feedback = []
    for principle in PRINCIPLES:
        first, second = (kept(principle, response) for response in responses)
        if first != second:
            ranking = ((0,), (1,)) if first > second else ((1,), (0,))
            feedback.append(Comparison(ranking=ranking, aspect=principle.name, strength=abs(first - second)))
    candidates = tuple(Candidate(parts=(TextPart(text=response),)) for response in responses)
    return Record(id=f"pair-{number}", prompt=PROMPT, candidates=candidates, feedback=tuple(feedback))


def main() -> None:
    smoke = options(__doc__).smoke
    claim = (
        "judging held-out responses by one principle agrees with it on more than 0.9 of pairs, negated or not, and negating it "
        "changes which of eight responses is best in more than 0.9 of cases, intervals above"
    )
    proof = Proof("salmon", claim, smoke)
    draw = random.Random(0)
    pairs = [compared(number, written(2, draw)) for number in range(64 if smoke else 6000)]
    sets = [written(8, draw) for _ in range(4 if smoke else 100)]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        records = list(conditioned(pairs, PRINCIPLES, passes=3, most=2, stop=0.6))
        judge = trained(
            "salmon",
            folder,
            untaught(folder / "untaught"),
            records,
            4 if smoke else 1000,
            3e-3,
            objective={"name": "salmon"},
            policy={"chat_template": "auto", "max_length": 100, "max_response": 16, "rows": "auto"},
        )
        agreement, turned, by_principle = [], [], {}
        for principle in PRINCIPLES:
            truth = np.array([[kept(principle, response) for response in own] for own in sets])
            rewards = {negated: judged(judge, sets, principle, negated) for negated in (False, True)}
            own = np.array(
                [
                    [agrees(known, plain), agrees(-known, turned_round)]
                    for known, plain, turned_round in zip(truth, rewards[False], rewards[True])
                ]
            )
            by_principle[principle.name] = {"as_written": shown(bootstrap(own[:, 0])), "negated": shown(bootstrap(own[:, 1]))}
            agreement.append(own.mean(1))
            turned.append(rewards[False].argmax(1) != rewards[True].argmax(1))
    found = {"agreement": bootstrap(np.array(agreement).T), "choice_turned": bootstrap(np.array(turned).T.astype(float))}
    proof.settle(
        all(interval.low > 0.9 for interval in found.values()),
        training_pairs=len(records),
        held_out_sets=len(sets),
        **{name: shown(interval) for name, interval in found.items()},
        by_principle=by_principle,
    )


def judged(run: Path, sets: list[list[str]], principle: Principle, negated: bool) -> np.ndarray:
    """Return the rewards ``[sets, responses]`` of a run's reward model under one principle or its opposite."""
    said = {"negated" if negated else "principles": (principle.text,)}
    reward = RewardModelReward(RewardModelRewardConfig(run=str(run), batch_size=256, **said))
    items = [Judged(PROMPT, response) for own in sets for response in own]
    return np.array(reward.score(items)).reshape(len(sets), -1)


def agrees(truth: np.ndarray, reward: np.ndarray) -> float:
    """Return the share of pairs with unequal truth that the reward orders likewise."""
    differing = [(a, b) for a, b in combinations(range(len(truth)), 2) if truth[a] != truth[b]]
    return float(np.mean([(truth[a] > truth[b]) == (reward[a] > reward[b]) for a, b in differing]))


if __name__ == "__main__":
    main()
