"""What the cells test trains heads on encoder features with."""

from __future__ import annotations

from polyalign.policies.encoder_features import build
from polyalign.policies.encoder_features_config import EncoderFeaturesConfig
from polyalign.policies.fixture import PolicyFixture
from polyalign.records.schema import Candidate, Comparison, Record

PAIRS = (
    ("Name a red fruit.", "Cherry, a sweet one.", "Lime."),
    ("Say hello.", "Hello there!", "No."),
    ("Two plus three?", "Five, since three and two are five.", "Nine."),
    ("Name a sea animal.", "Octopus, with eight arms.", "Goat."),
)


def fixture() -> PolicyFixture:
    """Return hashed words with four comparisons. There is nothing to align here, so no grids either."""
    records = [
        Record(
            id=f"pair-{number}",
            prompt=prompt,
            candidates=(Candidate(parts=better), Candidate(parts=worse)),
            feedback=(Comparison(ranking=((0,), (1,))),),
        )
        for number, (prompt, better, worse) in enumerate(PAIRS)
    ]
    return PolicyFixture(build=lambda: build(EncoderFeaturesConfig()), records=records, learning_rate=1e-2)
