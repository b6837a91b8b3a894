"""SALMON from data to reward model: what principles were planted, a linear model on the records that it makes finds again."""

from __future__ import annotations

import random

import torch
from toys.features import attached, compared, features_of
from toys.scored import feedback_of, loss_of

from polyalign.objectives.reward_modeling.bradley_terry import BradleyTerry
from polyalign.records.principles import Principle, conditioned
from polyalign.records.samples import Edge
from polyalign.records.schema import Candidate, Comparison, Message, Record, TextPart

NAMES, WIDTH, PAIRS = ("brief", "kind", "plain", "true"), 12, 2200
ASKED = (Message(role="user", parts=(TextPart(text="Write."),)),)


def planted() -> tuple[torch.Tensor, torch.Tensor, list[Record]]:
    """Return a direction per principle ``[4, W]``, features of both responses ``[pairs, 2, W]``, and records that compare them by
    every principle."""
    draw = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(len(NAMES), WIDTH, generator=draw), dim=-1)
    responses = torch.randn(PAIRS, 2, WIDTH, generator=draw)
    scores = (responses[:, 0] - responses[:, 1]) @ directions.T  # [pairs, 4]
    records = []
    for number, row in enumerate(scores.tolist()):
        feedback = [
            Comparison(ranking=((0,), (1,)) if score > 0 else ((1,), (0,)), aspect=name, strength=abs(score))
            for name, score in zip(NAMES, row)
        ]
        candidates = tuple(Candidate(parts=(TextPart(text=f"{number} {side}"),)) for side in range(2))
        records.append(Record(id=f"pair-{number}", prompt=ASKED, candidates=candidates, feedback=tuple(feedback)))
    return directions, responses.double(), records


def told(record: Record) -> torch.Tensor:
    """Return how the record's prompt weighs each principle: 1, -1 where it is negated, 0 where it does not stand there."""
    weights = torch.zeros(len(NAMES), dtype=torch.float64)
    for name in str(record.conditions["principles"]).split(","):
        weights[NAMES.index(name.removeprefix("-"))] = -1.0 if name.startswith("-") else 1.0
    return weights


def seen(record: Record, responses: torch.Tensor) -> torch.Tensor:
    """Return the features of the record's candidates under its principles, ``[2, 4 W]``."""
    texts = [candidate.parts[0].text for candidate in record.candidates]  # type: ignore[union-attr]
    chosen = torch.stack([responses[number, side] for number, side in (map(int, text.split()) for text in texts)])
    return (told(record)[None, :, None] * chosen[:, None]).flatten(1)


def test_a_linear_model_finds_every_planted_direction_and_turns_with_its_principle() -> None:
    """As the paper labels: up to three principles a prompt, half of them negated, the most pronounced decides, a tenth of the
    labels wrong. About 4,400 pairs; the model is Bradley-Terry on (principles said) x (features)."""
    directions, responses, records = planted()
    made = list(conditioned(records, [Principle(name, name) for name in NAMES], passes=2, most=3))
    assert 4000 < len(made) <= 2 * PAIRS
    features = torch.cat([seen(record, responses) for record in made])
    feedback = feedback_of(*(compared(2, [Edge(0, 1)], record.id) for record in made))
    model = attached(BradleyTerry(), len(NAMES) * WIDTH)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, features_of(features), None, feedback)
        loss.backward()
        return loss

    optimizer.step(closure)
    found = next(parameter for parameter in model.parameters() if parameter.numel() == len(NAMES) * WIDTH)
    cosines = torch.nn.functional.cosine_similarity(found.detach().reshape(len(NAMES), WIDTH), directions.double(), dim=-1)
    assert (cosines > 0.95).all(), cosines

    sets = torch.randn(200, 8, WIDTH, generator=torch.Generator().manual_seed(1)).double()
    turned = []
    for number in range(len(sets)):
        on = torch.zeros(len(NAMES), dtype=torch.float64)
        on[random.Random(number).sample(range(len(NAMES)), 2)] = 1.0
        toggled = on.clone()
        toggled[int(on.argmax())] *= -1
        best = [
            int(model.rewards(features_of((w[None, :, None] * sets[number][:, None]).flatten(1))).argmax()) for w in (on, toggled)
        ]
        turned.append(best[0] != best[1])
    assert sum(turned) / len(turned) > 0.8
