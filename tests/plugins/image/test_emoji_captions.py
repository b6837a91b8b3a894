"""The grammar of checkable captions, and the data set made with it."""

from __future__ import annotations

import hashlib
from collections import Counter
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyalign.assets import resolve_dataset
from polyalign.records.jsonl import read_jsonl
from polyalign.records.schema import Comparison, Record, text_of
from polyalign.records.store import MediaStore
from polyalign_image.emoji_captions import (
    ATTRIBUTES,
    Caption,
    Truth,
    completeness,
    false_attributes,
    missing_attributes,
    parse,
    render,
)
from polyalign_image.foreground import main_colours
from polyalign_image.modality import ImageModality
from polyalign_image.palette import PALETTE

CAT = Truth(
    "cat face", "animal mammal", ("yellow", "orange"), ("white",), ("animal", "pet", "kitten", "whiskers", "yellow", "purr")
)
TRUE = "cat face, a kind of animal mammal, mostly yellow and orange; about kitten and whiskers"
HEART = Truth("red heart", "heart", ("red",))

NAMES = st.from_regex(r"[a-z0-9][a-z0-9'-]{0,8}( [a-z0-9'-]{1,9}){0,4}", fullmatch=True)
KINDS = st.from_regex(r"[a-z]{2,9}( [a-z]{2,9}){0,2}", fullmatch=True)
COLOURS = st.lists(st.sampled_from(PALETTE), min_size=1, max_size=2, unique=True).map(tuple)
TAGS = st.lists(st.from_regex(r"[a-z]{4,12}", fullmatch=True), max_size=2, unique=True).map(tuple)


@given(st.builds(Caption, NAMES, KINDS, COLOURS, TAGS))
def test_what_is_written_reads_back(caption: Caption) -> None:
    assert parse(render(caption)) == caption


def test_a_name_may_hold_the_words_of_the_grammar() -> None:
    caption = Caption("mostly fork and knife about a kind of plate", "dishware", ("grey",), ("cooking",))
    assert parse(render(caption)) == caption


def test_the_true_caption_gives_two_short_tags_that_say_something_new() -> None:
    """animal is a word of the kind, yellow a colour, pet has three letters; a dash or thirteen letters do not pass either."""
    assert render(CAT.caption) == TRUE
    assert render(HEART.caption) == "red heart, a kind of heart, mostly red"
    odd = Truth("dvd", "computer", ("grey",), (), ("blu-ray", "143", "entertainment", "optical"))
    assert odd.caption.tags == ("optical",)


@given(st.builds(Truth, NAMES, KINDS, COLOURS, COLOURS, TAGS))
def test_conditions_read_back_as_the_same_truth(truth: Truth) -> None:
    assert Truth.from_conditions(truth.conditions()) == truth


@pytest.mark.parametrize(
    "text",
    [
        f"{TRUE}.",
        f"  {TRUE} \n",
        f'"{TRUE}."',
        TRUE.upper(),
        TRUE.replace("; ", " ;  "),
        TRUE.replace("animal mammal", "animal-mammal"),
        TRUE.replace("a kind", "an kind").replace("yellow", "golden"),
        TRUE.replace("yellow", "bright yellow").replace("kitten", "kitten and kitten"),
    ],
)
def test_reading_forgives_how_a_model_writes(text: str) -> None:
    assert parse(text) == CAT.caption
    assert (false_attributes(text, CAT), missing_attributes(text, CAT)) == ((), ())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a yellow cat",
        "cat face, a kind of animal mammal",  # cut short
        "cat face, a kind of animal mammal, mostly",
        f"{TRUE}; about fish",
        f"{TRUE}, a kind of heart",
        "a kind of animal mammal, mostly yellow",
    ],
)
def test_another_text_is_no_caption_and_counts_as_wrong_in_everything(text: str) -> None:
    """The true caption has six parts: name, kind, two colours, two tags."""
    assert parse(text) is None
    assert false_attributes(text, CAT) == ATTRIBUTES
    assert missing_attributes(text, CAT) == ("name", "kind", "colour", "colour", "tag", "tag")
    assert completeness(text, CAT) == 0


