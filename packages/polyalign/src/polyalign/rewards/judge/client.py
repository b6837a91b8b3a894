"""Asks a chat endpoint many things at once: cached, retried, paced and within a budget. The key is in no file and no message."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from polyalign.cache import cache_folder
from polyalign.errors import RewardError
from polyalign.randomness import keyed_seed
from polyalign.records.atomic import write_text
from polyalign.rewards.judge.config import EndpointConfig

log = logging.getLogger(__name__)

LONGEST_WAIT = 60.0  # seconds between two tries
RETRIED = (408, 409, 429)  # and everything from 500


@dataclass(frozen=True)
class Question:
    """Messages as the endpoint takes them. ``number`` tells repeated questions apart: each gets an answer of its own."""

    messages: tuple[Mapping[str, Any], ...]
    number: int = 0


@dataclass
class Usage:
    """What has been spent so far; ``cached`` answers cost nothing."""

    requests: int = 0
    cached: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    reply_tokens: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)


class ChatClient:
    """``clock`` and ``sleep`` are for tests."""

    def __init__(
        self,
        config: EndpointConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        try:
            import httpx2
        except ImportError as error:
            raise RewardError("a judge needs httpx2, which is not installed: pip install 'polyalign[judge]'") from error
        self.http, self.config, self.usage = httpx2, config, Usage()
        self._clock, self._sleep, self._next = clock, sleep, 0.0
        self._folder = (config.cache_folder or cache_folder() / "judge") if config.cache else None
        self._pace = threading.Lock()

    def ask(self, questions: Sequence[Question]) -> list[str]:
        """Return one reply per question, in order; equal questions are asked once.

        Raises `RewardError` when the endpoint refuses, stays unreachable, or the budget is spent. What was answered until
        then is in the cache.
        """
        bodies = {self._key(question): self._body(question) for question in questions}
        replies = {key: reply for key in bodies if (reply := self._cached(key)) is not None}
        self.usage.cached += len(replies)
        missing = [key for key in bodies if key not in replies]
        if missing:
            timeout = self.http.Timeout(self.config.timeout)
            with self.http.Client(timeout=timeout) as client, ThreadPoolExecutor(self.config.concurrency) as pool:
                failures: list[Exception] = []
                asked = {key: pool.submit(self._answer, client, key, bodies[key], failures) for key in missing}
                wait(asked.values())
            if failures:
                raise failures[0]
            replies |= {key: future.result() for key, future in asked.items()}
        return [replies[self._key(question)] for question in questions]

    def _body(self, question: Question) -> dict[str, Any]:
        config = self.config
        body = {"model": config.model, "messages": list(question.messages), "temperature": config.temperature}
        body |= {"max_tokens": config.max_reply_tokens, "stream": False}
        if question.number:
            body["seed"] = question.number
        return body | config.extra

    def _key(self, question: Question) -> str:
        content = [self.config.base_url, self._body(question), question.number]
        return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=20).hexdigest()

    def _cached(self, key: str) -> str | None:
        if self._folder is None or not (path := self._file(key)).is_file():
            return None
        try:
            return str(json.loads(path.read_text(encoding="utf-8"))["reply"])
        except (ValueError, KeyError, TypeError):  # not ours, or cut short: ask again
            return None

    def _file(self, key: str) -> Path:
        assert self._folder is not None
        return self._folder / key[:2] / f"{key}.json"

    def _answer(self, client: Any, key: str, body: dict[str, Any], failures: list[Exception]) -> str:
        """Return the reply, kept in the cache; nothing once another question has failed for good."""
        if failures:
            return ""
        try:
            reply, usage = self._request(client, key, body)
        except Exception as error:
            failures.append(error)
            return ""
        with self.usage.lock:
            self.usage.prompt_tokens += usage[0]
            self.usage.reply_tokens += usage[1]
        if self._folder is not None:
            write_text(self._file(key), json.dumps({"reply": reply, "prompt_tokens": usage[0], "reply_tokens": usage[1]}))
        return reply

    def _request(self, client: Any, key: str, body: dict[str, Any]) -> tuple[str, tuple[int, int]]:
        for attempt in range(self.config.retries + 1):
            self._spend()
            self._wait_for_turn()
            told = 0.0
            try:
                response = client.post(f"{self.config.base_url}/chat/completions", json=body, headers=self._headers())
                if response.status_code == 200:
                    return self._read(response)
                problem = f"status {response.status_code}: {self._clean(response.text)[:300]}"
                if response.status_code not in RETRIED and response.status_code < 500:
                    raise RewardError(f"{self.config.base_url} refuses the judge's question with {problem}")
                told = _retry_after(response.headers.get("retry-after"))
            except self.http.TransportError as error:
                problem = f"{type(error).__name__}: {self._clean(str(error))}"
            if attempt < self.config.retries:
                pause = min(LONGEST_WAIT, self.config.backoff * 2**attempt)
                pause *= 0.75 + 0.5 * (keyed_seed(key, attempt) % 1000) / 1000  # apart, or all come back at once
                log.info("judge: %s; trying again", problem)
                self.usage.retries += 1
                self._sleep(min(LONGEST_WAIT, max(pause, told)))
        raise RewardError(
            f"{self.config.base_url} gave no answer in {self.config.retries + 1} tries, at last {problem}; is it running, and is "
            "the address right? Answers so far are cached: running this again goes on from here"
        )

    def _read(self, response: Any) -> tuple[str, tuple[int, int]]:
        try:
            answer = response.json()
            content = answer["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            text = self._clean(response.text)[:300]
            raise RewardError(
                f"{self.config.base_url} does not answer as a chat endpoint: expected choices[0].message.content, found {text!r}"
            ) from error
        counts = answer.get("usage") or {}
        used = [counts.get(name) for name in ("prompt_tokens", "completion_tokens")]
        prompt, reply = (count if isinstance(count, int) else 0 for count in used)
        return self._clean(content or ""), (prompt, reply)

    def _spend(self) -> None:
        """Count one request, or raise `RewardError` where a limit is reached. Requests under way may still pass the others."""
        config, spent = self.config, self.usage
        with spent.lock:
            cost = (spent.prompt_tokens * config.price_prompt + spent.reply_tokens * config.price_reply) / 1e6
            totals = {"max_requests": spent.requests, "max_tokens": spent.prompt_tokens + spent.reply_tokens, "max_cost": cost}
            for name, total in totals.items():
                limit = getattr(config, name)
                if limit is not None and total >= limit:
                    raise RewardError(
                        f"the judge's budget is spent: {name}={limit:g}, used {total:g}; raise it to go on (answers so far are "
                        "cached and cost nothing)"
                    )
            spent.requests += 1

    def _wait_for_turn(self) -> None:
        if self.config.requests_per_minute is None:
            return
        with self._pace:
            now = self._clock()
            pause = max(0.0, self._next - now)
            self._next = max(now, self._next) + 60 / self.config.requests_per_minute
        if pause:
            self._sleep(pause)

    def _secret(self) -> str | None:
        name = self.config.api_key_env
        if name is None:
            return None
        if not (key := os.environ.get(name, "").strip()):
            raise RewardError(f"the judge's key is not there: set the environment variable {name}")
        if not key.isascii() or not key.isprintable() or " " in key:
            raise RewardError(f"the environment variable {name} holds something that is no key: blanks or special characters")
        return key

    def _headers(self) -> dict[str, str]:
        key = self._secret()
        return {"Authorization": f"Bearer {key}"} if key else {}

    def _clean(self, text: str) -> str:
        """Return what an endpoint said without the key, which some repeat in their errors."""
        key = self._secret()
        return text.replace(key, "[key]") if key else text


def _retry_after(value: str | None) -> float:
    """Return the seconds that a ``Retry-After`` header asks for, given as a number or a date; 0 for none."""
    if value is None:
        return 0.0
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
