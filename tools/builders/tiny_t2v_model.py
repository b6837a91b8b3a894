"""The parts of `zoo:tiny-t2v`: a CogVideoX pipeline of 0.9M parameters for clips of 8 frames of 32 x 32 pixels.

CogVideoX, because it adds absolute places to its tokens. A denoiser whose attention knows only relative ones (LTX, Wan) sees the
same everywhere where all tokens are noise, but for the clip's edges, and would have to find first from last and left from right
by them: at the noise levels at which a clip's move is decided.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel
from moving_shapes import COLOURS, FRAMES, SHAPES, SIDE
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel, T5TokenizerFast

from polyalign_video.motion import MOVES

LATENT_SIDE, PATCH = SIDE // 2, 4
TEXT_LENGTH, TEXT_WIDTH, WIDTH, HEADS, LAYERS = 8, 64, 96, 4, 4
SCALING = 2.0  # latents of white are 0 and those of a thing about -1 to -2 before it
COLOUR_ROWS = 2 * 3  # channels of the VAE that hold the colours and their negatives


def new_vae() -> AutoencoderKLCogVideoX:
    """Return a VAE of CogVideoX's layers that halves each frame's sides by averaging, and doubles them smoothly.

    Nothing is trained: residual blocks add nothing, and between its first and its last layer either half has only a norm and a
    SiLU, for which ``silu(x) - silu(-x) = x``. Two large constant channels of opposite sign make the norm a constant factor. The
    latent of white is 0, so that the zeros around a frame are white.
    """
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 2,
        up_block_types=("CogVideoXUpBlock3D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=3,
        layers_per_block=1,
        norm_num_groups=1,
        temporal_compression_ratio=1,
        sample_height=SIDE,
        sample_width=SIDE,
        scaling_factor=SCALING,
    ).requires_grad_(False)
    for name, weights in vae.named_parameters():
        weights.fill_(1.0 if "norm" in name and name.endswith("weight") and ".conv_" not in name else 0.0)
    for half in (vae.encoder, vae.decoder):
        spatial = [part for name, part in half.named_modules() if name.endswith("conv_y")]
        for part in spatial:
            part.conv.bias.fill_(1.0)  # the norm's output times one
    both, constant = torch.cat([torch.eye(3), -torch.eye(3)]), 400.0
    back = both.T * constant / 2  # the norm divides by the root mean square of eight channels, two of them constant
    halving, smooth = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.25, 0.5, 0.25])
    first, last = vae.encoder.conv_in.conv, vae.encoder.conv_out.conv  # kernels end at the present frame
    first.weight[:COLOUR_ROWS, :, -1, 1, 1] = both
    first.bias[:COLOUR_ROWS] = -both.sum(1)  # white becomes 0
    last.weight[:3, :COLOUR_ROWS, -1, 1, 1] = back
    last.bias[3:] = -20.0  # the logarithm of the posterior's variance: none
    first, last = vae.decoder.conv_in.conv, vae.decoder.conv_out.conv
    first.weight[:COLOUR_ROWS, :, -1, 1, 1] = both
    last.weight[:, :COLOUR_ROWS, -1, 1, 1] = back
    last.bias.fill_(1.0)
    for sampler, kernel in (
        (vae.encoder.down_blocks[0].downsamplers[0].conv, halving),
        (vae.decoder.up_blocks[0].upsamplers[0].conv, smooth),
    ):
        for channel in range(COLOUR_ROWS):
            sampler.weight[channel, channel] = torch.outer(kernel, kernel)
        sampler.bias[COLOUR_ROWS:] = torch.tensor([constant, -constant])
    return vae


def new_tokenizer() -> T5TokenizerFast:
    """Whole words of the captions, single letters for all others."""
    words = ["a", *COLOURS, *SHAPES, *dict.fromkeys(word for move in MOVES.values() for word in move.split())]
    letters = [chr(code) for code in range(33, 127)]
    pieces = ["<pad>", "</s>", "<unk>", "▁", *(f"▁{word}" for word in words)]
    pieces += [piece for letter in letters for piece in (letter, f"▁{letter}") if piece not in pieces]
    scores = [-1.0 if piece[1:] in words else -10.0 for piece in pieces]
    return T5TokenizerFast(vocab=list(zip(pieces, scores)), extra_ids=0, model_max_length=TEXT_LENGTH)


def new_scheduler() -> CogVideoXDDIMScheduler:
    """A clip of one thing is easily seen through noise, so that the schedule leans far towards noise, as CogVideoX's does."""
    return CogVideoXDDIMScheduler(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=3.0,
        timestep_spacing="trailing",
        clip_sample=False,
    )


class TextToLatents(nn.Module):
    """Text encoder and denoiser, trained together."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.text_encoder = T5EncoderModel(
            T5Config(
                vocab_size=vocabulary,
                d_model=TEXT_WIDTH,
                d_ff=2 * TEXT_WIDTH,
                d_kv=32,
                num_heads=2,
                num_layers=2,
                dropout_rate=0.0,
            )
        )
        self.transformer = CogVideoXTransformer3DModel(
            in_channels=3,
            out_channels=3,
            num_attention_heads=HEADS,
            attention_head_dim=WIDTH // HEADS,
            time_embed_dim=64,
            text_embed_dim=TEXT_WIDTH,
            num_layers=LAYERS,
            sample_width=LATENT_SIDE,
            sample_height=LATENT_SIDE,
            sample_frames=FRAMES,
            patch_size=PATCH,
            temporal_compression_ratio=1,
            max_text_seq_length=TEXT_LENGTH,
            spatial_interpolation_scale=0.5,
            temporal_interpolation_scale=0.5,
        )
        nn.init.zeros_(self.transformer.proj_out.weight)

    def forward(self, noised: Tensor, timesteps: Tensor, ids: Tensor) -> Tensor:
        """Return v ``[B, F, C, H, W]`` for noised latents of that shape at ``timesteps`` ``[B]``."""
        text = self.text_encoder(ids)[0]  # without a mask, as the pipeline does
        velocity: Tensor = self.transformer(noised, text, timesteps, return_dict=False)[0]
        return velocity


def pipeline(model: TextToLatents, tokenizer: T5TokenizerFast, vae: AutoencoderKLCogVideoX) -> CogVideoXPipeline:
    made = CogVideoXPipeline(
        tokenizer=tokenizer,
        text_encoder=model.text_encoder,
        vae=vae,
        transformer=model.transformer,
        scheduler=new_scheduler(),
    )
    made.set_progress_bar_config(disable=True)
    return made


@torch.no_grad()
def drawn(pipe: CogVideoXPipeline, captions: list[str], seed: int, steps: int = 20, guidance: float = 2.0) -> Tensor:
    """Return clips ``[N, F, H, W, 3]`` in [0, 1], one per caption."""
    frames = pipe(
        captions,
        height=SIDE,
        width=SIDE,
        num_frames=FRAMES,
        num_inference_steps=steps,
        guidance_scale=guidance,
        max_sequence_length=TEXT_LENGTH,
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
    ).frames
    return torch.as_tensor(frames)
