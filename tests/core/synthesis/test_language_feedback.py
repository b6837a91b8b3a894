"""Sample, criticise, refine, filter: by rules whose answers are known, by a tiny policy, by an endpoint; killed and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from toys.records import plain

from polyalign.cli.main import main
from polyalign.config import load_config
from polyalign.errors import ConfigError, RewardError, TrainingError
from polyalign.records.dataset import ExampleDataset
from polyalign.records.jsonl import read_jsonl, write_jsonl
from polyalign.records.schema import Comparison, Critique, Record, Refinement, text_of
from polyalign.synthesis.config import APPROVAL, SynthesisRecipe
from polyalign.synthesis.requests import refined_request
from polyalign.synthesis.run import synthesize
from polyalign.training.config import SourceConfig

from ..rewards.endpoint import Endpoint

CLI = [sys.executable, "-c", "import sys; from polyalign.cli.main import main; sys.exit(main())"]

# Answers a sum by "about N", where every third N is right; the critic knows, the refiner obeys. Each call is written down.
RULES = """
from pathlib import Path
import os, re, signal

CALLS = Path(__file__).with_name("calls.txt")


def called(who, prompt):
    with CALLS.open("a") as file:
        file.write(f"{who} {prompt}\\n")
    left = os.environ.get("DIE_AFTER")
    if left and len(CALLS.read_text().splitlines()) > int(left):
        os.kill(os.getpid(), signal.SIGKILL)


def total(prompt):
    return sum(map(int, re.findall(r"\\d+", prompt)))


def answer(prompt):
    called("answer", prompt)
    return f"{total(prompt) + (total(prompt) % 3 > 0)}"


def critic(prompt, output):
    called("critic", prompt)
    return "OK" if int(output) == total(prompt) else f"Wrong. The sum is {total(prompt)}."


def content(prompt, output):
    return "Looks good."


def refine(prompt, output, critique, says=""):
    called("refine", prompt)
    return says or re.findall(r"\\d+", critique)[0]


def right(prompt, output):
    return float(output.strip() == str(total(prompt)))
