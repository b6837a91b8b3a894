"""Judges against a real HTTP server in this process."""

from __future__ import annotations

import base64
import itertools
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from polyalign.config import read_recipe
from polyalign.errors import ConfigError, RewardError
from polyalign.records.samples import Prompt
from polyalign.records.schema import MediaPart, Message, TextPart
from polyalign.records.store import MemoryMedia
from polyalign.rewards.base import Judged
from polyalign.rewards.config import RewardSlot
from polyalign.rewards.judge.client import ChatClient, _retry_after
from polyalign.rewards.judge.config import JudgeConfig, JudgeRankerConfig
from polyalign.rewards.judge.conversation import read_score, read_verdict
from polyalign.rewards.judge.rewards import Judge, JudgeRanker

from .endpoint import Answer, Endpoint, shown, wait_until

Serve = Callable[[Callable[[dict[str, Any], int], Answer]], Endpoint]
KEY = "sk-SECRET-0123456789"


@pytest.fixture
def serve() -> Iterator[Serve]:
    started: list[Endpoint] = []

    def start(answer: Callable[[dict[str, Any], int], Answer]) -> Endpoint:
        started.append(Endpoint(answer))
        return started[-1]

    yield start
    for endpoint in started:
        endpoint.close()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYALIGN_CACHE", str(tmp_path / "cache"))


def item(output: Any, prompt: str = "What is tea?") -> Judged:
    return Judged((Message(role="user", parts=prompt),), output)  # type: ignore[arg-type]


def judge(endpoint: Endpoint, pauses: list[float] | None = None, **options: Any) -> Judge:
    config = JudgeConfig(base_url=endpoint.url, model="m", **options)
    return Judge(config, ChatClient(config, sleep=(pauses if pauses is not None else []).append))


def ranker(endpoint: Endpoint, **options: Any) -> JudgeRanker:
    config = JudgeRankerConfig(base_url=endpoint.url, model="m", **options)
    return JudgeRanker(config, ChatClient(config, sleep=lambda seconds: None))


def by_length(body: dict[str, Any], number: int) -> str:
    """Score 1 to 10: the length of the response."""
    (response,) = re.findall(r"--- RESPONSE ---\n(.*)\n--- END", shown(body), re.DOTALL)
    return f"It is so long. Score: {len(response)}"


# --- scores


def test_scores_come_back_in_order_and_on_the_unit_interval(serve: Serve) -> None:
    endpoint = serve(by_length)
    assert judge(endpoint).score([item("a"), item("a" * 10), item("aaaa")]) == pytest.approx([0, 1, 1 / 3])
    body = endpoint.bodies[0]
    assert (body["model"], body["temperature"], body["max_tokens"], body["stream"]) == ("m", 0.0, 512, False)
    assert endpoint.paths == ["/v1/chat/completions"] * 3
    assert "What is tea?" in shown(body) and "from 1 to 10" in body["messages"][0]["content"]
    assert judge(endpoint).score([]) == []


def test_aspects_are_asked_apart_and_averaged(serve: Serve) -> None:
    endpoint = serve(lambda body, number: "Score: 10" if "true" in body["messages"][0]["content"] else "Score: 1")
    scored = judge(endpoint, aspects={"honest": "whether it is true", "short": "brevity"}).evaluate([item("a"), item("b")])
    assert scored.values == [0.5, 0.5]
    assert scored.aspects == {"honest": [1.0, 1.0], "short": [0.0, 0.0]}


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("Good. Score: 7", 7),
        ("**Score:** 7.5", 7.5),
        ("Score: 3 at first sight.\nScore: 9", 9),
        ("I rate it [[8]]", 8),
        ("Rating: [[8]]", 8),
        ('{"reason": "x", "score": 6}', 6),
        ("The score is 4/10.", 4),
        ("That is 9 out of 10", 9),
        ("Score (1-10): 2", 2),
        (" 5 ", 5),
        ("<think>Score: 2? no</think>\nScore: 8", 8),
        ("<think>Score: 2", None),
        ("Score: 11", None),
        ("Score: -1", None),
        ("In 2024 there were 7 cups", None),
        ("", None),
        ("Score: high", None),
    ],
)
def test_scores_are_read_from_what_models_write(reply: str, score: float | None) -> None:
    assert read_score(reply, 1, 10) == score


def test_a_malformed_reply_is_asked_again_with_a_reminder(serve: Serve) -> None:
    endpoint = serve(lambda body, number: "Well..." if number < 2 else "Score: 10")
    assert judge(endpoint).score([item("a")]) == [1.0]
    assert [len(body["messages"]) for body in endpoint.bodies] == [2, 4, 6]
    assert endpoint.bodies[2]["messages"][2] == {"role": "assistant", "content": "Well..."}


