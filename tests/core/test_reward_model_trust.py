"""The report of a reward model against planted numbers and scikit-learn's own arithmetic."""

from __future__ import annotations

import numpy as np
import pytest

from polyalign.evaluation.reward_models import Preference, calibration_error, trust


def planted(count: int = 3000, slope: float = 0.1) -> list[Preference]:
    """Margins are a Bradley-Terry log-odds that labels follow, plus a slope on a length that no label follows."""
    draw = np.random.default_rng(0)
    z, longer = draw.normal(0, 2, count), draw.integers(-9, 10, count)
    right = draw.random(count) < 1 / (1 + np.exp(-z))
    margin, longer = np.where(right, z, -z) + slope * np.where(right, longer, -longer), np.where(right, longer, -longer)
    probability = 1 / (1 + np.exp(-margin))
    return [
        Preference(f"r{n}", "ab"[n % 2], "overall", m, p, float(d))
        for n, (m, p, d) in enumerate(zip(margin, probability, longer, strict=True))
    ]


def test_calibrated_models_have_little_error_and_overconfident_ones_much():
    honest = planted(slope=0.0)
    assert trust(honest).calibration_error.mean < 0.03
    bold = [Preference(p.record, p.annotator, p.aspect, p.margin, 1 / (1 + np.exp(-5 * p.margin)), p.longer) for p in honest]
    assert trust(bold).calibration_error.mean > 0.1


def test_calibration_error_by_hand():
    """Confidences .95, .95 (one right), .55 (right): |.95 - .5| * 2/3 + |.55 - 1| / 3."""
    assert calibration_error(np.array([0.95, 0.05, 0.55])) == pytest.approx(0.45 * 2 / 3 + 0.45 / 3)


def test_the_slope_on_length_is_the_planted_one_and_within_its_interval():
    found = trust(planted(slope=0.1))
    assert found.length_slope.low < 0.1 < found.length_slope.high
    none = trust(planted(slope=0.0)).length_slope
    assert none.low < 0 < none.high
    assert set(found.annotators) == {"a", "b"} and not found.aspects


def test_nothing_to_judge_by_is_said():
    with pytest.raises(ValueError, match="no comparisons"):
        trust([])