"""
SUMS = [f"{first} + {second}" for first in range(1, 5) for second in (0, 3)]  # totals 1 4 2 5 3 6 4 7; 3, 6 are answered


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POLYALIGN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "rules.py").write_text(RULES)
    write_jsonl(tmp_path / "sums.jsonl", [plain(f"sum-{at}", prompt, "unused") for at, prompt in enumerate(SUMS)])
    return tmp_path


def recipe(place: Path, changes: dict[str, Any]) -> Path:
    options = {
        "generator": {"function": "rules.py:answer"},
        "critic": {"function": "rules.py:critic"},
        "refiner": {"function": "rules.py:refine"},
    }
    options = {key: value for key, value in (options | changes).items() if value is not None}
    file = place / "feedback.yaml"
    data = [{"path": str(place / "sums.jsonl")}]
    file.write_text(json.dumps({"name": "sums", "data": data, "synthesizer": {"name": "language-feedback", **options}}))
    return file


def made(place: Path, target: str = "out/train.jsonl", **changes: Any) -> tuple[list[Record], dict[str, int], Any]:
    synthesized, stages = synthesize(load_config(SynthesisRecipe, str(recipe(place, changes))), place / target)
    path = place / target
    return [record for _, record in read_jsonl(path)] if path.exists() else [], dict(+synthesized.dropped), stages


def test_a_rule_critic_with_a_known_answer_gives_right_over_wrong(place: Path) -> None:
    """Six of eight sums are answered wrongly; each becomes one pair, the rest is left out as approved."""
    records, dropped, _ = made(place)
    assert [record.id for record in records] == [f"sum-{at}" for at in (0, 1, 2, 3, 6, 7)]
    assert dropped == {"approved by the critic": 2}
    first = records[0]
    assert [text_of(candidate.parts) for candidate in first.candidates] == ["2", "1"]
    assert [candidate.producer for candidate in first.candidates] == ["rules.py:answer", "rules.py:refine"]
    critique, refinement, comparison = first.feedback
    assert isinstance(critique, Critique) and text_of(critique.parts) == "Wrong. The sum is 1."
    assert isinstance(refinement, Refinement) and (refinement.before, refinement.after) == (0, 1)
    assert isinstance(comparison, Comparison) and comparison.ranking == ((1,), (0,))
    assert first.provenance is not None and first.provenance.method == "language feedback"


def test_what_comes_out_trains_as_pairs_and_as_demonstrations(place: Path) -> None:
    made(place)
    source = (SourceConfig(path=str(place / "out")),)
    pairs = ExampleDataset(source, "pairs")
    assert len(pairs) == 6 and text_of(pairs[0].samples[0].response) == "1"
    assert [text_of(example.samples[0].response) for example in map(ExampleDataset(source, "sft").__getitem__, range(2))] == [
        "1",
        "4",
    ]


def test_a_critic_that_only_says_ok_gives_no_pairs_and_asks_for_no_refinement(place: Path) -> None:
    records, dropped, stages = made(place, critic={"function": "rules.py:content"})
    assert records == [] and dropped == {"approved by the critic": 8}
    assert stages.made["refinements"] == 0 and not (place / "out").exists()


@pytest.mark.parametrize(
    "said", ["ok", "OK.", "Okay!", "No issues found.", "no changes needed", "Looks good", "Nothing to improve"]
)
def test_approvals_are_understood(said: str) -> None:
    import re

    assert re.fullmatch(APPROVAL, said, re.IGNORECASE)
    for critique in (f"{said} But the second word is wrong", "Not ok", "Good grief, this is wrong"):
        assert not re.fullmatch(APPROVAL, critique, re.IGNORECASE)


def test_a_refinement_that_is_the_response_again_or_too_long_is_left_out(place: Path) -> None:
    """Told to say " 2 ", the refiner repeats two of the six wrong answers (1 + 0 and 2 + 0 + ... are answered by 2 and 3)."""
    _, dropped, _ = made(place, "a.jsonl", refiner={"function": "rules.py:refine", "options": {"says": " 2 "}})
    assert dropped == {"approved by the critic": 2, "refined to the same response": 1}
    long = {"function": "rules.py:refine", "options": {"says": "about 2"}}
    for filters, lost in (({"longest": 6}, 6), ({"longest": 7}, 0), ({"longest_ratio": 6.5}, 6), ({"shortest": 8}, 6)):
        records, dropped, _ = made(place, f"{filters}.jsonl", refiner=long, filters=filters)
        assert dropped.get("refined to a length not allowed", 0) == lost and len(records) == 6 - lost


def test_a_judge_has_to_agree(place: Path) -> None:
    """The refiner says 4 to everything; the judge, which can add, agrees for the two sums that are 4."""
    four = {"function": "rules.py:refine", "options": {"says": "4"}}
    records, dropped, _ = made(place, refiner=four, filters={"judge": {"name": "rules.py:right"}})
    assert [record.id for record in records] == ["sum-1", "sum-6"]
    assert dropped["not preferred by the judge"] == 4


def test_a_judge_of_siblings_sees_two_responses_at_a_time(place: Path) -> None:
    """`normalised` by group centres each prompt's responses; of several drafts of one prompt each is judged by itself."""
    records, dropped, _ = made(
        place,
        samples=2,
        filters={"judge": {"name": "normalised", "by": "group", "reward": {"name": "rules.py:right"}}, "margin": 1.5},
    )
    assert len(records) == 6 and all(len(record.candidates) == 4 for record in records)
    assert "not preferred by the judge" not in dropped


def test_the_records_own_critiques_and_candidates_can_be_taken(place: Path) -> None:
    said = (Critique(candidate=1, parts="It is 9, say so.", annotator="anna"),)  # type: ignore[arg-type]
    write_jsonl(place / "sums.jsonl", [plain("a", "4 + 5", "9", "8", feedback=said), plain("b", "1 + 1", "2")])
    records, dropped, _ = made(place, generator=None, critic=None)
    (record,) = records
    assert [text_of(candidate.parts) for candidate in record.candidates] == ["8", "9"]
    assert record.feedback[0].annotator == "anna" and dropped == {"without a critique": 2}


def test_finished_work_is_kept_between_recipes_and_a_changed_rule_is_asked_again(place: Path) -> None:
    made(place, "a.jsonl")
    calls = (place / "calls.txt").read_text().splitlines()
    assert len(calls) == len(set(calls)) == 8 + 8 + 6
    _, _, stages = made(place, "b.jsonl", filters={"longest": 5})
    assert not stages.made and stages.kept == {"responses": 8, "critiques": 8, "refinements": 6}
    (place / "rules.py").write_text(RULES.replace("Wrong. The", "Wrong! The"))
    _, _, stages = made(place, "c.jsonl")
    assert stages.made == {"responses": 8, "critiques": 8, "refinements": 6}


