"""A small classifier of spoken words, trained on real clips: it hears whether generated speech says the right word."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from polyalign_any_to_any.media.speech import BINS, log_spectra

CONFIG, WEIGHTS = "speech_judge.json", "speech_judge.safetensors"
FRAMES = 80  # 1.28 s
WIDTH = 96


class SpeechJudge:
    """Names which of ``words`` a clip says. It reads spectra without phase, so waveforms from Griffin-Lim do not confuse it."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self.network = nn.Sequential(
            nn.Conv1d(BINS, WIDTH, 3, padding=1), nn.BatchNorm1d(WIDTH), nn.SiLU(),
            nn.Conv1d(WIDTH, WIDTH, 4, 2, 1), nn.BatchNorm1d(WIDTH), nn.SiLU(),
            nn.Conv1d(WIDTH, WIDTH, 4, 2, 1), nn.BatchNorm1d(WIDTH), nn.SiLU(),
            nn.Conv1d(WIDTH, WIDTH, 4, 2, 1), nn.BatchNorm1d(WIDTH), nn.SiLU(),
            nn.Flatten(), nn.Dropout(0.3), nn.Linear(WIDTH * FRAMES // 8, len(self.words)),
        ).eval()  # fmt: skip

    def padded(self, spectra: Sequence[Tensor]) -> Tensor:
        """Return log spectra ``[N, BINS, FRAMES]``: cut, or followed by each clip's own silence."""
        rows = []
        for one in spectra:
            kept = one[:, :FRAMES]
            rows.append(torch.cat([kept, torch.full((BINS, FRAMES - kept.shape[1]), float(kept.min()))], 1))
        return torch.stack(rows)

    @torch.no_grad()
    def names_of(self, clips: Sequence[Any]) -> list[str]:
        scores = self.network(self.padded([log_spectra(clip) for clip in clips]))
        return [self.words[number] for number in scores.argmax(1).tolist()]

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        weights = self.network.state_dict().items()
        halved = {name: (value.half() if value.is_floating_point() else value).contiguous() for name, value in weights}
        save_file(halved, folder / WEIGHTS)
        (folder / CONFIG).write_text(json.dumps({"words": self.words}) + "\n")

    @classmethod
    def load(cls, folder: Path) -> SpeechJudge:
        judge = cls(json.loads((folder / CONFIG).read_text())["words"])
        weights = load_file(folder / WEIGHTS)
        judge.network.load_state_dict(
            {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
        )
        judge.network.requires_grad_(False)
        return judge
