"""QLoRA on the CPU: frozen weights in 4 or 8 bits, adapters trained as if they were there in full."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from polyalign.records.dataset import ExampleDataset
from polyalign.training.config import SourceConfig
from polyalign_image.config import VisionLanguageConfig
from polyalign_image.vision_language import VisionLanguagePolicy, build

pytestmark = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
LORA = {"rank": 4}


def policy_with(quantize: str) -> VisionLanguagePolicy:
    config = VisionLanguageConfig(
        base="zoo:tiny-vlm", lora=LORA, quantize=quantize, max_length=128, max_response=48, dtype="float32"
    )
    policy = build(config, device="cpu", seed=0)
    for number, (_, weight) in enumerate(sorted((n, p) for n, p in policy.named_parameters() if p.requires_grad)):
        weight.data.copy_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)))
    return policy.train()


def dequantized(policy: VisionLanguagePolicy) -> int:
    """Put an ordinary layer with the same (rounded) weights in the place of every 4-bit layer; return how many there were."""
    from bitsandbytes.nn import Linear4bit

    replaced = 0
    for parent in list(policy.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, Linear4bit):
                plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
                offset = layer.bias.data if layer.bias is not None else torch.zeros(layer.out_features)
                with torch.no_grad():  # what the layer answers to unit vectors is its weights, however it stores them
                    plain.weight.copy_((layer.train()(torch.eye(layer.in_features)) - offset).T)
                    if layer.bias is not None:
                        plain.bias.copy_(offset)
                setattr(parent, name, plain.requires_grad_(False))
                replaced += 1
    return replaced


def scores_and_gradients(policy: VisionLanguagePolicy) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    data = ExampleDataset([SourceConfig(path="dataset:emoji-captions", limit=3)], "pairs")
    batch = policy.collate([sample for index in range(len(data)) for sample in data[index].samples])
    log_probs = policy(batch).log_probs
    log_probs.sum().backward()
    return log_probs.detach(), {n: p.grad for n, p in policy.named_parameters() if p.requires_grad and p.grad is not None}


def test_four_bit_weights_train_adapters_as_their_rounded_values_do() -> None:
    """Against the same network with every 4-bit layer written out in float32: scores and gradients of all adapters.

    The policy has been tried without gradients before, as in every run: after that, bitsandbytes' own layers lose gradients.
    """
    quantized, written_out = policy_with("nf4"), policy_with("nf4")
    assert dequantized(written_out) > 20 and dequantized(policy_with("none")) == 0
    found, gradients = scores_and_gradients(quantized)
    expected, expected_gradients = scores_and_gradients(written_out)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert gradients.keys() == expected_gradients.keys() and gradients
    for name, gradient in gradients.items():
        assert (gradient - expected_gradients[name]).norm() < 0.01 * expected_gradients[name].norm(), name


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_rounding_moves_scores_a_little_and_adapters_train(quantize: str, tmp_path: Path) -> None:
    """Four bits cost more than eight; the file that is saved holds adapters alone and loads on full weights."""
    plain, policy = policy_with("none"), policy_with(quantize)
    exact, _ = scores_and_gradients(plain)
    found, gradients = scores_and_gradients(policy)
    assert 0 < (found - exact).abs().mean() < {"nf4": 0.5, "int8": 0.1}[quantize]
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-3)
    optimizer.step()
    better, _ = scores_and_gradients(policy)
    assert gradients and better.sum() != found.sum()
    policy.save(tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors")) < 1e6
