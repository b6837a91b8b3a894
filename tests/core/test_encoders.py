"""Cached embeddings, and encoders built from a recipe's slot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import Field

from polyalign import encoders
from polyalign.encoders import CachedEncoder, Encoder, build_encoder
from polyalign.errors import ConfigError, PolyalignError
from polyalign.plugins.specs import EncoderSpec
from polyalign.training.config import Config, Slot


class ToyConfig(Config):
    scale: float = Field(1.0, gt=0)


class Toy(Encoder):
    """A word's embedding: its length and its vowels, scaled. Remembers what it was asked."""

    name = "toy"

    def __init__(self, config: ToyConfig | None = None) -> None:
        self.scale = (config or ToyConfig()).scale
        self.media: list[str] = []
        self.texts: list[str] = []

    def encode_media(self, media: Sequence[Any]) -> torch.Tensor:
        self.media += media
        return self._embed(media)

    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        self.texts += texts
        return -self._embed(texts)

    def fingerprint(self) -> str:
        return f"toy-{self.scale}"

    def content_key(self, medium: Any) -> str:
        return str(medium)

    def _embed(self, words: Sequence[str]) -> torch.Tensor:
        rows = [[len(word), sum(letter in "aeiou" for letter in word)] for word in words]
        return self.scale * torch.tensor(rows, dtype=torch.float32).reshape(-1, 2)


class Plain(Encoder):
    def fingerprint(self) -> str:
        return "plain"


WORDS = ["crab", "owl", "crab", "bee"]


def test_cached_rows_are_the_encoders_own_and_each_content_is_embedded_once() -> None:
    inner = Toy()
    cached = CachedEncoder(inner)
    for _ in range(2):
        torch.testing.assert_close(cached.encode_media(WORDS), Toy().encode_media(WORDS), rtol=0, atol=0)
        torch.testing.assert_close(cached.encode_text(WORDS), Toy().encode_text(WORDS), rtol=0, atol=0)
    assert inner.media == inner.texts == ["crab", "owl", "bee"]
    assert cached.encode_media([]).shape == (0, 2)


def test_a_folder_keeps_rows_for_the_next_run(tmp_path: Path) -> None:
    CachedEncoder(Toy(), tmp_path).encode_media(WORDS)
    inner = Toy()
    again = CachedEncoder(inner, tmp_path)
    torch.testing.assert_close(again.encode_media([*WORDS, "ant"]), Toy().encode_media([*WORDS, "ant"]), rtol=0, atol=0)
    assert inner.media == ["ant"]


def test_a_killed_run_goes_on_where_the_last_chunk_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "CHUNK", 2)

    class Killed(Toy):
        def encode_media(self, media: Sequence[Any]) -> torch.Tensor:
            if self.media:
                raise KeyboardInterrupt
            return super().encode_media(media)

    with pytest.raises(KeyboardInterrupt):
        CachedEncoder(Killed(), tmp_path).encode_media(["a", "b", "c"])
    inner = Toy()
    CachedEncoder(inner, tmp_path).encode_media(["a", "b", "c"])
    assert inner.media == ["c"]


def test_rows_of_another_encoder_are_never_read(tmp_path: Path) -> None:
    CachedEncoder(Toy(), tmp_path).encode_media(WORDS)
    other = CachedEncoder(Toy(ToyConfig(scale=2)), tmp_path)
    torch.testing.assert_close(other.encode_media(["crab"]), torch.tensor([[8.0, 2.0]]))


def test_text_and_media_of_one_content_are_kept_apart() -> None:
    cached = CachedEncoder(Toy())
    assert cached.encode_media(["crab"]).tolist() == (-cached.encode_text(["crab"])).tolist()


def test_an_encoder_says_what_it_cannot_embed() -> None:
    with pytest.raises(PolyalignError, match="embeds no media"):
        Plain().encode_media([1])
    with pytest.raises(PolyalignError, match="embeds no text"):
        Plain().encode_text(["a"])
    with pytest.raises(PolyalignError, match="gives no content key"):
        CachedEncoder(Plain()).encode_media([1])


class OneEncoder:
    """A registry that knows one encoder."""

    def get(self, kind: str, name: str) -> EncoderSpec:
        assert (kind, name) == ("encoders", "toy")
        return ToySpec(name="toy", summary="", target="unused:Toy")


class ToySpec(EncoderSpec):
    def load(self) -> Any:
        return Toy

    def load_config(self) -> Any:
        return ToyConfig


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "registry", OneEncoder)


def slot(**options: Any) -> Slot:
    return Slot.model_validate({"name": "toy", **options})


@pytest.mark.usefixtures("known")
def test_equal_slots_share_one_encoder_while_somebody_holds_it() -> None:
    one, same, other = build_encoder(slot(scale=2)), build_encoder(slot(scale=2.0)), build_encoder(slot(scale=3))
    assert one is same
    assert one is not other
    assert isinstance(one, Toy) and one.scale == 2
    del one, same
    assert not any("2.0" in key for key in encoders._alive)


@pytest.mark.usefixtures("known")
def test_a_bad_option_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"encoder 'toy': size: Extra inputs are not permitted. Its options: scale"):
        build_encoder(slot(size=3))
    with pytest.raises(ConfigError, match=r"encoder 'toy': scale: Input should be greater than 0"):
        build_encoder(slot(scale=0))
