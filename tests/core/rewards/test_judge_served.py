"""A judge served by transformers itself: the real protocol, with a model too small to judge well.

SmolLM2-135M answers questions and does not keep to a form, so what is asserted is the way there and back: what was
answered, counted, kept, and given up on.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from polyalign.records.schema import Message
from polyalign.rewards.base import Judged
from polyalign.rewards.judge.client import ChatClient, Question
from polyalign.rewards.judge.config import JudgeConfig
from polyalign.rewards.judge.rewards import Judge

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served(asset: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Yield the address and the model's name of a running ``transformers serve``."""
    if missing := [name for name in ("fastapi", "uvicorn", "openai") if importlib.util.find_spec(name) is None]:
        pytest.skip(f"transformers serve needs {', '.join(missing)}: pip install 'transformers[serving]'")
    model = str(asset("smollm2"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    command = [str(Path(sys.executable).with_name("transformers")), "serve", model, "--port", str(port), "--device", "cpu"]
    with log.open("w") as said:
        server = subprocess.Popen(command, stdout=said, stderr=said, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    try:
        end = time.monotonic() + 240
        while not _well(f"http://localhost:{port}/health"):
            if server.poll() is not None or time.monotonic() > end:
                pytest.fail(f"transformers serve did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.5)
        yield f"http://localhost:{port}/v1", model
    finally:
        server.terminate()
        server.wait(30)


def _well(url: str) -> bool:
    try:
        return httpx2.get(url).status_code == 200
    except httpx2.TransportError:
        return False


def test_a_served_model_answers_and_is_asked_once(served: tuple[str, str], tmp_path: Path) -> None:
    url, model = served
    config = JudgeConfig(base_url=url, model=model, max_reply_tokens=24, concurrency=1, cache_folder=tmp_path)
    question = Question(({"role": "user", "content": "What is the capital of France?"},))
    client = ChatClient(config)
    assert "Paris" in client.ask([question])[0]
    assert client.usage.requests == 1 and client.usage.prompt_tokens > 5 and 0 < client.usage.reply_tokens <= 24
    again = ChatClient(config)
    assert "Paris" in again.ask([question])[0] and (again.usage.requests, again.usage.cached) == (0, 1)


def test_a_judge_too_small_for_the_form_gets_the_value_for_unreadable_replies_or_a_score(
    served: tuple[str, str], tmp_path: Path
) -> None:
    url, model = served
    config = JudgeConfig(
        base_url=url, model=model, max_reply_tokens=24, attempts=2, unreadable=0.5, concurrency=1, cache_folder=tmp_path
    )
    judge = Judge(config)
    prompt = (Message(role="user", parts="How do owls hunt?"),)  # type: ignore[arg-type]
    values = judge.score([Judged(prompt, "Owls hunt small animals at night."), Judged(prompt, "banana banana")])
    assert all(0 <= value <= 1 for value in values)
    assert 2 <= judge.client.usage.requests <= 4
    assert Judge(config).score([Judged(prompt, "banana banana")]) == values[1:]
