"""The parts of `zoo:tiny-t2v`: an LTX pipeline of under 3M parameters for clips of 8 frames of 32 x 32 pixels."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLLTXVideo, FlowMatchEulerDiscreteScheduler, LTXPipeline, LTXVideoTransformer3DModel
from moving_shapes import COLOURS, FRAMES, SHAPES, SIDE
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel, T5TokenizerFast

from polyalign_video.motion import MOVES

LATENT_CHANNELS, HIDDEN, PATCH = 24, 64, 8
LATENT_SIDE = SIDE // PATCH
TEXT_LENGTH, TEXT_WIDTH, WIDTH, LAYERS = 10, 64, 96, 4


def new_vae(clips: Tensor) -> AutoencoderKLLTXVideo:
    """Return a VAE of LTX's layers that projects the 8 x 8 patches of each frame on their principal components, and back.

    ``clips`` ``[N, 3, F, H, W]`` in [-1, 1]. Nothing is trained: between its first and its last layer this VAE has only a
    norm and a SiLU, and ``silu(x) - silu(-x) = x``. One large constant channel makes the norm a constant factor.
    """
    vae = AutoencoderKLLTXVideo(
        latent_channels=LATENT_CHANNELS,
        block_out_channels=(HIDDEN,),
        decoder_block_out_channels=(HIDDEN,),
        down_block_types=("LTXVideoDownBlock3D",),
        layers_per_block=(0, 0),
        decoder_layers_per_block=(0, 0),
        spatio_temporal_scaling=(False,),
        decoder_spatio_temporal_scaling=(False,),
        decoder_inject_noise=(False, False),
        downsample_type=("conv",),
        upsample_residual=(False,),
        upsample_factor=(1,),
        patch_size=PATCH,
        encoder_causal=False,
    ).requires_grad_(False)
    patches = clips.unflatten(4, (-1, PATCH)).unflatten(3, (-1, PATCH))  # [N, 3, F, h, y, w, x]
    patches = patches.permute(0, 2, 3, 5, 1, 6, 4).flatten(4).flatten(0, 3)  # [P, (3, x, y)], in the order LTX folds them
    mean = patches.mean(0)
    _, _, components = torch.pca_lowrank(patches - mean, q=LATENT_CHANNELS, center=False)  # [(3, x, y), C]
    basis, constant = components.T, 400.0
    factor = constant / HIDDEN**0.5  # what the norm divides by
    for conv in (part for half in (vae.encoder, vae.decoder) for part in (half.conv_in.conv, half.conv_out.conv)):
        conv.weight.zero_()
        conv.bias.zero_()
    both = torch.cat([basis, -basis])
    vae.encoder.conv_in.conv.weight[: 2 * LATENT_CHANNELS, :, 1, 1, 1] = both
    vae.encoder.conv_in.conv.bias[: 2 * LATENT_CHANNELS] = -both @ mean
    identity = torch.eye(LATENT_CHANNELS)
    vae.encoder.conv_out.conv.weight[:LATENT_CHANNELS, : 2 * LATENT_CHANNELS, 1, 1, 1] = factor * torch.cat(
        [identity, -identity], 1
    )
    vae.encoder.conv_out.conv.bias[LATENT_CHANNELS] = -20.0  # the logarithm of the posterior's variance: none
    vae.decoder.conv_in.conv.weight[: 2 * LATENT_CHANNELS, :, 1, 1, 1] = torch.cat([identity, -identity])
    vae.decoder.conv_out.conv.weight[:, : 2 * LATENT_CHANNELS, 1, 1, 1] = factor * both.T
    vae.decoder.conv_out.conv.bias.copy_(mean)
    for half in (vae.encoder, vae.decoder):
        half.conv_in.conv.bias[-1] = constant
    latents = (patches - mean) @ components
    vae.latents_mean.copy_(latents.mean(0))
    spread = latents.std(0)
    vae.latents_std.copy_(spread.clamp(min=0.3 * float(spread.max())))  # faint components stay faint, and cost little
    return vae


def new_tokenizer() -> T5TokenizerFast:
    """Whole words of the captions, single letters for all others."""
    words = ["a", *COLOURS, *SHAPES, *dict.fromkeys(word for move in MOVES.values() for word in move.split())]
    letters = [chr(code) for code in range(33, 127)]
    pieces = ["<pad>", "</s>", "<unk>", "▁", *(f"▁{word}" for word in words)]
    pieces += [piece for letter in letters for piece in (letter, f"▁{letter}") if piece not in pieces]
    scores = [-1.0 if piece[1:] in words else -10.0 for piece in pieces]
    return T5TokenizerFast(vocab=list(zip(pieces, scores)), extra_ids=0, model_max_length=TEXT_LENGTH)


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
        self.transformer = LTXVideoTransformer3DModel(
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            num_attention_heads=4,
            attention_head_dim=WIDTH // 4,
            cross_attention_dim=WIDTH,
            num_layers=LAYERS,
            caption_channels=TEXT_WIDTH,
        )
        nn.init.zeros_(self.transformer.proj_out.weight)

    def forward(self, noised: Tensor, sigma: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the velocity ``[B, C, F, H, W]`` at noise levels ``sigma`` ``[B]``."""
        text = self.text_encoder(ids)[0]  # padded places are masked below, as the pipeline does
        packed = LTXPipeline._pack_latents(noised)
        velocity = self.transformer(
            hidden_states=packed,
            encoder_hidden_states=text,
            timestep=1000 * sigma,
            encoder_attention_mask=mask,
            num_frames=FRAMES,
            height=LATENT_SIDE,
            width=LATENT_SIDE,
            rope_interpolation_scale=(1 / 25, PATCH, PATCH),
            return_dict=False,
        )[0]
        return LTXPipeline._unpack_latents(velocity, FRAMES, LATENT_SIDE, LATENT_SIDE)


def pipeline(model: TextToLatents, tokenizer: T5TokenizerFast, vae: AutoencoderKLLTXVideo) -> LTXPipeline:
    made = LTXPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=2.0),
        vae=vae,
        text_encoder=model.text_encoder,
        tokenizer=tokenizer,
        transformer=model.transformer,
    )
    made.set_progress_bar_config(disable=True)
    return made


@torch.no_grad()
def drawn(pipe: LTXPipeline, captions: list[str], seed: int, steps: int = 20, guidance: float = 2.0) -> Tensor:
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
