"""A small world of text for the online proofs: a language model made from code that tells of animals, deaf to instructions.

A prompt names an animal and one thing that a rule can check: ``Tell of the red fox. Write in capital letters only.`` The
sentences that the model first learns by imitation name the animal, but their style is drawn at random, whatever was asked: about
one in five keeps the instruction. Rewards must teach the rest. Held-out prompts name animals in colours that no training prompt
has put together. The held-out reward, never trained on, is whether the sentence is still one of this world.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

from ledger import Proof

from polyalign.cache import cache_folder
from polyalign.config import read_recipe
from polyalign.policies.tiny_language import byte_tokenizer, tiny_llama
from polyalign.records.jsonl import write_jsonl
from polyalign.records.schema import Candidate, Message, Record, TextPart
from polyalign.training.run import train
from polyalign.training.tracking import read_metrics

COLOURS = "red blue green grey white black".split()
ANIMALS = "fox owl cat hen pig ram dog elk bee ant emu cow".split()
ENDS = ("runs", "naps", "sings", "hides")
ASKED = ("Write in capital letters only.", "Write in lowercase letters only.", 'End your answer with "!".')


def told(colour: str, animal: str, draw: random.Random) -> str:
    """Return a sentence in one of five styles: capitals, small letters, a capital first, an exclamation, a title."""
    sentence = f"the {colour} {animal} {draw.choice(ENDS)}"
    return draw.choice((str.upper, str.lower, str.capitalize, lambda text: f"{text.capitalize()}!", str.title))(sentence)


def well_formed(prompt: str, output: str) -> float:
    """A reward: 1 for a sentence of this world, about any of its animals and in any case; 0 for anything else."""
    words = output.lower().removesuffix("!").split(" ")
    places = (("the",), COLOURS, ANIMALS, ENDS)
    return float(len(words) == len(places) and all(word in known for word, known in zip(words, places)))


def write_data(folder: Path) -> None:
    """Write records: every pair of colour and animal with every instruction; every third pair is held out."""
    draw = random.Random(0)
    splits: dict[str, list[Record]] = {"train": [], "test": []}
    for number, (colour, animal) in enumerate((colour, animal) for colour in COLOURS for animal in ANIMALS):
        for at, instruction in enumerate(ASKED):
            prompt = (Message(role="user", parts=(TextPart(text=f"Tell of the {colour} {animal}. {instruction}"),)),)
            held_out = number % 3 == 0
            for again in range(1 if held_out else 6):
                sentence = Candidate(parts=(TextPart(text=told(colour, animal, draw)),))
                name = f"{colour}-{animal}-{at}-{again}"
                splits["test" if held_out else "train"].append(Record(id=name, prompt=prompt, candidates=(sentence,)))
    for split, records in splits.items():
        write_jsonl(folder / f"{split}.jsonl", records)


def untaught(folder: Path) -> Path:
    """Write a model that knows no word yet, and its tokenizer, as a folder that transformers loads."""
    tokenizer = byte_tokenizer()
    settings = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    tiny_llama(len(tokenizer), layers=3, hidden=96, **settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run(recipe: dict[str, Any], out: Path) -> list[dict[str, Any]]:
    """Train a recipe; return its metrics rows."""
    train(read_recipe(json.dumps(recipe), source=recipe["name"]), out)
    return read_metrics(out / "metrics.jsonl")


def imitated(folder: Path, steps: int) -> Path:
    """Return a model that has learnt to tell of animals, by imitation: made once, kept in the cache for other proofs."""
    key = hashlib.sha256(Path(__file__).read_bytes() + str(steps).encode()).hexdigest()[:16]
    kept = cache_folder() / "proofs" / f"animals-{key}"
    if not kept.is_dir():
        made = _imitating(folder, steps)
        shutil.copytree(made, kept.with_suffix(".tmp"), dirs_exist_ok=True)
        kept.with_suffix(".tmp").replace(kept)
    return kept


def _imitating(folder: Path, steps: int) -> Path:
    data = [{"path": str(folder / "data")}]
    recipe = {
        "name": "imitation",
        "policy": {"name": "text", "base": str(untaught(folder / "untaught")), "max_length": 160, "max_response": 40},
        "data": {"train": data},
        "objective": {"name": "sft"},
        "training": {
            "steps": steps,
            "batch_size": 32,
            "optimizer": {"learning_rate": 3e-3, "schedule": "cosine", "warmup_steps": 20},
            "log_every": 100,
        },
        "report": {"prompts": 0},
    }
    run(recipe, folder / "imitation")
    return folder / "imitation" / "model"


def rewarded(folder: Path, base: Path, objective: dict[str, Any], steps: int, online: dict[str, Any], rate: float) -> Any:
    """Train online on the rule; return the rows that evaluated the held-out prompts, first and last."""
    recipe = {
        "name": "rewards",
        "policy": {
            "name": "text", "base": str(base), "max_length": 160, "max_response": 40,
            "value_head": objective["name"].startswith("ppo"),
        },
        "data": {"train": [{"path": str(folder / "data")}], "eval": [{"path": str(folder / "data"), "split": "test"}]},
        "objective": objective,
        "online": {
            "rewards": [{"name": "constraints"}],
            "held_out_rewards": [{"name": f"{Path(__file__)}:well_formed"}],
            "samples_per_prompt": 8,
            "decoding": {"max_new_tokens": 32, "batch_size": 256},
            **online,
        },
        "training": {
            "steps": steps,
            "batch_size": 16,
            "optimizer": {"learning_rate": rate},
            "eval_every": max(1, steps // 4),
            "eval_batches": 8,
            "log_every": 10,
        },
        "report": {"prompts": 0},
    }  # fmt: skip
    return [row for row in run(recipe, folder / "rewards") if "eval/reward" in row]


def proved(
    name: str, method: str, objective: dict[str, Any], steps: int, rate: float, online: dict[str, Any], smoke: bool
) -> None:
    """Run the proof that ``method`` teaches the rule on prompts never trained on."""
    claim = f"on held-out prompts the mean reward is below 0.3 before and above 0.8 after {method}"
    proof = Proof(name, claim, smoke)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_data(folder / "data")
        rows = rewarded(folder, imitated(folder, 20 if smoke else 500), objective, 2 if smoke else steps, online, rate)
    first, last = rows[0], rows[-1]
    (held_out,) = (key for key in first if "held_out" in key and not key.endswith("_std"))
    proof.settle(
        first["eval/reward"] < 0.3 and last["eval/reward"] > 0.8,
        reward={"before": first["eval/reward"], "after": last["eval/reward"]},
        held_out_reward={"before": first[held_out], "after": last[held_out]},
        over_time=[{"step": row["step"], "reward": row["eval/reward"], "held_out": row[held_out]} for row in rows],
        length=last["eval/rollout/length"],
        perplexity=last["eval/rollout/perplexity"],
    )