@pytest.mark.parametrize(
    ("text", "false", "missing"),
    [
        (TRUE, (), ()),
        (TRUE.replace("cat face", "dog face"), ("name",), ("name",)),
        (TRUE.replace("animal mammal", "animal bird"), ("kind",), ("kind",)),
        (TRUE.replace("yellow", "blue"), ("colour",), ("colour",)),
        (TRUE.replace("yellow", "mauve"), ("colour",), ("colour",)),
        (TRUE.replace("yellow", "white"), (), ("colour",)),  # it is there, though it is not what mostly covers it
        (TRUE.replace(" and orange", ""), (), ("colour",)),
        (TRUE.replace("orange", "orange and pink and blue"), ("colour", "colour"), ()),
        (TRUE.replace("kitten", "purr"), (), ()),  # another true tag is as good
        (TRUE.replace("kitten", "space"), ("tag",), ("tag",)),
        (TRUE.replace("kitten and whiskers", "purr and pet and animal"), (), ()),
        (TRUE.replace("; about kitten and whiskers", ""), (), ("tag", "tag")),
        ("dog, a kind of heart, mostly blue; about space", ATTRIBUTES, ("name", "kind", "colour", "colour", "tag", "tag")),
    ],
)
def test_what_is_false_and_what_is_missing(text: str, false: tuple[str, ...], missing: tuple[str, ...]) -> None:
    assert false_attributes(text, CAT) == false
    assert missing_attributes(text, CAT) == missing
    assert completeness(text, CAT) == pytest.approx(1 - len(missing) / 6)


def test_a_tag_is_false_of_an_emoji_that_has_none() -> None:
    assert false_attributes("red heart, a kind of heart, mostly red; about love", HEART) == ("tag",)
    assert completeness("red heart, a kind of heart, mostly blue", HEART) == pytest.approx(2 / 3)


# The shipped data set ---------------------------------------------------------------------------------------------------

COUNTS = {
    "train": 2082,
    "test": 286,
    "captions.train": 2082,
    "captions.test": 286,
    "questions.train": 1041,
    "questions.test": 143,
    "noisy.train": 6246,
    "noisy.test": 858,
}


@cache
def split(name: str) -> list[Record]:
    """Reading validates every record."""
    return [record for _, record in read_jsonl(resolve_dataset("dataset:emoji-captions") / f"{name}.jsonl")]


@cache
def truths() -> dict[str, Truth]:
    """By the sha256 of the picture."""
    records = [*split("captions.train"), *split("captions.test")]
    return {record.media()[0].sha256: Truth.from_conditions(record.conditions) for record in records}


def truth_of(record: Record) -> Truth:
    return truths()[record.media()[0].sha256]


def only_answer(record: Record) -> str:
    (candidate,) = record.candidates
    return text_of(candidate.parts)


@pytest.mark.parametrize("name", COUNTS)
def test_every_record_asks_about_one_picture_that_is_known(name: str) -> None:
    records = split(name)
    assert len(records) == len({record.id for record in records}) == COUNTS[name]
    for record in records:
        ((_, question),) = [message.parts for message in record.prompt]
        assert question.text == "Describe the picture." or name.startswith("questions.")  # type: ignore[union-attr]
        assert record.conditions["name"] == truth_of(record).name
        assert record.group is not None and record.group.replace("-", " ") == truth_of(record).kind
        assert record.licence is not None and ("CC-BY-4.0" in record.licence) == (record.conditions["style"] == "twemoji")
        assert record.provenance is not None and record.provenance.method == "rule"


@pytest.mark.parametrize("name", ["captions.train", "captions.test"])
def test_true_captions_say_nothing_false_and_leave_nothing_out(name: str) -> None:
    for record in split(name):
        assert only_answer(record) == render(truth_of(record).caption)
        assert not false_attributes(only_answer(record), truth_of(record))
        assert completeness(only_answer(record), truth_of(record)) == 1


def test_the_stated_colours_are_those_of_the_pictures() -> None:
    store, codec = MediaStore(resolve_dataset("dataset:emoji-captions")), ImageModality()
    for record in split("captions.test")[::10]:
        pixels = np.asarray(codec.decode(store.read(record.media()[0])))
        assert main_colours(pixels) == (truth_of(record).colours, truth_of(record).other_colours), record.id


