"""The `picture-tokens` policy: Chameleon, Emu3 and Janus, models that come with their own picture tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from polyalign.assets import resolve_model
from polyalign.errors import ConfigError, MediaError
from polyalign.policies.adapters import add_lora
from polyalign.policies.base import Batch
from polyalign.policies.completion_mask import Medium, Piece
from polyalign.policies.media_features import MediaEncoder, MediaFeatures
from polyalign.policies.pretrained import is_adapter, load, load_model, within_context
from polyalign.records.modality import decoded
from polyalign.records.samples import MediaSource
from polyalign.records.schema import MediaPart, MediaRef, Message
from polyalign_any_to_any.config import PictureTokensConfig
from polyalign_any_to_any.encoder import MixedEncoder
from polyalign_any_to_any.media.base import MediaTokenizer
from polyalign_any_to_any.media.pictures import as_picture, as_pixels
from polyalign_any_to_any.policy import MixedTokenPolicy
from polyalign_any_to_any.spans import Span, Vocabulary

WHAT = "an image-text-to-text model"
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class NativePictures(MediaTokenizer):
    """Square pictures by the autoencoder inside a model; it is saved with the model, and it never trains."""

    kind = "native"
    modality = "image"

    def __init__(self, network: Any, side: int, tokens: int, codes: int, mean: Sequence[float], std: Sequence[float]) -> None:
        self._network, self.side, self.codes = network, side, codes
        self.length = self.longest = tokens
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (mean, std))

    @property
    def settings(self) -> dict[str, Any]:
        return {"side": self.side, "mean": self.mean.flatten().tolist(), "std": self.std.flatten().tolist()}

    @property
    def network(self) -> Any:
        return self._network

    def save(self, folder: Path) -> None:
        """Nothing to write: the model's own weights hold it."""

    @torch.no_grad()
    def encode(self, medium: Image.Image) -> list[int]:
        self.network.eval()
        pixels = self.pixels(medium)[None].to(self.network.device, self.network.dtype)
        more = {"image_sizes": torch.tensor([[self.side, self.side]])} if self.network.config.model_type == "emu3_vqgan" else {}
        found = self.network.encode(pixels, **more, return_dict=True).image_tokens
        return torch.as_tensor(found[0] if isinstance(found, list) else found).flatten().tolist()

    @torch.no_grad()
    def decode(self, codes: Sequence[int]) -> Image.Image:
        if not hasattr(self.network, "decode"):
            raise MediaError("transformers has no decoder for Chameleon's pictures; it reads and scores them only")
        self.network.eval()
        found = torch.tensor(codes, device=self.network.device)[None]
        if self.network.config.model_type == "emu3_vqgan":
            rows = self.side // self.network.vision_spatial_factor
            found = found.reshape(1, rows, rows)
        pixels = self.network.decode(found)[0].float().cpu() * self.std + self.mean
        return as_picture(2 * pixels - 1)

    def pixels(self, medium: Image.Image) -> Tensor:
        """Return ``[3, side, side]`` normalised as the model was trained."""
        return ((as_pixels(medium, self.side) + 1) / 2 - self.mean) / self.std


