"""The judges on made-up data sets, where the right answer is known."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from polyalign.encoders import Encoder
from polyalign.errors import RecordError
from polyalign.records.schema import Candidate, Comparison, MediaPart, Message, Record
from polyalign.records.store import MediaStore
from polyalign.rewards.base import Judged
from polyalign_image.clip import picture_key
from polyalign_image.config import CaptionRetrievalConfig, StyleRateConfig
from polyalign_image.modality import ImageModality
from polyalign_image.retrieval import CaptionRetrieval
from polyalign_image.soften import soften
from polyalign_image.style import StyleRate

Pair = tuple[str, Image.Image, Image.Image]  # caption, better, worse


class Averages(Encoder):
    """Knows a picture by the mean and deviation of each colour channel."""

    name = "averages"

    def __init__(self) -> None:
        self.seen = 0

    def encode_media(self, media: Sequence[Image.Image]) -> torch.Tensor:
        self.seen += len(media)
        pixels = np.stack([np.asarray(picture, np.float32).reshape(-1, 3) for picture in media])
        return torch.from_numpy(np.concatenate([pixels.mean(1), pixels.std(1)], axis=1))

    def fingerprint(self) -> str:
        return "averages"

    def content_key(self, medium: Image.Image) -> str:
        return picture_key(medium)


class Compass(Encoder):
    """Caption "7" points at 7 degrees, a picture of colour (7, 2, 0) at 7 + 2.4 degrees: never halfway between captions."""

    name = "compass"

    def encode_media(self, media: Sequence[Image.Image]) -> torch.Tensor:
        return 3 * self._points([sum(picture.getpixel((0, 0))[:2]) + 0.4 for picture in media])

    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        return 5 * self._points([int(text) for text in texts])

    def fingerprint(self) -> str:
        return "compass"

    def content_key(self, medium: Image.Image) -> str:
        return picture_key(medium)

    def _points(self, degrees: Sequence[float]) -> torch.Tensor:
        angles = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
        return torch.stack([angles.cos(), angles.sin()], dim=1).reshape(-1, 2)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYALIGN_CACHE", str(tmp_path / "cache"))


def write(folder: Path, **splits: list[Pair]) -> str:
    """Write one JSONL file per split, with its media, and return the folder."""
    codec, store = ImageModality(), MediaStore(folder)
    for split, pairs in splits.items():
        lines = []
        for number, (caption, *pictures) in enumerate(pairs):
            refs = [store.add(codec.encode(picture, "image/png"), "image", "image/png") for picture in pictures]
            record = Record(
                id=f"{split}-{number}",
                prompt=caption,
                candidates=tuple(Candidate(parts=(MediaPart(media=ref),)) for ref in refs),
                feedback=(Comparison(ranking=((0,), (1,))),),
            )
            lines.append(record.model_dump_json())
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    return str(folder)


def noise(rng: np.random.Generator, tint: Sequence[float] = (1, 1, 1)) -> Image.Image:
    return Image.fromarray((rng.integers(0, 256, (12, 12, 3)) * np.array(tint)).astype(np.uint8))


def pairs_of(better: Callable[[], Image.Image], worse: Callable[[], Image.Image], count: int) -> list[Pair]:
    return [(str(number), better(), worse()) for number in range(count)]


def style_judge(data: str, encoder: Encoder, monkeypatch: pytest.MonkeyPatch, **options: object) -> StyleRate:
    monkeypatch.setattr("polyalign_image.style.build_encoder", lambda slot: encoder)
    return StyleRate(StyleRateConfig(data=data, **options))


def retrieval_judge(data: str, monkeypatch: pytest.MonkeyPatch, **options: object) -> CaptionRetrieval:
    monkeypatch.setattr("polyalign_image.retrieval.build_encoder", lambda slot: Compass())
    return CaptionRetrieval(CaptionRetrievalConfig(data=data, **options))


def items(pictures: Sequence[Image.Image], captions: Sequence[str] | None = None) -> list[Judged]:
    captions = captions or ["anything"] * len(pictures)
    return [Judged((Message(role="user", parts=caption),), picture) for caption, picture in zip(captions, pictures, strict=True)]


def number_in(notes: dict[str, str], pattern: str) -> float:
    (text,) = [text for key, text in notes.items() if re.fullmatch(pattern, key)]
    return float(text.split()[0].rstrip(","))


@pytest.fixture
def two_tints(tmp_path: Path) -> str:
    """Preferred: reddish noise; rejected: bluish noise."""
    rng = np.random.default_rng(0)
    red, blue = (lambda: noise(rng, (1, 0.7, 0.5))), (lambda: noise(rng, (0.5, 0.7, 1)))
    return write(tmp_path, train=pairs_of(red, blue, 30), test=pairs_of(red, blue, 20))


def test_style_that_can_be_told_apart_is_judged_without_error(two_tints: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    judge = style_judge(two_tints, Averages(), monkeypatch, c=1.0)
    new = [noise(rng, (1, 0.7, 0.5)), noise(rng, (0.5, 0.7, 1)), noise(rng, (1, 0.7, 0.5))]
    (verdict,) = judge.judge(items(new))
    assert (verdict.name, verdict.values) == ("style_rate", (1.0, 0.0, 1.0))
    assert verdict.notes["accuracy on 20 held-out pairs"] == "1.000 [1.000, 1.000]"
    assert verdict.notes["rate on held-out preferred, rejected"] == "1.000, 0.000"
    assert 0.6 < float(verdict.notes["mean probability"]) < 0.7
    (softened,) = judge.judge(items([soften(picture, "new", index) for index, picture in enumerate(new)]))
    assert softened.values == (1.0, 0.0, 1.0)


def test_style_that_cannot_be_told_apart_is_admitted_in_the_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides are the same noise: accuracy on 200 pictures is 0.5 within three standard errors, 0.106."""
    rng = np.random.default_rng(0)
    data = write(
        tmp_path,
        train=pairs_of(lambda: noise(rng), lambda: noise(rng), 60),
        test=pairs_of(lambda: noise(rng), lambda: noise(rng), 100),
    )
    (verdict,) = style_judge(data, Averages(), monkeypatch).judge(items([noise(rng)]))
    assert number_in(verdict.notes, "accuracy on 100 held-out pairs") == pytest.approx(0.5, abs=0.106)
    assert number_in(verdict.notes, "accuracy on 100 held-out softened pairs") == pytest.approx(0.5, abs=0.106)


