"""A progress bar with the time left; plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

SHOWN = ("loss", "accuracy", "margin")
SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """Use as a context manager; call `advance` once per step."""

    def __init__(self, name: str, start: int, total: int, enabled: bool) -> None:
        self.name, self.start, self.total, self.enabled = name, start, total, enabled
        self.done = start
        self.began = self.last_line = time.monotonic()
        self.bar: Any = None

    def __enter__(self) -> Progress:
        if self.enabled and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = [
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("eta"),
            ]
            self.bar = Bar(*columns, TimeRemainingColumn(), TextColumn("{task.fields[values]}"), console=Console(stderr=True))
            self.bar.start()
            self.task = self.bar.add_task(self.name, total=self.total, completed=self.start, values="")
        return self

    def advance(self, values: dict[str, float]) -> None:
        self.done += 1
        if not self.enabled:
            return
        shown = "  ".join(f"{name} {values[name]:.4g}" for name in SHOWN if name in values)
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done, values=shown)
            return
        now = time.monotonic()
        if self.done == self.total or now - self.last_line > SECONDS_BETWEEN_LINES:
            self.last_line = now
            left = (now - self.began) / max(1, self.done - self.start) * (self.total - self.done)
            sys.stderr.write(f"{self.name}: step {self.done}/{self.total}  {shown}  {left:.0f} s left\n")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.stop()