def test_what_stays_unreadable_is_an_error_or_a_given_value(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    endpoint = serve(lambda body, number: "Score: 10" if "fine" in shown(body) else "no idea")
    with pytest.raises(RewardError, match="1 of 2 replies of the judge 'm' could not be read in 2 attempts.*'no idea'"):
        judge(endpoint, attempts=2).score([item("fine"), item("odd")])
    assert judge(endpoint, attempts=2, unreadable=0.3).score([item("fine"), item("odd")]) == [1.0, 0.3]
    assert "1 of 2 replies could not be read and count as 0.3" in caplog.text


# --- cache, retries, limits


def test_equal_questions_are_asked_once_and_come_from_disk_later(serve: Serve) -> None:
    endpoint = serve(by_length)
    first = judge(endpoint).score([item("aa"), item("aa"), item("aaa")])
    assert len(endpoint.bodies) == 2
    again = judge(endpoint)
    assert again.score([item("aaa"), item("aa"), item("a")]) == pytest.approx([first[2], first[0], 0])
    assert len(endpoint.bodies) == 3 and again.client.usage.cached == 2
    judge(endpoint, criteria="brevity").score([item("aa")])
    judge(endpoint, temperature=0.5).score([item("aa")])
    judge(endpoint, cache=False).score([item("aa")])
    assert len(endpoint.bodies) == 6


def test_a_damaged_cache_file_is_asked_again(serve: Serve, tmp_path: Path) -> None:
    endpoint = serve(by_length)
    judge(endpoint).score([item("aa")])
    (file,) = (tmp_path / "cache" / "judge").rglob("*.json")
    file.write_text('{"rep')
    assert judge(endpoint).score([item("aa")]) == pytest.approx([1 / 9])
    assert len(endpoint.bodies) == 2


def test_busy_and_failing_servers_are_asked_again_later_and_later(serve: Serve) -> None:
    troubles: list[Answer] = [(429, "slow down", {"Retry-After": "7"}), (503, "ill"), (500, "x"), "Score: 10"]
    pauses: list[float] = []
    reward = judge(serve(lambda body, number: troubles[number]), pauses, backoff=1)
    assert reward.score([item("a")]) == [1.0]
    assert pauses[0] == 7.0  # as told, more than its own 0.75 to 1.25 s
    assert 1.5 <= pauses[1] <= 2.5 and 3 <= pauses[2] <= 5
    assert (reward.client.usage.requests, reward.client.usage.retries) == (4, 3)


def test_it_gives_up_and_says_what_happened_last(serve: Serve) -> None:
    with pytest.raises(RewardError, match="no answer in 3 tries, at last status 502: bad gateway"):
        judge(serve(lambda body, number: (502, "bad gateway")), retries=2).score([item("a")])


def test_a_refusal_is_not_asked_again(serve: Serve) -> None:
    endpoint = serve(lambda body, number: (404, "no model m"))
    with pytest.raises(RewardError, match="refuses the judge's question with status 404: no model m"):
        judge(endpoint, concurrency=1).score([item("a"), item("b"), item("c")])
    assert len(endpoint.bodies) < 3


def test_an_endpoint_that_is_none_is_named(serve: Serve) -> None:
    with pytest.raises(RewardError, match=r"expected choices\[0\].message.content, found '<html>'"):
        judge(serve(lambda body, number: (200, "<html>"))).score([item("a")])


def test_timeouts_and_closed_ports_are_tried_again(serve: Serve) -> None:
    release = iter([False])

    def slow(body: dict[str, Any], number: int) -> str:
        if number == 0:
            wait_until(lambda: next(release, True), 1.0)
            wait_until(lambda: len(endpoint.bodies) > 1, 5.0)
        return "Score: 10"

    endpoint = serve(slow)
    assert judge(endpoint, timeout=0.2).score([item("a")]) == [1.0]
    assert len(endpoint.bodies) == 2
    config = JudgeConfig(base_url="http://127.0.0.1:9/v1", model="m", retries=1)
    with pytest.raises(RewardError, match="no answer in 2 tries, at last ConnectError"):
        Judge(config, ChatClient(config, sleep=lambda seconds: None)).score([item("a")])


def test_requests_are_paced(serve: Serve) -> None:
    """30 a minute are 2 s apart: with a clock that stands still, the third waits 4 s."""
    pauses: list[float] = []
    endpoint = serve(by_length)
    config = JudgeConfig(base_url=endpoint.url, model="m", requests_per_minute=30, concurrency=1)
    Judge(config, ChatClient(config, clock=lambda: 100.0, sleep=pauses.append)).score([item(text) for text in "abc"])
    assert pauses == [2.0, 4.0]


def test_as_many_at_once_as_allowed_and_no_more(serve: Serve) -> None:
    endpoint = serve(lambda body, number: "Score: 5" if wait_until(lambda: endpoint.most_at_once >= 3) else "late")
    judge(endpoint, concurrency=3).score([item(text) for text in "abcdefgh"])
    assert endpoint.most_at_once == 3


@pytest.mark.parametrize(
    ("limit", "asked"),
    [
        ({"max_requests": 2}, 2),
        ({"max_tokens": 220}, 2),  # 110 for each
        ({"max_tokens": 221}, 3),
        ({"max_cost": 0.0012, "price_prompt": 5, "price_reply": 10}, 2),  # 5e-4 + 1e-4 for each
    ],
)
def test_a_budget_ends_the_asking_and_keeps_what_was_answered(serve: Serve, limit: dict[str, Any], asked: int) -> None:
    endpoint = serve(by_length)
    items = [item("a" * n) for n in range(1, 6)]
    with pytest.raises(RewardError, match=f"budget is spent: {next(iter(limit))}="):
        judge(endpoint, concurrency=1, **limit).score(items)
    assert len(endpoint.bodies) == asked
    assert judge(endpoint, max_requests=5 - asked).score(items) == pytest.approx([n / 9 for n in range(5)])


# --- pairs


def prefers(word: str) -> Callable[[dict[str, Any], int], str]:
    """A judge that likes the response with the word in it, wherever it stands."""

    def answer(body: dict[str, Any], number: int) -> str:
        first, second = (re.search(rf"RESPONSE {side} ---\n(.*)\n--- END", shown(body)) for side in "AB")
        assert first and second
        likes = [word in first[1], word in second[1]]
        return "Better: tie" if likes[0] == likes[1] else f"Better: {'A' if likes[0] else 'B'}"

    return answer


def test_a_ranking_is_the_share_of_wins_with_ties_as_halves(serve: Serve) -> None:
    """good beats both others; they tie: (1 + 1) / 2, (0 + 1/2) / 2 twice."""
    endpoint = serve(prefers("good"))
    assert ranker(endpoint).score([item("bad"), item("good"), item("worse")]) == [0.25, 1.0, 0.25]
    assert len(endpoint.bodies) == 6  # three pairs, both orders


def test_prompts_are_ranked_apart(serve: Serve) -> None:
    items = [item("good", "p"), item("bad", "q"), item("bad", "p"), item("good", "q")]
    assert ranker(serve(prefers("good"))).score(items) == [1.0, 0.0, 0.0, 1.0]
    with pytest.raises(RewardError, match="item 1 is the only one"):
        ranker(serve(prefers("good"))).score([item("a", "p"), item("a", "q"), item("b", "p")])


def test_a_judge_that_always_takes_the_first_finds_no_winner(serve: Serve) -> None:
    assert ranker(serve(lambda body, number: "Better: A")).score([item("x"), item("y")]) == [0.5, 0.5]


def test_the_majority_of_votes_decides(serve: Serve) -> None:
    """Votes 0 and 1 are for good, vote 2 for bad (a vote is told by its seed; vote 0 has none)."""
    good, bad = prefers("good"), prefers("bad")
    endpoint = serve(lambda body, number: (bad if body.get("seed") == 2 else good)(body, number))
    assert ranker(endpoint, votes=3, temperature=1).score([item("good"), item("bad")]) == [1.0, 0.0]
    assert len(endpoint.bodies) == 6
    split = serve(lambda body, number: (bad if body.get("seed") == 1 else good)(body, number))
    assert ranker(split, votes=2, temperature=1).score([item("good"), item("bad")]) == [0.5, 0.5]


def test_fewer_opponents_are_fewer_questions(serve: Serve) -> None:
    endpoint = serve(prefers("good"))
    values = ranker(endpoint, opponents=1).score([item(text) for text in ("bad", "good", "so", "la", "ti")])
    assert values[1] == 1.0 and len(endpoint.bodies) == 2 * 5


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("Better: A", "A"),
        ("**Better:** Response B", "B"),
        ("A is short.\nBetter: A\nOn reflection:\nBetter: tie", "tie"),
        ("[[B]]", "B"),
        ("[[C]]", "tie"),
        ("b", "B"),
        ("Winner: (A)", "A"),
        ("Verdict: both", "tie"),
        ("Better: Apples", None),
        ("<think>Better: A</think>", None),
        ("A or B", None),
    ],
)
def test_verdicts_are_read_from_what_models_write(reply: str, verdict: str | None) -> None:
    assert read_verdict(reply) == verdict