def test_fitting_on_softened_copies_keeps_softness_from_passing_for_style(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Preferred is a little less grainy. Softening takes grain away, so a judge of sharp pictures alone calls all soft ones
    preferred; one that also saw softened copies goes by the tint, which softening leaves alone."""
    rng = np.random.default_rng(0)

    def grain(spread: float, tint: float) -> Image.Image:
        grey = np.full((12, 12, 3), 128.0) + rng.normal(0, spread, (12, 12, 3)) + np.array([tint, 0, -tint])
        return Image.fromarray(grey.clip(0, 255).astype(np.uint8))

    better, worse = (lambda: grain(30, 12)), (lambda: grain(40, -12))
    data = write(tmp_path, train=pairs_of(better, worse, 60), test=pairs_of(better, worse, 40))
    rates = {copies: style_judge(data, Averages(), monkeypatch, softened=copies, c=1.0).fitted.notes for copies in (0, 1)}
    key = "accuracy on 40 held-out softened pairs"
    assert number_in(rates[0], key) < 0.8
    assert number_in(rates[1], key) > 0.95


def test_a_judge_that_knows_the_decoder_is_not_misled_by_it(two_tints: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The made-up decoder turns colours half round, so red pictures come back bluer than blue ones are. A judge of plain
    pictures is wrong on all of them, one that was shown redrawn pictures can tell them by their other features."""

    class Swapping(Averages):
        name = "swapping"

        def __init__(self, inner: Encoder, model: str) -> None:
            super().__init__()

        def encode_media(self, media: Sequence[Image.Image]) -> torch.Tensor:
            rows = super().encode_media(media)
            return torch.cat([rows[:, [2, 1, 0]], rows[:, 3:]], dim=1)

        def fingerprint(self) -> str:
            return "swapping"

    monkeypatch.setattr("polyalign_image.style.ThroughAutoencoder", Swapping)
    judge = style_judge(two_tints, Averages(), monkeypatch, c=1.0, autoencoder="any")
    notes = judge.fitted.notes
    assert number_in(notes, "accuracy on 20 held-out redrawn pairs") > 0.9
    plain = style_judge(two_tints, Averages(), monkeypatch, c=1.0)
    redrawn = Swapping(Averages(), "").encode_media([noise(np.random.default_rng(3), (1, 0.7, 0.5)) for _ in range(5)])
    assert plain.fitted.classifier.predict(redrawn.numpy()).tolist() == [0] * 5
    assert judge.fitted.classifier.predict(redrawn.numpy()).tolist() == [1] * 5


def test_the_data_set_is_embedded_once_for_all_runs(two_tints: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """60 fitted and 40 held-out pictures, each sharp and softened; later only what is judged."""
    first, second = Averages(), Averages()
    pictures = [noise(np.random.default_rng(5))]
    judge = style_judge(two_tints, first, monkeypatch)
    verdicts = [judge.judge(items(pictures)) for _ in range(2)]
    assert first.seen == 2 * (60 + 40) + 2
    assert style_judge(two_tints, second, monkeypatch).judge(items(pictures)) == verdicts[0] == verdicts[1]
    assert second.seen == 1


def test_a_limit_draws_pairs_from_all_over_the_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first half of the file is preferred for being red, the second for being green: 20 of 60 pairs still tell both."""
    rng = np.random.default_rng(0)
    red, green, blue = ((lambda tint=tint: noise(rng, tint)) for tint in ((1, 0.5, 0.5), (0.5, 1, 0.5), (0.5, 0.5, 1)))
    train = [*pairs_of(red, blue, 30), *pairs_of(green, blue, 30)]
    data = write(tmp_path, train=train, test=[*pairs_of(red, blue, 10), *pairs_of(green, blue, 10)])
    notes = style_judge(data, Averages(), monkeypatch, limit=20, c=1.0).fitted.notes
    assert "fitted on 20 pairs" in notes["judge"]
    assert number_in(notes, "accuracy on 20 held-out pairs") > 0.95


def test_pictures_both_preferred_and_rejected_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    a, b, c, d = (noise(rng) for _ in range(4))
    data = write(tmp_path, train=[("1", a, b), ("2", b, c), ("3", a, d)], test=[("1", a, b), ("2", b, a)])
    judge = style_judge(data, Averages(), monkeypatch, test="train")
    assert "fitted on 1 pairs" in judge.fitted.notes["judge"]
    with pytest.raises(RecordError, match=r"split 'test'.*2 are preferred here and rejected there"):
        style_judge(data, Averages(), monkeypatch).judge(items([a]))


def test_softening_is_keyed_and_keeps_the_size() -> None:
    picture = noise(np.random.default_rng(0)).resize((30, 20))
    assert soften(picture, 1).tobytes() == soften(picture, 1).tobytes() != soften(picture, 2).tobytes()
    assert soften(picture, 1).size == (30, 20)
    assert np.asarray(soften(picture, 1), float).mean() == pytest.approx(np.asarray(picture, float).mean(), abs=2)


def turned(caption: int, degrees: int) -> Image.Image:
    """A picture that `Compass` sees so many degrees past its caption."""
    return Image.new("RGB", (2, 2), (caption, degrees, 0))


@pytest.fixture
def forty_captions(tmp_path: Path) -> str:
    """One caption per degree; preferred pictures point at their caption, rejected ones 3 degrees past it."""
    return write(tmp_path, test=[(str(caption), turned(caption, 0), turned(caption, 3)) for caption in range(40)])


@pytest.mark.parametrize(("degrees", "rank"), [(0, 1), (1, 3), (2, 5), (3, 7)])
def test_the_own_caption_is_found_exactly_from_its_rank_on(
    degrees: int, rank: int, forty_captions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """s + 0.4 degrees past caption c, the captions c+1 to c+2s are closer: rank 2s + 1."""
    for k in (rank - 1, rank):
        if k > 0:
            judge = retrieval_judge(forty_captions, monkeypatch, k=k, pool=40)
            (verdict,) = judge.judge(items([turned(10, degrees)], ["10"]))
            assert verdict.values == (float(k >= rank),)


def test_retrieval_reports_itself_on_the_real_pictures(forty_captions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All 40 preferred pictures are found. Of the rejected, those with at most 4 captions above them: 35 to 39. 45 of 80."""
    (verdict,) = retrieval_judge(forty_captions, monkeypatch, k=5, pool=40).judge(items([turned(3, 0), turned(3, 3)], ["3", "3"]))
    assert verdict.values == (1.0, 0.0)
    assert verdict.notes["by chance"] == "0.125"
    assert number_in(verdict.notes, "on 80 real pictures") == pytest.approx(45 / 80, abs=1e-3)


def test_a_tie_counts_against_the_picture(forty_captions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = retrieval_judge(forty_captions, monkeypatch, k=39, pool=40)
    monkeypatch.setattr(Compass, "_points", lambda self, degrees: torch.ones(len(degrees), 2))
    assert judge.judge(items([turned(3, 0)], ["3"]))[0].values == (0.0,)


def test_the_pool_is_fixed_per_caption_and_never_holds_it_twice(forty_captions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (retrieval_judge(forty_captions, monkeypatch, k=5, pool=20) for _ in range(2))
    pools = {caption: first.pool_of(caption) for caption in first.captions}
    assert all(len(set(pool)) == 19 and caption not in pool for caption, pool in pools.items())
    assert pools == {caption: second.pool_of(caption) for caption in reversed(second.captions)}
    assert len({tuple(sorted(pool)) for pool in pools.values()}) == 40


def test_a_caption_from_outside_the_data_set_can_be_judged(forty_captions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (verdict,) = retrieval_judge(forty_captions, monkeypatch, k=1, pool=40).judge(items([turned(90, 0)], ["90"]))
    assert verdict.values == (1.0,)


def test_retrieval_refuses_what_cannot_be_judged(forty_captions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecordError, match=r"has 40 distinct captions, fewer than the pool of 100; set pool to 40"):
        retrieval_judge(forty_captions, monkeypatch).judge(items([turned(1, 0)], ["1"]))
    with pytest.raises(ValidationError, match="k=5 of pool=5 is always found"):
        CaptionRetrievalConfig(data="anywhere", k=5, pool=5)


def test_nothing_to_judge_gives_no_values(two_tints: str, forty_captions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert style_judge(two_tints, Averages(), monkeypatch).judge([])[0].values == ()
    assert retrieval_judge(forty_captions, monkeypatch, pool=40).judge([])[0].values == ()
