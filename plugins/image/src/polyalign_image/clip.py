"""CLIP embeddings of pictures and text, from checkpoints in the layout of transformers or of open_clip."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn

from polyalign.assets import resolve_model
from polyalign.encoders import Encoder
from polyalign.errors import PolyalignError
from polyalign.policies.fingerprint import weights_fingerprint
from polyalign_image.config import ClipConfig


class ClipEncoder(Encoder):
    """Rows of unit length: the dot product of a picture's row and a text's row is their cosine.

    Texts longer than the model's context are cut. Pictures are prepared as the checkpoint says.
    """

    name = "clip"

    def __init__(self, config: ClipConfig) -> None:
        self.device = torch.device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.batch_size = config.batch_size
        self.model = load_clip(config)
        self.model.module.eval().requires_grad_(False).to(self.device)
        self._fingerprint = ""

    @torch.no_grad()
    def encode_media(self, media: Sequence[Image]) -> Tensor:
        """Return ``[N, D]`` float32 of unit rows for RGB pictures."""
        return self._in_batches(media, self.model.images)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Return ``[N, D]`` float32 of unit rows."""
        return self._in_batches(texts, self.model.texts)

    def embed_tensors(self, media: Tensor) -> Tensor:
        """Return ``[N, D]`` float32 of unit rows for pictures ``[N, 3, H, W]`` in [0, 1], with their gradient."""
        return nn.functional.normalize(self.model.tensors(media.to(self.device)).float(), dim=-1)

    @property
    def logit_scale(self) -> float:
        """The learnt temperature, exponentiated: logits are ``logit_scale * cosine``."""
        return float(self.model.module.logit_scale.exp())

    def fingerprint(self) -> str:
        if not self._fingerprint:
            weights = self.model.module.state_dict().items()
            self._fingerprint = weights_fingerprint(weights, type(self.model).__name__, self.model.settings)
        return self._fingerprint

    def content_key(self, medium: Image) -> str:
        return picture_key(medium)

    def _in_batches(self, items: Sequence[Any], embed: Any) -> Tensor:
        rows = [embed(items[start : start + self.batch_size]) for start in range(0, len(items), self.batch_size)]
        if not rows:
            return torch.empty(0, 0)
        return nn.functional.normalize(torch.cat(rows).float(), dim=-1).cpu()


def picture_key(picture: Image) -> str:
    """Return a hash of the pixels: equal pictures, equal key, whatever file they came from."""
    head = f"{picture.mode} {picture.size}".encode()
    return hashlib.blake2b(head + picture.tobytes(), digest_size=16).hexdigest()


class TransformersClip:
    """A `transformers.CLIPModel` and its processor. Embeddings are the projected ones, not normalised."""

    module: Any

    def __init__(self, model: str, processor: str) -> None:
        from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizerFast

        self.module = CLIPModel.from_pretrained(model)
        self.tokenizer = CLIPTokenizerFast.from_pretrained(processor)
        self.processor = CLIPImageProcessor.from_pretrained(processor)
        self.context = self.module.config.text_config.max_position_embeddings
        vocabulary = hashlib.blake2b(json.dumps(self.tokenizer.get_vocab(), sort_keys=True).encode()).hexdigest()
        self.settings = f"{self.processor.to_json_string()} {vocabulary}"

    def images(self, pictures: Sequence[Image]) -> Tensor:
        pixels = self.processor(images=list(pictures), return_tensors="pt")["pixel_values"]
        return _pooled(self.module.get_image_features(pixel_values=pixels.to(self.module.device)))

    def tensors(self, media: Tensor) -> Tensor:
        """Embed ``[N, 3, H, W]`` in [0, 1], prepared as pictures are but for their rounding to 8 bits."""
        from torchvision.transforms.v2 import functional as vision

        processor = self.processor
        if processor.do_resize:
            size = [processor.size["shortest_edge"]] if "shortest_edge" in processor.size else list(_sides(processor.size))
            media = vision.resize(media, size, vision.InterpolationMode(_RESAMPLING[processor.resample]), antialias=True)
        if processor.do_center_crop:
            media = vision.center_crop(media, list(_sides(processor.crop_size)))
        if processor.do_normalize:
            media = vision.normalize(media, list(processor.image_mean), list(processor.image_std))
        return _pooled(self.module.get_image_features(pixel_values=media))

    def texts(self, texts: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, max_length=self.context, return_tensors="pt")
        return _pooled(self.module.get_text_features(**tokens.to(self.module.device)))