@pytest.mark.parametrize("name", ["train", "test"])
def test_each_rejected_caption_is_changed_in_the_one_attribute_that_it_states(name: str) -> None:
    edits: Counter[str] = Counter()
    for record in split(name):
        (comparison,) = record.feedback
        assert isinstance(comparison, Comparison)
        ((better,), (worse,)) = comparison.ranking
        chosen, rejected = (text_of(record.candidates[index].parts) for index in (better, worse))
        truth, stated = truth_of(record), record.candidates[worse].conditions
        assert Truth.from_conditions(record.conditions) == truth
        assert chosen == render(truth.caption) and not record.candidates[better].conditions
        expected = {
            "swap": ((stated["attribute"],),) * 2,
            "add": ((stated["attribute"],), ()),
            "drop": ((), (stated["attribute"],)),
        }
        found = false_attributes(rejected, truth), missing_attributes(rejected, truth)
        assert found == expected[str(stated["edit"])], record.id
        assert comparison.aspect == ("completeness" if stated["edit"] == "drop" else "hallucination")
        edits[str(stated["edit"])] += 1
    assert edits["swap"] == len(split(name)) / 2
    assert 0.8 < edits["add"] / edits["drop"] < 1.25


@pytest.mark.parametrize("name", ["train", "test"])
def test_neither_position_nor_length_gives_the_chosen_caption_away(name: str) -> None:
    first = longer = shorter = 0
    for record in split(name):
        ((better,), (worse,)) = record.feedback[0].ranking  # type: ignore[union-attr]
        lengths = [len(text_of(record.candidates[index].parts)) for index in (better, worse)]
        first += better == 0
        longer, shorter = longer + (lengths[0] > lengths[1]), shorter + (lengths[0] < lengths[1])
    assert first / len(split(name)) == pytest.approx(0.5, abs=0.01)
    assert longer / (longer + shorter) == pytest.approx(0.5, abs=0.05)


def test_the_splits_share_no_emoji_and_are_those_of_emoji_styles() -> None:
    for name in ("", "captions.", "questions."):
        for part in ("train", "test"):
            styles = read_jsonl(resolve_dataset("dataset:emoji-styles") / f"{part}.jsonl")
            assert {record.conditions["name"] for record in split(f"{name}{part}")} == {
                text_of(record.prompt[0].parts) for _, record in styles
            }
    names = [{record.conditions["name"] for record in split(part)} for part in ("train", "test")]
    assert names[0].isdisjoint(names[1])


@pytest.mark.parametrize("part", ["train", "test"])
def test_noisy_captions_have_as_many_wrong_attributes_as_they_state(part: str) -> None:
    """Of each picture one true caption and two others; of the others half have one wrong attribute, 30 % two, 20 % three."""
    noise: Counter[int] = Counter()
    pictures = {record.media()[0].sha256 for record in split(f"captions.{part}")}
    for record in split(f"noisy.{part}"):
        stated = record.candidates[0].conditions["noise"]
        assert len(set(false_attributes(only_answer(record), truth_of(record)))) == stated, record.id
        noise[int(stated)] += 1
    assert noise[0] == len(pictures)
    assert [noise[count] / (2 * len(pictures)) for count in (1, 2, 3)] == pytest.approx([0.5, 0.3, 0.2], abs=0.05)
    assert {record.media()[0].sha256 for record in split(f"noisy.{part}")} == pictures


@pytest.mark.parametrize("name", ["questions.train", "questions.test"])
def test_questions_are_answered_truly_and_as_often_by_yes_as_by_no(name: str) -> None:
    answers: Counter[str] = Counter()
    for record in split(name):
        question, truth, answer = text_of(record.prompt[0].parts), truth_of(record), only_answer(record)
        if question.startswith("Is this a kind of "):
            asked = question.removeprefix("Is this a kind of ").removesuffix("?")
            assert answer == ("yes" if asked == truth.kind else "no"), record.id
            answers[answer] += 1
        else:
            assert answer == {"What is this?": truth.name, "What colour is it mostly?": truth.colours[0]}[question], record.id
    assert abs(answers["yes"] - answers["no"]) <= 1
    assert answers.total() == pytest.approx(len(split(name)) / 2, abs=1)


def test_the_card_names_the_files_by_their_hashes() -> None:
    folder = resolve_dataset("dataset:emoji-captions")
    card = (folder / "CARD.md").read_text(encoding="utf-8")
    assert {path.stem for path in folder.glob("*.jsonl")} == set(COUNTS)
    for name, count in COUNTS.items():
        digest = hashlib.sha256((folder / f"{name}.jsonl").read_bytes()).hexdigest()
        assert f"| `{name}.jsonl` | {count:,} | `{digest}` |" in card
