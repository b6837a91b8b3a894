"""The `dnsmos` reward: how people would rate speech, by the network of the DNS challenge, whose weights `speechmos` ships.

Source: Reddy et al. 2022, DNSMOS P.835, arXiv 2110.01763; polynomials and windows as in its published code.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from polyalign.errors import RewardError
from polyalign.rewards.base import Judged, Reward, Scored
from polyalign_audio.generation_config import DnsMosConfig
from polyalign_audio.judged_clips import clip_of, content_key
from polyalign_audio.modality import Clip

RATE, WINDOW = 16000, 144160  # Hz; samples the network reads, 9.01 s
ASPECTS = ("signal", "background", "overall")  # in the order of the network's outputs
POLYNOMIALS = np.array(
    [[-0.08397278, 1.22083953, 0.0052439], [-0.13166888, 1.60915514, -0.39604546], [-0.06766283, 1.11546468, 0.04602535]]
)


class DnsMos(Reward):
    """The mean opinion score of a clip, from 1 (bad) to 5, of the configured aspect; all three are reported.

    A clip shorter than 9.01 s is repeated until it is long enough, a longer one judged in windows a second apart and
    averaged. Equal clips are judged once.
    """

    name = "dnsmos"

    def __init__(self, config: DnsMosConfig | None = None) -> None:
        self.config = config or DnsMosConfig()
        self.known: dict[str, tuple[float, ...]] = {}
        self._network: Any = None  # loaded at the first clip

    def score(self, items: Sequence[Judged]) -> list[float]:
        return self.evaluate(items).values

    def evaluate(self, items: Sequence[Judged]) -> Scored:
        """Return the scores. Raises `RewardError` for a response that is no clip, and where `speechmos` is not installed."""
        clips = [clip_of(item, self.name) for item in items]
        keys = [content_key(clip) for clip in clips]
        for key, clip in zip(keys, clips):
            if key not in self.known:
                self.known[key] = self._judged(clip)
        aspects = {name: [self.known[key][place] for key in keys] for place, name in enumerate(ASPECTS)}
        return Scored(aspects[self.config.aspect], aspects)

    def _judged(self, clip: Clip) -> tuple[float, ...]:
        samples = np.clip(clip.at(RATE).samples, -1.0, 1.0)
        if not len(samples):
            raise RewardError("reward 'dnsmos' was given a clip without samples")
        whole = np.tile(samples, -(-WINDOW // len(samples))) if len(samples) < WINDOW else samples
        windows = np.stack(
            [whole[start : start + WINDOW] for start in range(0, len(whole) - WINDOW + 1, RATE)][: self.config.windows]
        )
        raw = np.concatenate(
            [self.network.run(None, {"input_1": window[None]})[0] for window in windows.astype(np.float32)]
        )  # [W, 3]
        powers = np.stack([raw**2, raw, np.ones_like(raw)], -1)
        return tuple((powers * POLYNOMIALS).sum(-1).mean(0).tolist())

    @property
    def network(self) -> Any:
        if self._network is None:
            found = find_spec("speechmos")  # not imported: it would import librosa, which nothing here needs
            if found is None or found.origin is None or find_spec("onnxruntime") is None:
                raise RewardError("reward 'dnsmos' needs the weights in speechmos: pip install 'polyalign-audio[quality]'")
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            weights = Path(found.origin).parent / "dnsmos_models" / "sig_bak_ovr.onnx"
            self._network = onnxruntime.InferenceSession(str(weights), options)
        return self._network