_RESAMPLING = {2: "bilinear", 3: "bicubic"}  # PIL's numbers


def _sides(size: Any) -> tuple[int, int]:
    return size["height"], size["width"]


def _pooled(features: Any) -> Tensor:
    """The projected embedding: transformers 5 returns an output object that holds it, 4 returned the tensor."""
    pooled: Tensor = getattr(features, "pooler_output", features)
    return pooled


class OpenClip:
    """The same of an `open_clip` model. ``model`` carries open_clip's own prefix (``local-dir:``, ``hf-hub:``)."""

    module: Any

    def __init__(self, model: str) -> None:
        import open_clip

        self.module, _, self.transform = open_clip.create_model_and_transforms(model)
        self.tokenizer = open_clip.get_tokenizer(model)
        transform = re.sub(r" at 0x[0-9a-f]+", "", str(self.transform))  # the address of a function differs in every process
        self.settings = f"{transform} {type(self.tokenizer).__name__} {self.tokenizer.context_length}"

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def images(self, pictures: Sequence[Image]) -> Tensor:
        pixels = torch.stack([self.transform(picture) for picture in pictures])
        embeddings: Tensor = self.module.encode_image(pixels.to(self.device))
        return embeddings

    def tensors(self, media: Tensor) -> Tensor:
        """Embed ``[N, 3, H, W]`` in [0, 1], prepared as pictures are but for their rounding to 8 bits."""
        from torchvision.transforms import CenterCrop, Normalize, Resize

        for step in self.transform.transforms:
            if isinstance(step, Resize | CenterCrop | Normalize):  # the others make a tensor of a picture
                media = step(media)
        embeddings: Tensor = self.module.encode_image(media)
        return embeddings

    def texts(self, texts: Sequence[str]) -> Tensor:
        embeddings: Tensor = self.module.encode_text(self.tokenizer(list(texts)).to(self.device))
        return embeddings


def load_clip(config: ClipConfig) -> TransformersClip | OpenClip:
    """Return the model that ``config.model`` names, whichever layout it has.

    A folder is recognised by its files. A hub id is tried as transformers first, then as open_clip. Raises
    `PolyalignError` that says what was looked for.
    """
    model = resolve_model(config.model)
    if Path(model).is_dir():
        layout = _layout_of(Path(model)) if config.layout == "auto" else config.layout
        if layout == "open_clip":
            return OpenClip(f"local-dir:{model}")
        return TransformersClip(model, resolve_model(config.processor) if config.processor else model)
    reasons = []
    if config.layout in ("auto", "transformers"):
        try:
            return TransformersClip(model, resolve_model(config.processor) if config.processor else model)
        except (OSError, ValueError) as error:
            reasons.append(f"as transformers: {_first_line(error)}")
    if config.layout in ("auto", "open_clip"):
        try:
            return OpenClip(f"hf-hub:{model}")
        except (OSError, ValueError, RuntimeError) as error:
            reasons.append(f"as open_clip: {_first_line(error)}")
    raise PolyalignError(
        f"CLIP model {config.model!r} cannot be loaded ({'; '.join(reasons)}). Give a folder, zoo:NAME or a model hub id; "
        "a hub id needs network, or the model already in the hub's cache."
    )


def _layout_of(folder: Path) -> str:
    """The transformers layout wins where a folder holds both."""
    config = folder / "config.json"
    kind = json.loads(config.read_text()).get("model_type") if config.is_file() else None
    if kind == "clip":
        return "transformers"
    if (folder / "open_clip_config.json").is_file():
        return "open_clip"
    found = f"a config.json of model_type {kind!r}" if config.is_file() else ", ".join(sorted(p.name for p in folder.iterdir()))
    raise PolyalignError(
        f"{folder} is not a CLIP checkpoint: found {found or 'an empty folder'}; expected config.json with model_type 'clip' "
        "(transformers) or open_clip_config.json (open_clip)"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