@pytest.mark.parametrize("after", [11, *(pytest.param(calls, marks=pytest.mark.slow) for calls in (3, 19))])
def test_killed_and_started_again_it_repeats_no_finished_work(place: Path, after: int) -> None:
    """The process kills itself in the call after ``after`` finished ones: in sampling, criticising, refining. The second run
    makes that call again and no other, and writes what an undisturbed run writes."""
    file, target = recipe(place, {}), place / "out" / "train.jsonl"
    command = [*CLI, "synthesize", str(file), "--out", str(target)]
    environment = {**os.environ, "DIE_AFTER": str(after), "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(command, env=environment, cwd=place, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len((place / "calls.txt").read_text().splitlines()) == after + 1 and not target.exists()
    assert main(["synthesize", str(file), "--out", str(target)]) == 0
    calls = (place / "calls.txt").read_text().splitlines()
    assert len(calls) == 22 + 1 and len(set(calls)) == 22
    (place / "elsewhere").mkdir()
    undisturbed, _, _ = made(place, "elsewhere/train.jsonl")
    assert [record for _, record in read_jsonl(target)] == undisturbed


def test_a_policy_generates_criticises_and_refines_alike_whatever_was_kept(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A random language model in all three roles: finished or not, together or apart, the same texts come out."""
    from polyalign.policies.tiny_language import byte_tokenizer, tiny_llama

    tokenizer = byte_tokenizer()
    tiny_llama(len(tokenizer)).save_pretrained(place / "tiny")
    tokenizer.save_pretrained(place / "tiny")
    model = {"policy": {"name": "text", "base": str(place / "tiny"), "max_response": 8}, "decoding": {"max_new_tokens": 5}}
    roles: dict[str, Any] = {"generator": model, "critic": model, "refiner": None, "samples": 2}
    records, dropped, stages = made(place, "a.jsonl", **roles)
    assert stages.made["responses"] == 16 and len(records) == 8 and not dropped
    texts = [text_of(candidate.parts) for candidate in records[0].candidates]
    assert len(set(texts)) == 4
    for file in sorted((place / "cache" / "synthesis").glob("*/*/*.json"))[::3]:
        file.unlink()
    again, _, stages = made(place, "b.jsonl", **roles)
    assert again == records and 0 < sum(stages.made.values()) < sum(stages.kept.values())
    other, _, _ = made(place, "c.jsonl", **roles | {"generator": {**model, "seed": 1}})
    assert other != records


def test_an_endpoint_criticises_what_it_is_shown(place: Path) -> None:
    endpoint = Endpoint(lambda body, number: "Say 7." if "6" in json.dumps(body["messages"][1]) else "OK")
    try:
        chat = {"endpoint": {"base_url": endpoint.url, "model": "m"}}
        records, dropped, _ = made(place, critic=chat)
    finally:
        endpoint.close()
    assert [message["role"] for message in endpoint.bodies[0]["messages"]] == ["user", "assistant", "user"]
    assert [text_of(record.candidates[1].parts) for record in records] == ["7"] * len(records) and records
    assert records[0].feedback[0].annotator == "m" and len(records) + dropped["approved by the critic"] == 8


def test_for_a_picture_the_critique_becomes_a_better_request(place: Path) -> None:
    """A small text-to-image model draws; a rule looks at the picture and asks for blue; the picture drawn for that is preferred,
    under the first prompt. It was drawn before, for the prompt that asks for just this, and is not drawn again."""
    (place / "looks.py").write_text(
        "def critic(prompt, output):\n    return f'{output.size[0]} wide.\\n##Refinement: a blue whale'\n"
        "def better(prompt, output, critique):\n    return prompt + ', in blue'\n"
    )
    write_jsonl(place / "sums.jsonl", [plain("a", "a whale", "unused"), plain("b", "a blue whale", "unused")])
    draws = {"policy": {"name": "text-to-image", "base": "zoo:tiny-sd", "resolution": 32}, "decoding": {"num_inference_steps": 2}}
    looks = {"function": "looks.py:critic"}
    records, dropped, stages = made(place, generator=draws, critic=looks, refiner=None)
    (record,) = records
    assert dropped == {"refined to the same request": 1} and stages.made["responses"] == 2
    assert text_of(record.prompt[0].parts) == "a whale"
    assert record.candidates[1].conditions == {"refined_request": "a blue whale"}
    pictures = [candidate.parts[0].media.sha256 for candidate in record.candidates]  # type: ignore[union-attr]
    assert len(set(pictures)) == 2 and all((place / "out" / "media" / f"{name}.png").is_file() for name in pictures)
    worded, _, _ = made(place, "b/train.jsonl", generator=draws, critic=looks, refiner={"function": "looks.py:better"})
    assert [one.candidates[1].conditions["refined_request"] for one in worded] == ["a whale, in blue", "a blue whale, in blue"]
    with pytest.raises(TrainingError, match="'a whale' is a medium; a refined one needs a generator"):
        write_jsonl(place / "sums.jsonl", [record.model_copy(update={"candidates": record.candidates[:1], "feedback": ()})])
        (place / "media").symlink_to(place / "out" / "media")
        made(place, "c.jsonl", generator=None, critic=looks, refiner={"function": "looks.py:better"})


def test_refined_requests_are_found_as_annotators_write_them() -> None:
    assert refined_request("##Critique: dull\n##Refinement: a red fox\nat night") == "a red fox\nat night"
    assert refined_request("  a red fox ") == "a red fox"


def test_critiques_become_examples_of_the_very_question_that_the_critic_is_asked(place: Path) -> None:
    """What a critic is trained on is what `language-feedback` will ask it, word by word."""
    said = (Critique(candidate=0, parts="Too short.", annotator="anna"),)  # type: ignore[arg-type]
    write_jsonl(place / "sums.jsonl", [plain("a", "4 + 5", "9", "8", feedback=said), plain("b", "1 + 1", "2")])
    file = place / "examples.yaml"
    file.write_text(f"{{name: x, data: [{{path: {place / 'sums.jsonl'}}}], synthesizer: critique-examples}}")
    synthesized, _ = synthesize(load_config(SynthesisRecipe, str(file)), place / "critic" / "train.jsonl")
    ((_, example),) = read_jsonl(place / "critic" / "train.jsonl")
    assert synthesized.dropped == {"without a critique": 1} and example.id == "a/critique-0"
    asked: list[Any] = []
    endpoint = Endpoint(lambda body, number: asked.append(body["messages"]) or "OK")
    try:
        made(place, generator=None, critic={"endpoint": {"base_url": endpoint.url, "model": "m"}})
    finally:
        endpoint.close()
    worded = [{"role": message.role, "content": text_of(message.parts)} for message in example.prompt]
    assert worded in asked
    examples = ExampleDataset((SourceConfig(path=str(place / "critic")),), "sft")
    assert len(examples) == 1 and text_of(examples[0].samples[0].response) == "Too short."


def test_mistakes_are_told_with_their_place_and_the_way_out(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for changes, words in (
        (
            {"critic": {"function": "rules.py:critic", "endpoint": {"base_url": "http://a", "model": "m"}}},
            "endpoint and function",
        ),
        ({"critic": None}, "give a critic"),
        ({"generator": None, "refiner": None}, "nobody refines"),
        ({"critic": {"function": "rules.py:critic", "decoding": {"temperature": 1}}}, "this function does not read it"),
        ({"approval": "(("}, "not a regular expression"),
        ({"critics": {}}, "unknown key 'critics' of 'language-feedback'. Did you mean 'critic'?"),
    ):
        with pytest.raises(ConfigError, match="feedback.yaml has") as error:
            made(place, **changes)
        assert words in str(error.value), error.value
    with pytest.raises(RewardError, match=r"'rules.py:total' cannot be called with \(prompt, output\)"):
        made(place, critic={"function": "rules.py:total"})
    (place / "rules.py").write_text(RULES + "\n\ndef number(prompt):\n    return 7\n")
    with pytest.raises(RewardError, match="'rules.py:number' returned 7; expected text"):
        made(place, generator={"function": "rules.py:number"})
    made(place)
    assert main(["synthesize", str(recipe(place, {})), "--out", str(place / "out" / "train.jsonl")]) == 2
    assert "is there already; name another file" in capsys.readouterr().err


def test_the_command_says_what_it_made_and_what_it_left_out(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = place / "out" / "train.jsonl"
    assert main(["synthesize", str(recipe(place, {})), "--out", str(target)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "responses: 8 made, 0 kept from before",
        "critiques: 8 made, 0 kept from before",
        "refinements: 6 made, 0 kept from before",
        "left out, approved by the critic: 2",
        f"{target}: 6 records, 6 comparisons",
    ]
    assert main(["list", "synthesizers"]) == 0 and "language-feedback" in capsys.readouterr().out
    assert main(["config", "explain", "synthesizer", "language-feedback"]) == 0
    assert "critic.endpoint.base_url" in capsys.readouterr().out