# --- keys


def test_the_key_goes_to_the_endpoint_and_nowhere_else(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("JUDGE_KEY", f" {KEY}\n")
    echoes: list[Answer] = [(429, f"key {KEY} is slow"), f"You sent {KEY}. Score: 10"]
    endpoint = serve(lambda body, number: echoes[number] if number < 2 else (401, f"bad key {KEY}"))
    reward = judge(endpoint, api_key_env="JUDGE_KEY")
    assert reward.score([item("a")]) == [1.0]
    with pytest.raises(RewardError, match=r"status 401: bad key \[key\]") as caught:
        reward.score([item("b")])
    assert [headers["authorization"] for headers in endpoint.headers] == [f"Bearer {KEY}"] * 3
    printed = capsys.readouterr()
    said = [caplog.text, printed.out, printed.err, str(caught.value), repr(reward.config), repr(vars(reward.client))]
    said += [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(said) == 7 and not [text for text in said if KEY in text]


def test_a_key_in_the_wrong_place_is_refused_without_being_shown(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ({"api_key_env": KEY}, {"base_url": f"http://x/v1?key={KEY}"}, {"base_url": f"http://me:{KEY}@x/v1"}):
        slot = {"name": "judge", "model": "m", "base_url": "http://x/v1"} | wrong
        with pytest.raises(ValidationError) as caught:
            RewardSlot.model_validate(slot)
        assert KEY not in str(caught.value)
        recipe = {"name": "x", "policy": {"name": "text", "base": "b"}, "objective": "dpo", "data": {"train": [{"path": "d"}]}}
        with pytest.raises(ConfigError) as reported:
            read_recipe(yaml.safe_dump(recipe | {"report": {"rewards": [slot]}}))
        assert KEY not in str(reported.value)
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(RewardError, match="set the environment variable JUDGE_KEY"):
        judge(serve(by_length), api_key_env="JUDGE_KEY").score([item("a")])
    monkeypatch.setenv("JUDGE_KEY", f"{KEY}\nX: y")
    with pytest.raises(RewardError, match="something that is no key") as blank:
        judge(serve(by_length), api_key_env="JUDGE_KEY").score([item("a")])
    assert KEY not in str(blank.value)


# --- pictures


def test_pictures_are_shown_as_data_and_other_media_refused(serve: Serve) -> None:
    image = pytest.importorskip("PIL.Image")
    from polyalign_image.modality import ImageModality

    red = image.new("RGB", (4, 4), "red")
    media = MemoryMedia()
    data = ImageModality().encode(image.new("RGB", (2, 2), "blue"), "image/png")
    message = Message(role="user", parts=(MediaPart(media=media.add(data, "image", "image/png")), TextPart(text="Paint it red")))
    endpoint = serve(lambda body, number: "Score: 10")
    reward = judge(endpoint)
    assert reward.score([Judged.of(Prompt.of((message,), media), red)]) == [1.0]
    urls = [part["image_url"]["url"] for part in endpoint.bodies[0]["messages"][1]["content"] if part["type"] == "image_url"]
    sent = [ImageModality().decode(base64.b64decode(url.removeprefix("data:image/png;base64,"))) for url in urls]
    assert [(picture.size, picture.getpixel((0, 0))) for picture in sent] == [((2, 2), (0, 0, 255)), ((4, 4), (255, 0, 0))]
    with pytest.raises(RewardError, match="does not say where its media lie"):
        reward.score([Judged((message,), red)])
    with pytest.raises(RewardError, match="text and pictures, but the response is a object"):
        reward.score([item(object())])


@pytest.mark.parametrize(
    ("value", "seconds"), [(None, 0), ("3", 3), ("-1", 0), ("soon", 0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0)]
)
def test_retry_after_is_a_number_or_a_date(value: str | None, seconds: float) -> None:
    assert _retry_after(value) == seconds


def test_a_server_that_sends_numbers_as_votes_is_never_asked_twice_for_one(serve: Serve) -> None:
    """Each vote of each order of each pair is a question of its own; asked again, all of them come from the cache."""
    endpoint = serve(prefers("good"))
    items = [item(text) for text in ("good", "bad", "so")]
    for _ in range(2):
        ranker(endpoint, votes=2, temperature=1).score(items)
    assert len(endpoint.bodies) == 3 * 2 * 2
    keys = [(shown(body), body.get("seed", 0)) for body in endpoint.bodies]
    assert all(one != other for one, other in itertools.combinations(keys, 2))
