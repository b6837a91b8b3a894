"""A chat endpoint on this machine that answers as a test tells it to, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = str | tuple[int, str] | tuple[int, str, dict[str, str]]


@dataclass
class Endpoint:
    """``answer(body, number)``: the reply's text, or a status with a raw body (and headers); number counts from 0."""

    answer: Callable[[dict[str, Any], int], Answer]
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    usage: tuple[int, int] = (100, 10)
    most_at_once: int = 0

    def __post_init__(self) -> None:
        endpoint, lock, here = self, threading.Lock(), 0

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                nonlocal here
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(endpoint.bodies)
                    endpoint.bodies.append(body)
                    endpoint.headers.append({name.lower(): value for name, value in self.headers.items()})
                    endpoint.paths.append(self.path)
                    here += 1
                    endpoint.most_at_once = max(endpoint.most_at_once, here)
                status, data, headers = self._of(endpoint.answer(body, number))
                with lock:
                    here -= 1
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def _of(self, answer: Answer) -> tuple[int, bytes, dict[str, str]]:
                if isinstance(answer, tuple):
                    return answer[0], answer[1].encode(), answer[2] if len(answer) == 3 else {}
                usage = dict(zip(("prompt_tokens", "completion_tokens"), endpoint.usage, strict=True))
                reply = {"choices": [{"message": {"role": "assistant", "content": answer}}], "usage": usage}
                return 200, json.dumps(reply).encode(), {"Content-Type": "application/json"}

            def log_message(self, *parts: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def shown(body: dict[str, Any]) -> str:
    """Return the text that the judge was shown."""
    content = body["messages"][1]["content"]
    return content if isinstance(content, str) else "\n".join(part.get("text", "") for part in content)


def wait_until(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Return whether the condition came true in time."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.002)
    return condition()
