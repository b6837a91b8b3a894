"""Sound as the codes of a neural codec of transformers, EnCodec or Mimi: the first K codebooks, frame by frame.

A frame is K codes, one of each codebook in the order in which they refine each other; code c of codebook k is number
k x (codes per codebook) + c. So it is known which codes may stand at a place, and a clip ends between frames only.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from polyalign.errors import ConfigError, MediaError
from polyalign_any_to_any.media.base import MediaTokenizer
from polyalign_any_to_any.media.speech import clip_of


class CodecTokenizer(MediaTokenizer):
    """Clips of up to ``seconds``, by the first ``codebooks`` codebooks of a codec with this transformers ``config``."""

    modality = "audio"
    length = None

    def __init__(self, config: Mapping[str, Any], codebooks: int = 4, seconds: float = 4.0) -> None:
        self._take(self.made(config), codebooks, seconds)

    @classmethod
    def of(cls, model: Any, codebooks: int = 4, seconds: float = 4.0) -> CodecTokenizer:
        """Return the tokenizer around a loaded codec: its weights are taken over, and never train."""
        found = cls.__new__(cls)
        found._take(model, codebooks, seconds)
        return found

    def _take(self, model: Any, codebooks: int, seconds: float) -> None:
        config = model.config
        if config.audio_channels != 1:
            raise ConfigError(f"the codec writes {config.audio_channels} channels; take one for a single channel")
        if not 1 <= codebooks <= config.num_quantizers:
            raise ConfigError(f"codebooks={codebooks}: the codec has {config.num_quantizers}")
        self.model = model.eval().requires_grad_(False)
        self.rate, self.unit, self.seconds = int(config.sampling_rate), codebooks, seconds
        self.per_book = int(config.codebook_size)
        self.codes = codebooks * self.per_book
        self.longest = codebooks * max(1, math.ceil(seconds * self.rate / self.samples_per_frame))

    @property
    def settings(self) -> dict[str, Any]:
        return {"config": self.model.config.to_diff_dict(), "codebooks": self.unit, "seconds": self.seconds}

    @property
    def network(self) -> nn.Module:
        return self.model  # type: ignore[no-any-return]

    def allowed(self, place: int) -> range:
        first = place % self.unit * self.per_book
        return range(first, first + self.per_book)

    @torch.no_grad()
    def encode(self, medium: Any) -> list[int]:
        samples = torch.as_tensor(medium.at(self.rate).samples)
        frames = max(1, math.ceil(len(samples) / self.samples_per_frame))
        if frames * self.unit > self.longest:
            raise MediaError(
                f"a clip of {medium.duration:.2f} s takes {frames * self.unit} codes, and this tokenizer writes at most "
                f"{self.longest} ({self.seconds:g} s); cut it, leave the record out, or make the tokenizer with more seconds"
            )
        if not len(samples):
            samples = torch.zeros(self.samples_per_frame)
        books = self.books(samples.float()[None, None].to(self.model.device))  # [K, F]
        numbered = books + self.per_book * torch.arange(self.unit, device=books.device)[:, None]
        return numbered.T.flatten().tolist()

    @torch.no_grad()
    def decode(self, codes: Sequence[int]) -> Any:
        frames = torch.tensor(codes, dtype=torch.long).reshape(-1, self.unit)
        books = frames.T - self.per_book * torch.arange(self.unit)[:, None]
        if not len(frames) or books.min() < 0 or books.max() >= self.per_book:
            raise MediaError("these codes are no clip: each frame takes one code of each codebook, in order")
        return clip_of(self.sounded(books.to(self.model.device)).float().cpu().numpy(), self.rate)

    @property
    @abstractmethod
    def samples_per_frame(self) -> int:
        """Return how many samples a frame of codes stands for."""

    @staticmethod
    @abstractmethod
    def made(config: Mapping[str, Any]) -> Any:
        """Return the codec of this configuration, with no weights of its own yet."""

    @abstractmethod
    def books(self, samples: Tensor) -> Tensor:
        """Return codes ``[K, F]`` of samples ``[1, 1, S]``."""

    @abstractmethod
    def sounded(self, books: Tensor) -> Tensor:
        """Return samples ``[S]`` of codes ``[K, F]``."""


class EncodecTokenizer(CodecTokenizer):
    """EnCodec (Defossez et al. 2022, arXiv 2210.13438) of one channel at one rate, such as the 24 kHz model: 75 frames a second
    and 1,024 codes a codebook. The 48 kHz model keeps the loudness of each second beside its codes, so it is refused."""

    kind: ClassVar[str] = "encodec"

    def _take(self, model: Any, codebooks: int, seconds: float) -> None:
        if model.config.normalize or model.config.chunk_length_s is not None:
            raise ConfigError("this EnCodec keeps loudness beside its codes (normalize, chunk_length_s); take the 24 kHz model")
        super()._take(model, codebooks, seconds)
        enough = [
            width
            for width in sorted(model.config.target_bandwidths)
            if model.quantizer.get_num_quantizers_for_bandwidth(width) >= codebooks
        ]
        self.bandwidth = enough[0]  # later codebooks leave earlier codes as they are

    @property
    def samples_per_frame(self) -> int:
        return int(self.model.config.hop_length)

    @staticmethod
    def made(config: Mapping[str, Any]) -> Any:
        from transformers import EncodecConfig, EncodecModel

        return EncodecModel(EncodecConfig.from_dict(dict(config)))

    def books(self, samples: Tensor) -> Tensor:
        found: Tensor = self.model.encode(samples, bandwidth=self.bandwidth).audio_codes[0, 0]
        return found[: self.unit]

    def sounded(self, books: Tensor) -> Tensor:
        return self.model.decode(books[None, None], [None]).audio_values[0, 0]  # type: ignore[no-any-return]


class MimiTokenizer(CodecTokenizer):
    """Mimi (Defossez et al. 2024, arXiv 2410.00037): 12.5 frames a second and 2,048 codes a codebook, the first of which was
    taught what is said rather than how."""

    kind: ClassVar[str] = "mimi"

    @property
    def samples_per_frame(self) -> int:
        return int(self.model.config.frame_size)

    @staticmethod
    def made(config: Mapping[str, Any]) -> Any:
        from transformers import MimiConfig, MimiModel

        return MimiModel(MimiConfig.from_dict(dict(config)))

    def books(self, samples: Tensor) -> Tensor:
        return self.model.encode(samples, num_quantizers=self.unit).audio_codes[0]  # type: ignore[no-any-return]

    def sounded(self, books: Tensor) -> Tensor:
        return self.model.decode(books[None]).audio_values[0, 0]  # type: ignore[no-any-return]


def codec_tokenizer(folder: str, codebooks: int = 4, seconds: float = 4.0) -> CodecTokenizer:
    """Return the tokenizer of a codec that transformers saved in ``folder`` (or a hub id). Raises `ConfigError`."""
    from transformers import AutoConfig, AutoModel

    known: dict[str, type[CodecTokenizer]] = {made.kind: made for made in (EncodecTokenizer, MimiTokenizer)}
    kind = AutoConfig.from_pretrained(folder).model_type
    if kind not in known:
        raise ConfigError(f"{folder!r} is a {kind} model; expected one of {', '.join(known)}")
    return known[kind].of(AutoModel.from_pretrained(folder, dtype=torch.float32), codebooks, seconds)
