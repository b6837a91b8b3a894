"""Every importer on a small data set of our own making in its documented layout: what it reads, and what it says of bad rows.

The rows are written as each data set is published (JSON Lines, a JSON list, Parquet), imported by the command's own function,
validated as any data set is, and read back.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from toys.imported import imported, of_kind, png, ranking_of, run_import, shape

from polyalign.records.jsonl import read_jsonl
from polyalign.records.schema import Comparison, Critique, Rating, text_of
from polyalign.records.views import VIEWS

# layouts of training libraries


def test_trl_text_and_vision_rows(tmp_path: Path) -> None:
    """Called-for images stand where they are called for; others in front of the first user message, as TRL puts them."""
    picture = {"bytes": png(1), "path": None}
    rows = [
        {"prompt": "p", "chosen": "good", "rejected": "bad", "images": None},
        {"prompt": "look", "chosen": "good", "rejected": "bad", "images": [picture]},
    ]
    plain, seen = imported("trl", tmp_path, rows, "parquet")
    assert shape(plain.prompt[0].parts) == ["p"]
    assert shape(seen.prompt[0].parts) == ["image", "look"]
    assert [text_of(candidate.parts) for candidate in seen.candidates] == ["good", "bad"] and ranking_of(seen) == ((0,), (1,))
    called = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]}
    answers = [{"role": "assistant", "content": [{"type": "text", "text": text}]} for text in ("x", "y")]
    (tmp_path / "implicit/source").mkdir(parents=True)
    (tmp_path / "implicit/source/a.png").write_bytes(png(2))
    row = {"chosen": [called, answers[0]], "rejected": [called, answers[1]], "image": "a.png"}
    (implicit,) = imported("trl", tmp_path / "implicit", [row])
    assert shape(implicit.prompt[0].parts) == ["a", "image", "b"]
    assert [text_of(candidate.parts) for candidate in implicit.candidates] == ["x", "y"]


def test_llama_factory_ranking_kto_and_fine_tuning_rows(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.png").write_bytes(png(1))
    (source / "b.wav").write_bytes(b"audio 1")
    asked = [{"from": "human", "value": "<image>what?"}]
    rows = [
        {
            "conversations": asked, "system": "be brief", "images": ["a.png"],
            "chosen": {"from": "gpt", "value": "good"}, "rejected": {"from": "gpt", "value": "bad"},
        },
        {"messages": [{"role": "user", "content": "hear <audio>?"}, {"role": "assistant", "content": "yes"}], "audios": ["b.wav"],
         "kto_tag": False},
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]},
    ]  # fmt: skip
    pair, labelled, plain = imported("llama-factory", tmp_path, rows, "json")
    assert [message.role for message in pair.prompt] == ["system", "user"] and shape(pair.prompt[1].parts) == ["image", "what?"]
    assert ranking_of(pair) == ((0,), (1,)) and text_of(pair.candidates[0].parts) == "good"
    assert shape(labelled.prompt[0].parts) == ["hear ", "audio", "?"] and of_kind(labelled, Rating)[0].value == 0.0
    assert not plain.feedback and text_of(plain.candidates[0].parts) == "ho"


def test_ms_swift_rows(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.mp4").write_bytes(b"video 1")
    turns = [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "good"}]
    rows = [
        {"messages": turns, "rejected_response": ["bad", "worse"], "videos": ["a.mp4"]},
        {"messages": turns, "rejected_messages": [turns[0], {"role": "assistant", "content": "bad"}]},
        {"messages": turns, "label": True},
    ]
    several, other, labelled = imported("ms-swift", tmp_path, rows)
    assert shape(several.prompt[0].parts) == ["video", "what?"] and ranking_of(several) == ((0,), (1, 2))
    assert text_of(other.candidates[1].parts) == "bad"
    assert of_kind(labelled, Rating)[0].value == 1.0


# text


def test_hh_rlhf_dialogues_part_at_their_last_answer(tmp_path: Path) -> None:
    start = "\n\nHuman: Hi\n\nAssistant: Hello. Human: is a word here.\n\nHuman: More?\n\nAssistant: "
    (record,) = imported("hh-rlhf", tmp_path, [{"chosen": start + "Sure.", "rejected": start + "No."}])
    assert [(m.role, text_of(m.parts)) for m in record.prompt] == [
        ("user", "Hi"), ("assistant", "Hello. Human: is a word here."), ("user", "More?"),
    ]  # fmt: skip
    assert [text_of(candidate.parts) for candidate in record.candidates] == ["Sure.", "No."] and ranking_of(record) == (
        (0,),
        (1,),
    )


def completion(name: str, *ratings: str) -> dict[str, Any]:
    aspects = ("helpfulness", "honesty")
    notes = {aspect: {"Rating": rating, "Rationale": f"why {rating}"} for aspect, rating in zip(aspects, ratings)}
    return {"model": f"model {name}", "response": name, "annotations": notes, "critique": f"about {name}", "overall_score": 10.0}


def test_ultrafeedback_is_ranked_by_mean_rating(tmp_path: Path) -> None:
    """a: (2 + 4) / 2 = 3; b: 5 ("N/A" does not count); c: (3 + 3) / 2 = 3. overall_score, wrong in the original, is not read."""
    completions = [completion("a", "2", "4"), completion("b", "5", "N/A"), completion("c", "3", "3")]
    (record,) = imported("ultrafeedback", tmp_path, [{"instruction": "do", "completions": completions}])
    assert ranking_of(record) == ((1,), (0, 2))
    ratings = {(rating.candidate, rating.aspect): rating.value for rating in of_kind(record, Rating)}
    assert ratings == {(0, "helpfulness"): 2, (0, "honesty"): 4, (1, "helpfulness"): 5, (2, "helpfulness"): 3, (2, "honesty"): 3}
    assert of_kind(record, Rating)[0].scale == (1.0, 5.0) and len(of_kind(record, Critique)) == 6 + 3
    assert record.candidates[1].producer == "model b"


def message(identity: str, parent: str | None, role: str, rank: int | None, **more: Any) -> dict[str, Any]:
    return {
        "message_id": identity,
        "parent_id": parent,
        "text": f"text {identity}",
        "role": role,
        "rank": rank,
        "lang": "en",
        **more,
    }


MESSAGES = [
    message("p", None, "prompter", None),
    message("a", "p", "assistant", 1),
    message("b", "p", "assistant", 0),
    message("q", "b", "prompter", 0),
    message("c", "q", "assistant", 0),
    message("d", "q", "assistant", 1),
    message("e", "q", "assistant", None, deleted=True),
]


def as_tree(identity: str) -> dict[str, Any]:
    (found,) = (item for item in MESSAGES if item["message_id"] == identity)
    return found | {"replies": [as_tree(item["message_id"]) for item in MESSAGES if item["parent_id"] == identity]}


@pytest.mark.parametrize("form", ["messages", "trees"])
def test_oasst_trees_give_a_record_for_each_prompt_with_ranked_replies(tmp_path: Path, form: str) -> None:
    rows = [{"message_tree_id": "p", **item} for item in MESSAGES]
    if form == "trees":
        rows = [{"message_tree_id": "p", "tree_state": "ready", "prompt": as_tree("p")}]
    first, second = imported("oasst", tmp_path, rows)
    assert ranking_of(first) == ((1,), (0,)) and [text_of(c.parts) for c in first.candidates] == ["text a", "text b"]
    assert [text_of(message.parts) for message in second.prompt] == ["text p", "text b", "text q"]
    assert [text_of(c.parts) for c in second.candidates] == ["text c", "text d"] and ranking_of(second) == ((0,), (1,))
    assert first.tags == ("language:en",)


# align-anything

JUDGED = {
    "p_response": 1, "overall_response": 2, "prompt_following_rate_1": 3, "prompt_following_rate_2": 0,
    "p_rationale_1": "good", "p_rationale_2": "bad",
}  # fmt: skip


def align_anything_row(subset: str) -> dict[str, Any]:
    image, audio, video, more_audio = ({"bytes": data, "path": None} for data in (png(1), b"audio 1", b"video 1", b"audio 2"))
    other = {"bytes": png(9), "path": None}
    return {
        "text-to-text": {"question": "q", "response_1": "a", "response_2": "b", **JUDGED},
        "text-image-to-text": {"question": "q", "image": image, "response_1": "a", "response_2": "b", **JUDGED},
        "text-to-image": {"prompt": "q", "image_1": image, "image_2": other, "overall_image": 1, "aesthetics_rate_1": 2,
                          "a_rationale_1": "nice", "refine_prompt": "better q"},
        "text-to-audio": {"prompt": "q", "response_1": audio, "response_2": more_audio, "overall_audio": 0,
                          "audio_quality_rate_1": 1, "o_rationale_1": "noisy", "text_1_feedback": "##Critique: dull"},
        "text-audio-to-text": {"prompt": "q", "audio_path": audio, "response_1": "a", "response_2": "b", **JUDGED},
        "text-video-to-text": {"prompt": "q", "video_path": video, "response_1": "a", "response_2": "b", **JUDGED},
        "text-to-video": {"prompt": "q", "video_1": video, "video_2": {"bytes": b"video 2", "path": None}, "overall_video": 2},
        "text-image-to-text-image": {"question": "q", "image": image, "text_response_1": "a", "text_response_2": "b",
                                     "image_response_1": image, "image_response_2": other, "overall_response": 1},
    }[subset]  # fmt: skip


@pytest.mark.parametrize(
    ("subset", "prompt", "candidate", "overall"),
    [
        ("text-to-text", ["q"], ["a"], ((1,), (0,))),
        ("text-image-to-text", ["image", "q"], ["a"], ((1,), (0,))),
        ("text-to-image", ["q"], ["image"], ((0,), (1,))),
        ("text-to-audio", ["q"], ["audio"], ((0, 1),)),
        ("text-audio-to-text", ["audio", "q"], ["a"], ((1,), (0,))),
        ("text-video-to-text", ["video", "q"], ["a"], ((1,), (0,))),
        ("text-to-video", ["q"], ["video"], ((1,), (0,))),
        ("text-image-to-text-image", ["image", "q"], ["a", "image"], ((0,), (1,))),
    ],
)
def test_align_anything_subsets(
    tmp_path: Path, subset: str, prompt: list[str], candidate: list[str], overall: tuple[tuple[int, ...], ...]
) -> None:
    (record,) = imported("align-anything", tmp_path, [align_anything_row(subset)], "parquet")
    assert shape(record.prompt[0].parts) == prompt and shape(record.candidates[0].parts) == candidate
    assert ranking_of(record) == overall
    if "-to-text" in subset and "image-to-text-image" not in subset:
        assert ranking_of(record, "prompt_following") == ((0,), (1,))
        assert [(r.candidate, r.value, r.aspect) for r in of_kind(record, Rating)] == [
            (0, 3, "prompt_following"), (1, 0, "prompt_following"),
        ]  # fmt: skip
        assert [(c.candidate, c.aspect) for c in of_kind(record, Critique)] == [(0, "prompt_following"), (1, "prompt_following")]
    if subset == "text-to-image":
        assert record.conditions == {"refine_prompt": "better q"} and of_kind(record, Critique)[0].aspect == "aesthetics"
    if subset == "text-to-audio":
        assert {(c.candidate, c.aspect) for c in of_kind(record, Critique)} == {(0, "audio_quality"), (0, "overall")}


# pictures


@pytest.mark.parametrize("name", ["rlaif-v", "spa-vl", "rlhf-v"])
def test_pairs_about_a_picture(tmp_path: Path, name: str) -> None:
    inner = {"question": "what?", "chosen": "good", "rejected": "bad"}
    row = {"image": {"bytes": png(1), "path": None}, "origin_dataset": "set"}
    rows = [row | ({"text": json.dumps(inner)} if name == "rlhf-v" else inner)]
    (record,) = imported(name, tmp_path, rows, "parquet")
    assert shape(record.prompt[0].parts) == ["image", "what?"] and record.tags == ("origin_dataset:set",)
    assert [text_of(c.parts) for c in record.candidates] == ["good", "bad"] and ranking_of(record) == ((0,), (1,))


@pytest.mark.parametrize("form", ["json", "parquet"])
def test_vlfeedback(tmp_path: Path, form: str) -> None:
    picture: Any = {"bytes": png(1), "path": None}
    column = "image"
    if form == "json":
        picture, column = f"data:image/png;base64,{base64.b64encode(png(1)).decode()}", "img_path"
    completions = [completion("a", "2", "2"), completion("b", "4", "3")]
    (record,) = imported("vlfeedback", tmp_path, [{"prompt": "what?", column: picture, "completions": completions}], form)
    assert shape(record.prompt[0].parts) == ["image", "what?"] and ranking_of(record) == ((1,), (0,))
    assert len(of_kind(record, Rating)) == 4 and len(of_kind(record, Critique)) == 4


def test_structures_of_sequences_are_read_as_sequences_of_structures(tmp_path: Path) -> None:
    """Some writers of the `datasets` library turn a list of completions inside out."""
    turned = {key: [completion(name, "2", rating)[key] for name, rating in (("a", "1"), ("b", "5"))] for key in completion("a")}
    (record,) = imported("ultrafeedback", tmp_path, [{"instruction": "do", "completions": turned}])
    assert ranking_of(record) == ((1,), (0,))


def test_mm_rlhf_pairs_about_pictures_and_clips(tmp_path: Path) -> None:
    source = tmp_path / "source/images"
    source.mkdir(parents=True)
    (source / "a.png").write_bytes(png(1))
    (source / "b.mp4").write_bytes(b"video 1")
    texts = {"prompt": "<image>\nwhat?", "chosen": "good", "rejected": "bad"}
    rows = [{**texts, "image": "images/a.png", "rejected_reason": "wrong"}, {**texts, "video": "images/b.mp4"}]
    still, clip = imported("mm-rlhf", tmp_path, rows)
    assert shape(still.prompt[0].parts) == ["image", "what?"] and shape(clip.prompt[0].parts) == ["video", "what?"]
    assert [(c.candidate, text_of(c.parts)) for c in of_kind(still, Critique)] == [(1, "wrong")]


def test_pick_a_pic_keeps_ties_and_leaves_unlabelled_rows_out(tmp_path: Path) -> None:
    row = {"caption": "a cat", "jpg_0": png(1), "jpg_1": png(2), "model_0": "m", "user_id": 7, "has_label": True}
    rows = [
        {**row, "label_0": 0.0, "label_1": 1.0, "ranking_id": 1},
        {**row, "label_0": 0.5, "label_1": 0.5, "ranking_id": 2},
        {**row, "label_0": 0.5, "label_1": 0.5, "ranking_id": 3, "has_label": False},
    ]
    chosen, tied = imported("pick-a-pic", tmp_path, rows, "parquet")
    assert ranking_of(chosen) == ((1,), (0,)) and ranking_of(tied) == ((0, 1),)
    assert chosen.id == "1" and chosen.candidates[0].producer == "m" and of_kind(chosen, Comparison)[0].annotator == "7"
    assert len(VIEWS["pairs"](chosen, None)) == 1 and not VIEWS["pairs"](tied, None)


def test_hpdv2_pairs_and_rankings(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(3):
        (source / f"{number}.png").write_bytes(png(number))
    (source / "train.json").write_text(json.dumps([{"prompt": "a", "file_path": ["0.png", "1.png"], "human_preference": [0, 1]}]))
    votes = [{"rank": [1, 2, 3], "user_hash": "u"}, {"rank": [3, 1, 2], "user_hash": "v"}]
    rank = {"prompt": "b", "image_path": ["0.png", "1.png", "2.png"], "rank": [2, 1, 3], "raw_annotations": votes}
    (source / "test.json").write_text(json.dumps([rank]))
    done = run_import("hpdv2", source, tmp_path / "new")
    assert done.written == {tmp_path / "new/train.jsonl": 1, tmp_path / "new/test.jsonl": 1}
    ((_, pair),) = read_jsonl(tmp_path / "new/train.jsonl")
    ((_, ranked),) = read_jsonl(tmp_path / "new/test.jsonl")
    assert ranking_of(pair) == ((1,), (0,))
    assert [(c.annotator, c.ranking) for c in of_kind(ranked, Comparison)] == [
        (None, ((1,), (0,), (2,))), ("u", ((0,), (1,), (2,))), ("v", ((1,), (2,), (0,))),
    ]  # fmt: skip


def test_imagerewarddb_rows_of_one_prompt_are_one_record(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(4):
        (source / f"{number}.png").write_bytes(png(number))
    row = {"prompt": "a", "prompt_id": "first"}
    rows = [
        {**row, "image_path": "0.png", "rank": 2, "overall_rating": 5, "fidelity_rating": 6},
        {"prompt": "b", "prompt_id": "other", "image_path": "3.png", "rank": 1},
        {**row, "image_path": "1.png", "rank": 1},
        {**row, "image_path": "2.png", "rank": 2},
    ]
    first, other = imported("imagerewarddb", tmp_path, rows, "json")
    assert first.id == "first" and ranking_of(first) == ((1,), (0, 2))
    assert [(r.candidate, r.aspect, r.value) for r in of_kind(first, Rating)] == [(0, "overall", 5), (0, "fidelity", 6)]
    assert len(other.candidates) == 1 and not other.feedback