def chameleon(model: Any, tokenizer: Any, side: int | None) -> tuple[Span, list[int]]:
    """Return the span of pictures, and the ids that are neither words nor codes. Reads pictures and does not draw: the decoder of
    its autoencoder was never published, and its own forward hides its codes."""
    config, mapping = model.config, model.model.vocabulary_mapping
    side = side or config.vq_config.resolution
    tokens = (side // 2 ** (len(config.vq_config.channel_multiplier) - 1)) ** 2
    network = model.model.vqmodel
    pictures = NativePictures(network, side, tokens, config.vq_config.num_embeddings, (0.5,) * 3, (0.5,) * 3)
    begin = getattr(tokenizer, "boi_token", None) or "<racm3:break>"
    end = getattr(tokenizer, "eoi_token", None) or "<eoss>"
    head, tail = tokenizer.convert_tokens_to_ids([begin, end])
    ids = tuple(mapping.img2bpe[code] for code in range(pictures.codes))
    return Span(pictures, (head,), ids, (tail,), writable=False), [mapping.image_token_id]


def emu3(model: Any, tokenizer: Any, side: int | None) -> tuple[Span, list[int]]:
    """Return the same of Emu3: its pictures say their height and width in codes, and every row of codes ends with a token."""
    mapping, network = model.model.vocabulary_mapping, model.model.vqmodel
    side = side or 512
    rows = side // network.vision_spatial_factor
    pictures = NativePictures(network, side, rows * rows, model.config.vq_config.codebook_size, CLIP_MEAN, CLIP_STD)
    names = {
        "boi_token": "<|image start|>",
        "image_wrapper_token": "<|image token|>",
        "eof_token": "<|extra_201|>",
        "eoi_token": "<|image end|>",
    }
    begin, wrapper, end_of_frame, end = tokenizer.convert_tokens_to_ids(
        [getattr(tokenizer, name, None) or usual for name, usual in names.items()]
    )
    size = tokenizer(f"{rows}*{rows}", add_special_tokens=False)["input_ids"]
    ids = tuple(mapping.img2bpe[code] for code in range(pictures.codes))
    span = Span(pictures, (begin, *size, wrapper), ids, (end_of_frame, end), line=rows, line_break=mapping.eol_token_id)
    return span, [mapping.image_token_id]


def janus(model: Any, tokenizer: Any, side: int | None) -> tuple[Span, list[int]]:
    """Return the same of Janus, whose codes are no words of its language model: they are numbered behind them."""
    config = model.config
    words = config.text_config.vocab_size
    if side not in (None, config.vision_config.image_size):
        raise ConfigError(f"policy.side={side}: Janus draws pictures of {config.vision_config.image_size} pixels; leave it out")
    tokens = config.vq_config.num_patches**2
    codes = config.vq_config.num_embeddings
    pictures = NativePictures(model.model.vqmodel, config.vision_config.image_size, tokens, codes, (0.5,) * 3, (0.5,) * 3)
    names = {"boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}
    head, tail = tokenizer.convert_tokens_to_ids([getattr(tokenizer, name, None) or usual for name, usual in names.items()])
    return Span(pictures, (head,), tuple(range(words, words + codes)), (tail,)), [config.image_token_id]


LAYOUTS: Mapping[str, Callable[[Any, Any, int | None], tuple[Span, list[int]]]] = {
    "chameleon": chameleon, "emu3": emu3, "janus": janus,
}  # fmt: skip


class JanusEncoder(MixedEncoder):
    """Pictures of prompts are features of a vision tower, pictures of responses are codes."""

    def __init__(self, tokenizer: Any, vocabulary: Vocabulary, chat_template: Any, placeholder: int, tokens: int) -> None:
        super().__init__(tokenizer, vocabulary, chat_template)
        self.media_ids, self.placeholder, self.tokens = frozenset({placeholder}), placeholder, tokens

    def prompt(self, prompt: tuple[Message, ...], media: MediaSource | None) -> Piece:
        refs = [part.media for message in prompt for part in message.parts if isinstance(part, MediaPart)]
        return super().prompt(prompt, media)._replace(media=tuple(self._medium(ref, media) for ref in refs))

    def block(self, ref: MediaRef, media: MediaSource | None, where: Any) -> tuple[int, ...]:
        if where == "response":
            return super().block(ref, media, where)
        span = self.span(ref)
        return (*span.head, *[self.placeholder] * self.tokens, *span.tail)

    def _medium(self, ref: MediaRef, media: MediaSource | None) -> Medium:
        tokenizer = self.span(ref).tokenizer
        assert isinstance(tokenizer, NativePictures)
        key = f"{ref.sha256}-{self.fingerprints['image']}"
        return Medium(key, self.tokens, lambda: {"pixel_values": tokenizer.pixels(decoded(ref, media))[None]})  # type: ignore[arg-type]


class PictureTokenPolicy(MixedTokenPolicy):
    """Chameleon and Emu3: the codes of pictures are words of the language model."""


class JanusPolicy(PictureTokenPolicy):
    """Codes have embeddings and a head of their own; what is drawn is read by those, what is shown by the vision tower."""

    encoder: JanusEncoder

    def __init__(self, model: Any, encoder: JanusEncoder, config: PictureTokensConfig) -> None:
        self.media = MediaEncoder(model, ("image",), encoder.settings)
        super().__init__(model, encoder, config)

    @property
    def words(self) -> int:
        return int(self.model.config.get_text_config().vocab_size)

    @property
    def vocabulary_size(self) -> int:
        return self.vocabulary.size

    def encode_media(self, batch: Batch) -> MediaFeatures | None:
        return self.media(batch)

    def embed(self, batch: Batch, media: MediaFeatures | None) -> Tensor:
        embeddings, index = self.embed_ids(batch.tensors["input_ids"]), batch.tensors.get("media_index")
        if media is None or index is None:
            return embeddings
        here = index >= 0
        return embeddings.masked_scatter(here[..., None], media.rows[index[here]].to(embeddings.dtype))

    def embed_ids(self, ids: Tensor) -> Tensor:
        drawn = ids >= self.words
        words = self.model.get_input_embeddings()(ids.masked_fill(drawn, 0))
        codes = self.model.prepare_embeddings_for_image_generation((ids - self.words).clamp(min=0))
        return torch.where(drawn[..., None], codes, words)

    def head(self, states: Tensor) -> Tensor:
        return torch.cat([super().head(states), self.model.model.generation_head(states)], -1)


def build(config: PictureTokensConfig, *, device: str | torch.device = "cpu", seed: int = 0) -> PictureTokenPolicy:
    """Return the policy at its starting weights. ``seed`` keys the initialisation of LoRA layers."""
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    folder = resolve_model(config.base)
    tokenizer = load(AutoTokenizer, WHAT, folder, config)
    policy = assembled(load_model(AutoModelForImageTextToText, WHAT, folder, config, device), tokenizer, config, seed)
    policy.merged_base = is_adapter(folder)
    return policy


def assembled(model: Any, tokenizer: Any, config: PictureTokensConfig, seed: int = 0) -> PictureTokenPolicy:
    """Return the policy over a loaded model of one of the kinds in `LAYOUTS`. Its autoencoder and vision tower are frozen."""
    kind = model.config.model_type
    if kind not in LAYOUTS:
        raise ConfigError(f"policy.base {config.base!r} is a {kind} model; expected one of {', '.join(LAYOUTS)}")
    config = within_context(config, model.config.get_text_config())
    if config.lora is not None:
        add_lora(model, config.lora, seed, within=model.get_decoder())
    span, never = LAYOUTS[kind](model, tokenizer, config.side)
    model.model.vqmodel.requires_grad_(False)
    words = model.config.get_text_config().vocab_size
    if kind != "janus":
        vocabulary = Vocabulary(words, [span], never)
        return PictureTokenPolicy(model, MixedEncoder(tokenizer, vocabulary, config.chat_template), config)
    model.model.vision_model.requires_grad_(False)
    vocabulary = Vocabulary(words + span.tokenizer.codes, [span], never)
    tokens = model.config.vision_config.num_image_tokens
    return JanusPolicy(model, JanusEncoder(tokenizer, vocabulary, config.chat_template, never[0], tokens), config)
