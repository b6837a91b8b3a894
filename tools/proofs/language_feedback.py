"""Learning from language feedback: by DPO, refining an answer teaches more than a verdict on as many; with imitation, no more.

A small language model made from code has learnt to name animals, in a style drawn at random whatever was asked: ``name the
red fox twice`` is answered by ``the red fox``, ``red fox`` or ``the red fox fox``. It answers each training prompt twice. A rule
critic says which style was asked for and missed, a rule refiner follows that, and the pairs are learnt: of a quarter, half,
three quarters and all of the prompts. Against them stand binary pairs: two answers to every prompt, ranked by the same rule;
where both keep or both miss the style, a verdict teaches nothing. Same model, steps and settings in every arm, by DPO and by DPO
with a share of imitation; prompts of the judgement name combinations of colour and animal that no training prompt names.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from ledger import Proof, options

COLOURS = "red blue green grey white black brown pink gold pale".split()
ANIMALS = "fox owl cat hen pig ram dog elk bee ant emu cow bat yak eel ape".split()
STYLES = {"twice": "the {0} {1} {1}", "politely": "the {0} {1} please", "shortly": "{0} {1}"}
ANSWERS = [*STYLES.values(), "the {0} {1}", "{1} {0}"]
SHARES = (0.25, 0.5, 0.75, 1.0)
DPO = {"name": "dpo", "beta": 0.5}
WITH_SFT = {"name": "weighted_sum", "terms": [{"name": "dpo", "beta": 0.3}, {"name": "sft", "weight": 0.3}]}
OBJECTIVES = {"DPO": DPO, "DPO + SFT": WITH_SFT}
DECODING = {"max_new_tokens": 6, "batch_size": 256}


def named(words: str) -> tuple[str, str] | None:
    """Return colour and animal of an answer; None where it has not one of each."""
    found = [{word for word in words.split() if word in known} for known in (COLOURS, ANIMALS)]
    return (*found[0], *found[1]) if all(len(one) == 1 for one in found) else None  # type: ignore[return-value]


def kept(prompt: str, output: str) -> float:
    """1 for an answer in the style that was asked for, else 0."""
    *_, colour, animal, style = prompt.split()
    return float(output.strip() == STYLES[style].format(colour, animal))


def about_it(prompt: str, output: str) -> float:
    """1 for an answer in any style of this world about the animal that was asked for, else 0."""
    *_, colour, animal, _ = prompt.split()
    return float(output.strip() in {style.format(colour, animal) for style in ANSWERS})


def critic(prompt: str, output: str) -> str:
    return "OK" if kept(prompt, output) else f"Say it {prompt.split()[-1]}."


def refine(prompt: str, output: str, critique: str) -> str:
    """Follow the critique and change nothing else: the refinement of an answer about another animal is about that animal."""
    animal = named(output)
    return STYLES[critique.split()[-1].rstrip(".")].format(*animal) if animal else output


def records(held_out: bool, each: int) -> Iterator[Any]:
    """Yield records of prompts with one answer in a random style; every third pair of colour and animal is held out."""
    from polyalign.records.schema import Record

    draw = random.Random(0)
    pairs = [(colour, animal) for colour in COLOURS for animal in ANIMALS]
    for number, (colour, animal) in enumerate(pairs):
        for style in STYLES if (number % 3 == 0) == held_out else ():
            for again in range(each):
                answer = draw.choice(ANSWERS).format(colour, animal)
                prompt = f"name the {colour} {animal} {style}"
                yield Record.model_validate({"id": f"{prompt}/{again}", "prompt": prompt, "candidates": [{"parts": answer}]})


def untaught(folder: Path) -> Path:
    """Write a model that knows no word yet, and a tokenizer of whole words, as a folder that transformers loads."""
    from polyalign.policies.tiny_language import tiny_llama, word_tokenizer

    tokenizer = word_tokenizer(["name", "the", "please", *STYLES, *COLOURS, *ANIMALS])
    tiny_llama(len(tokenizer), layers=2, hidden=64, eos_token_id=1, pad_token_id=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def policy(base: Path) -> dict[str, Any]:
    return {"name": "text", "base": str(base), "max_length": 24, "max_response": 8}


def run(
    name: str, base: Path, data: Path, objective: dict[str, Any], steps: int, rate: float, held_out: Path, shown: int, out: Path
) -> Any:
    """Train a recipe into ``out``; return the finished run, judged on held-out prompts."""
    from polyalign.config import read_recipe
    from polyalign.training.run import train

    recipe = {
        "name": name,
        "policy": policy(base),
        "data": {"train": [{"path": str(data)}]},
        "objective": objective,
        "training": {"steps": steps, "batch_size": 32, "optimizer": {"learning_rate": rate, "warmup_steps": 5}, "log_every": 20},
        "report": {
            "prompts": shown,
            "prompts_from": {"path": str(held_out)},
            "samples_per_prompt": 2,
            "decoding": DECODING,
            "rewards": [{"name": f"{__file__}:{rule.__name__}"} for rule in (kept, about_it)],
        },
    }
    return train(read_recipe(json.dumps(recipe), source=name), out)


def feedback(base: Path, prompts: Path, target: Path, limit: int, stages: Path) -> dict[str, int]:
    """Write the pairs that language feedback makes of the first prompts; return how many, and what was left out."""
    from polyalign.synthesis.config import SynthesisRecipe
    from polyalign.synthesis.run import synthesize

    recipe = {
        "name": "feedback",
        "data": [{"path": str(prompts), "limit": limit}],
        "stages": str(stages),
        "synthesizer": {
            "name": "language-feedback",
            "generator": {"policy": policy(base), "decoding": DECODING},
            "critic": {"function": f"{__file__}:critic"},
            "refiner": {"function": f"{__file__}:refine"},
            "samples": 2,
        },
    }
    made, _ = synthesize(SynthesisRecipe.model_validate(recipe), target)
    return {"pairs": sum(len(record.candidates) // 2 for record, _ in made.records), **+made.dropped}


def verdicts(base: Path, prompts: Path, target: Path) -> dict[str, int]:
    """Write two answers of the model to every prompt, ranked by the rule; return how many rank one above the other."""
    from polyalign.evaluation.self_samples import records_in, write
    from polyalign.records.jsonl import read_jsonl
    from polyalign.records.schema import Comparison
    from polyalign.rewards.config import RewardSlot
    from polyalign.rewards.rating import rate
    from polyalign.slots import PolicySlot
    from polyalign.training.config import SourceConfig

    found = records_in([SourceConfig(path=str(prompts))])
    unanswered = ((record.model_copy(update={"candidates": ()}), media) for record, media in found)
    answered = target.parent / "answered" / "train.jsonl"
    write(PolicySlot.model_validate(policy(base)).load("cpu"), unanswered, answered, count=2, decoding=DECODING)
    rate(answered, target, {"kept": RewardSlot(name=f"{__file__}:kept").build()}, rank="all")
    said = [one for _, record in read_jsonl(target) for one in record.feedback if isinstance(one, Comparison)]
    return {"pairs": sum(len(one.ranking) == 2 for one in said), "told nothing": sum(len(one.ranking) == 1 for one in said)}


def proved(smoke: bool) -> None:
    import numpy as np

    from polyalign.evaluation.intervals import paired_gain
    from polyalign.randomness import keyed_seed
    from polyalign.records.jsonl import write_jsonl

    claim = "by DPO, held-out styles are kept more often after language feedback than after verdicts on as many answers"
    proof, arms, values = Proof("language-feedback", claim, smoke), {}, {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_jsonl(folder / "taught" / "train.jsonl", records(held_out=False, each=6))
        write_jsonl(held_out := folder / "held-out" / "test.jsonl", records(held_out=True, each=1))
        asked = sorted(records(held_out=False, each=1), key=lambda record: keyed_seed(0, record.id))[: 16 if smoke else None]
        count = write_jsonl(prompts := folder / "prompts" / "train.jsonl", asked)
        shown = 4 if smoke else 162
        base, taught = untaught(folder / "untaught"), folder / "taught" / "train.jsonl"
        run("imitation", base, taught, {"name": "sft"}, 5 if smoke else 600, 3e-3, held_out, 0, folder / "imitation")
        base = folder / "imitation" / "model"
        data = {f"language feedback, {share:.0%}": folder / f"feedback-{share}" / "train.jsonl" for share in SHARES}
        sizes = {
            name: feedback(base, prompts, path, round(share * count), folder / "stages")
            for (name, path), share in zip(data.items(), SHARES)
        }
        data["binary, 100%"] = folder / "binary" / "train.jsonl"
        sizes["binary, 100%"] = verdicts(base, prompts, data["binary, 100%"])
        for (name, path), (kind, objective) in product(data.items(), OBJECTIVES.items()):
            if smoke and not sizes[name]["pairs"]:  # a model that knows nothing gives no binary pairs
                continue
            out = path.parent / kind.replace(" ", "")
            styled, about = run(name, base, path, objective, 2 if smoke else 150, 2e-4, held_out, shown, out).judgements
            print(f"{name}, {kind}: kept {styled.before} -> {styled.after}, about it {about.after}", flush=True)
            before = {"kept_before": vars(styled.before), "about_it_before": vars(about.before)}
            arms.setdefault(name, sizes[name] | before)[kind] = {"kept": vars(styled.after), "about_it": vars(about.after)}
            values[name, kind] = styled.after_values
        for name, kind in values if not smoke else ():  # the same prompts and seeds in every arm, so they are compared in pairs
            ahead = paired_gain(*(np.reshape(values[arm, kind], (-1, 2)) for arm in ("binary, 100%", name)))
            arms[name][kind]["ahead_of_binary"] = vars(ahead)
            print(f"{name}, {kind}: ahead of binary pairs by {ahead}", flush=True)
    ahead = {} if smoke else arms["language feedback, 100%"]["DPO"]["ahead_of_binary"]
    proof.settle(ahead.get("low", 0) > 0, prompts=count, responses_per_prompt=2, arms=arms)


if __name__ == "__main__":
    proved(options(__doc__).smoke)
