"""The judge of captions, on a data set of two made-up pictures and on the shipped one. No picture is opened: hashes suffice."""

from __future__ import annotations

from pathlib import Path

import pytest

from polyalign.assets import resolve_dataset
from polyalign.errors import MediaError, RecordError
from polyalign.evaluation.base import Verdict
from polyalign.records.jsonl import read_jsonl, write_jsonl
from polyalign.records.schema import Candidate, MediaPart, Message, Record, TextPart, text_of
from polyalign.records.store import reference_to
from polyalign.rewards.base import Judged
from polyalign_image.config import AttributeHallucinationConfig
from polyalign_image.emoji_captions import Truth, render
from polyalign_image.hallucination import AttributeHallucination, CaptionTruth

CAT = Truth("cat face", "animal mammal", ("yellow", "orange"), ("white",), ("kitten", "whiskers", "purr"))
HEART = Truth("red heart", "heart", ("red",))
TRUE = "cat face, a kind of animal mammal, mostly yellow and orange; about kitten and whiskers"


def asked(picture: bytes) -> tuple[Message, ...]:
    media = MediaPart(media=reference_to(picture, "image", "image/webp"))
    return (Message(role="user", parts=(media, TextPart(text="Describe the picture."))),)


def caption_record(picture: bytes, truth: Truth, **conditions: str) -> Record:
    answer = Candidate(parts=(TextPart(text=render(truth.caption)),))
    return Record(id=truth.name, prompt=asked(picture), candidates=(answer,), conditions=truth.conditions() | conditions)


@pytest.fixture
def data(tmp_path: Path) -> str:
    """The cat for training, the heart held out; questions beside them that state no truth."""
    write_jsonl(tmp_path / "captions.train.jsonl", [caption_record(b"cat", CAT)])
    write_jsonl(tmp_path / "captions.test.jsonl", [caption_record(b"heart", HEART)])
    question = Record(id="q", prompt=asked(b"cat"), candidates=(Candidate(parts=(TextPart(text="yes"),)),))
    write_jsonl(tmp_path / "questions.test.jsonl", [question])
    return str(tmp_path)


def judged(data: str, *items: tuple[bytes, object], captions: str = "captions") -> dict[str, Verdict]:
    judge = AttributeHallucination(AttributeHallucinationConfig(data=data, captions=captions))
    return {verdict.name: verdict for verdict in judge.judge([Judged(asked(picture), answer) for picture, answer in items])}


def test_answers_are_held_against_the_picture_that_was_asked_about(data: str) -> None:
    """Six parts are true of the cat; of the heart three. The fifth answer is about the other picture, the last is none."""
    found = judged(
        data,
        (b"cat", TRUE),
        (b"cat", TRUE.replace("yellow", "blue").replace("kitten", "space")),  # two false claims, two parts missing
        (b"cat", TRUE.replace(" and orange", "")),  # nothing false, one part missing
        (b"heart", "Red heart, a kind of heart, mostly red."),
        (b"heart", TRUE),
        (b"heart", "I see a heart"),
    )
    assert found["hallucination"].values == (0, 1, 0, 0, 1, 1)
    assert found["name_correct"].values == (1, 1, 1, 1, 0, 0)
    assert found["complete"].values == pytest.approx((1, 4 / 6, 5 / 6, 1, 0, 0))


def test_the_reward_is_what_is_true_less_what_is_false(data: str) -> None:
    """Of six parts the third answer gives four, and two of the four attributes are wrong; an unreadable answer is all wrong."""
    answers = (TRUE, TRUE.replace(" and orange", ""), TRUE.replace("yellow", "blue").replace("kitten", "space"), "?")
    reward = CaptionTruth(AttributeHallucinationConfig(data=data))
    assert reward.score([Judged(asked(b"cat"), answer) for answer in answers]) == pytest.approx((1, 5 / 6, 4 / 6 - 2 / 4, -1))


def test_the_notes_say_how_to_read_the_rate_and_where_it_comes_from(data: str) -> None:
    """One of four answers cannot be read; of the other three, two are wrong in the colour and one of these in the tag too."""
    verdict = judged(
        data,
        (b"cat", TRUE),
        (b"cat", TRUE.replace("yellow", "blue and pink")),
        (b"cat", TRUE.replace("yellow", "blue").replace("kitten", "space")),
        (b"cat", "?"),
    )["hallucination"]
    notes = verdict.notes
    assert verdict.better == "lower"
    assert notes["unparseable"] == "0.250"
    assert {key: value for key, value in notes.items() if key.startswith("false ")} == {
        "false name": "0.000",
        "false kind": "0.000",
        "false colour": "0.667",
        "false tag": "0.333",
    }


def test_nothing_readable_and_nothing_to_judge(data: str) -> None:
    notes = judged(data, (b"cat", ""))["hallucination"].notes
    assert notes["unparseable"] == "1.000" and "false name" not in notes
    assert [verdict.values for verdict in judged(data).values()] == [(), (), ()]


def test_the_last_picture_of_a_prompt_is_the_one_described(data: str) -> None:
    prompt = (*asked(b"heart"), Message(role="assistant", parts="a heart"), *asked(b"cat"))
    verdicts = AttributeHallucination(AttributeHallucinationConfig(data=data)).judge([Judged(prompt, TRUE)])
    assert verdicts[0].values == (0,)


def test_what_cannot_be_judged_is_refused_by_name(data: str) -> None:
    sha256 = reference_to(b"dog", "image", "image/webp").sha256
    with pytest.raises(RecordError, match=rf"item 1: the picture with sha256 {sha256} is not in {data}"):
        judged(data, (b"cat", TRUE), (b"dog", TRUE))
    with pytest.raises(MediaError, match="item 0 is a bytes; expected the text of a caption"):
        judged(data, (b"cat", b"picture"))
    with pytest.raises(RecordError, match="item 0 has no picture in its prompt"):
        AttributeHallucination(AttributeHallucinationConfig(data=data)).judge(
            [Judged((Message(role="user", parts="Describe the picture."),), TRUE)]
        )


def test_a_data_set_without_the_truth_is_refused(data: str) -> None:
    with pytest.raises(RecordError, match=r"no split whose name begins with 'pairs\.'; it has: captions\.test, captions\.train"):
        judged(data, (b"cat", TRUE), captions="pairs")
    with pytest.raises(RecordError, match="record 'q' has no condition 'name'; a true caption states name, kind"):
        judged(data, (b"cat", TRUE), captions="questions")


def test_on_the_shipped_pairs_every_chosen_caption_passes_and_every_false_one_is_caught() -> None:
    records = [record for _, record in read_jsonl(resolve_dataset("dataset:emoji-captions") / "test.jsonl")]
    judge = AttributeHallucination()
    for record in records:
        verdicts = judge.judge([Judged(record.prompt, text_of(candidate.parts)) for candidate in record.candidates])
        ((better,), (worse,)) = record.feedback[0].ranking  # type: ignore[union-attr]
        hallucination, name_correct, complete = (verdict.values for verdict in verdicts)
        stated = record.candidates[worse].conditions
        assert (hallucination[better], name_correct[better], complete[better]) == (0, 1, 1), record.id
        assert hallucination[worse] == (stated["edit"] != "drop"), record.id
        assert name_correct[worse] == (stated["attribute"] != "name"), record.id
        assert (complete[worse] == 1) == (stated["edit"] == "add"), record.id
