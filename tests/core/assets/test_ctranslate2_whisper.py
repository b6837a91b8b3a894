"""The reader against a writer of its own: a random Whisper goes to CTranslate2's layout and comes back the same."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from polyalign.assets.ctranslate2_whisper import load_all, read_variables, rename
from polyalign.errors import PolyalignError


@pytest.fixture(scope="module")
def config() -> WhisperConfig:
    sizes = {"d_model": 8, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": 60, "num_mel_bins": 4}
    tokens = {"pad_token_id": 1, "bos_token_id": 1, "eos_token_id": 1, "decoder_start_token_id": 2}
    return WhisperConfig(**sizes, **heads, **tokens, max_source_positions=6, max_target_positions=10)


def variables_of(model: WhisperForConditionalGeneration) -> dict[str, np.ndarray]:
    """Name and fuse the model's tensors as CTranslate2's Whisper converter does."""
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    found: dict[str, np.ndarray] = {}

    def linear(target: str, *sources: str) -> None:
        found[f"{target}/weight"] = np.concatenate([state[f"{source}.weight"] for source in sources])
        biases = [state.get(f"{source}.bias", np.zeros(model.config.d_model, "float32")) for source in sources]
        found[f"{target}/bias"] = np.concatenate(biases)

    def norm(target: str, source: str) -> None:
        found[f"{target}/gamma"], found[f"{target}/beta"] = state[f"{source}.weight"], state[f"{source}.bias"]

    for side in ("encoder", "decoder"):
        norm(f"{side}/layer_norm", f"model.{side}.layer_norm")
        found[f"{side}/position_encodings/encodings"] = state[f"model.{side}.embed_positions.weight"]
        for layer in range(2):
            ours, theirs = f"model.{side}.layers.{layer}", f"{side}/layer_{layer}"
            linear(f"{theirs}/self_attention/linear_0", *(f"{ours}.self_attn.{letter}_proj" for letter in "qkv"))
            linear(f"{theirs}/self_attention/linear_1", f"{ours}.self_attn.out_proj")
            norm(f"{theirs}/self_attention/layer_norm", f"{ours}.self_attn_layer_norm")
            linear(f"{theirs}/ffn/linear_0", f"{ours}.fc1")
            linear(f"{theirs}/ffn/linear_1", f"{ours}.fc2")
            norm(f"{theirs}/ffn/layer_norm", f"{ours}.final_layer_norm")
            if side == "decoder":
                linear(f"{theirs}/attention/linear_0", f"{ours}.encoder_attn.q_proj")
                linear(f"{theirs}/attention/linear_1", f"{ours}.encoder_attn.k_proj", f"{ours}.encoder_attn.v_proj")
                linear(f"{theirs}/attention/linear_2", f"{ours}.encoder_attn.out_proj")
                norm(f"{theirs}/attention/layer_norm", f"{ours}.encoder_attn_layer_norm")
    for convolution in ("conv1", "conv2"):
        linear(f"encoder/{convolution}", f"model.encoder.{convolution}")
    found["decoder/embeddings/weight"] = state["model.decoder.embed_tokens.weight"]
    return found


def file_of(variables: dict[str, np.ndarray], version: int = 6, kind: int = 0) -> io.BytesIO:
    def string(text: str) -> bytes:
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    data = struct.pack("<I", version) + string("WhisperSpec") + struct.pack("<II", 3, len(variables))
    for name, value in variables.items():
        data += string(name) + struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)
        data += struct.pack("<BI", kind, value.nbytes) + value.tobytes()
    return io.BytesIO(data)


def test_a_model_survives_the_round_trip(config: WhisperConfig) -> None:
    torch.manual_seed(0)
    written, read = WhisperForConditionalGeneration(config), WhisperForConditionalGeneration(config)
    variables = read_variables(file_of(variables_of(written)))
    load_all(read, {name: torch.from_numpy(value.copy()) for name, value in rename(variables, config).items()})

    expected = written.state_dict()
    assert read.state_dict().keys() == expected.keys()
    for name, value in read.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_another_version_of_the_file_is_refused() -> None:
    with pytest.raises(PolyalignError, match="version 5; this reader knows version 6"):
        read_variables(file_of({}, version=5))


def test_an_unknown_type_names_its_variable() -> None:
    with pytest.raises(PolyalignError, match="'encoder/x' has the unknown type 9"):
        read_variables(file_of({"encoder/x": np.zeros(1, "float32")}, kind=9))


def test_a_missing_weight_is_an_error_rather_than_a_random_layer(config: WhisperConfig) -> None:
    model = WhisperForConditionalGeneration(config)
    weights = rename(variables_of(model), config)
    del weights["model.encoder.conv1.bias"]
    with pytest.raises(PolyalignError, match="model.encoder.conv1.bias"):
        load_all(model, {name: torch.from_numpy(value) for name, value in weights.items()})
