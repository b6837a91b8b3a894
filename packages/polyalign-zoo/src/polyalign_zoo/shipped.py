"""The folders behind ``zoo:NAME`` and ``dataset:NAME``. Nothing is opened here."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve().parent


def tiny_any() -> Path:
    return _HERE / "models" / "tiny-any"


def tiny_clip() -> Path:
    return _HERE / "models" / "tiny-clip"


def tiny_listener() -> Path:
    return _HERE / "models" / "tiny-listener"


def tiny_musicgen() -> Path:
    return _HERE / "models" / "tiny-musicgen"


def tiny_sd() -> Path:
    return _HERE / "models" / "tiny-sd"


def tiny_t2v() -> Path:
    return _HERE / "models" / "tiny-t2v"


def tiny_vlm() -> Path:
    return _HERE / "models" / "tiny-vlm"


def emoji_styles() -> Path:
    """Return the checkout's ``datasets/emoji-styles`` in an editable install, else the copy inside the wheel."""
    if _HERE.parent.name == "src":
        return _HERE.parents[3] / "datasets" / "emoji-styles"
    return _HERE / "data" / "emoji-styles"
