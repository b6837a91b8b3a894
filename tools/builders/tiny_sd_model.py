"""The parts of `zoo:tiny-sd`: VAE, text encoders, rectified-flow transformer, and the pipeline made of them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.models.attention_processor import JointAttnProcessor2_0
from emoji_table import STYLES, Emoji
from PIL import Image
from tokenizers import Regex, Tokenizer, models, normalizers, processors, trainers
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

LATENT_CHANNELS, LATENT_SIZE = 8, 8
VOCABULARY, TEXT_LENGTH = 2000, 12
WIDTHS = (128, 64)  # of the two text encoders; the denoiser sees their outputs side by side
SAMPLE_CAPTIONS = (
    "cat face|grinning face|red heart|pizza|rocket|strawberry|dog face|sun|snowman|octopus|hot dog|deciduous tree|bicycle|"
    "guitar|key|umbrella|whale|sunflower|hamburger|bus|thumbs up|ghost|soccer ball|rainbow|owl|cactus|house|"
    "wrapped gift|camera|fire|birthday cake|butterfly"
).split("|")


def new_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
        sample_size=64,
    )


def new_tokenizer(table: list[Emoji]) -> CLIPTokenizer:
    """A CLIP tokenizer whose byte-pair merges are learnt from the captions and tags."""
    layout = CLIPTokenizer(vocab={"<|startoftext|>": 0, "<|endoftext|>": 1}, merges=[]).backend_tokenizer
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer, learner.pre_tokenizer = layout.normalizer, layout.pre_tokenizer
    captions = [emoji.caption for emoji in table]
    texts = captions * 3 + [styled(caption, style) for caption in captions for style in STYLES]
    texts += [tag for emoji in table for tag in emoji.tags]
    start, end = "<|startoftext|>", "<|endoftext|>"
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, min_frequency=1, special_tokens=[start], end_of_word_suffix="</w>", show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    model = json.loads(learner.to_str())["model"]
    vocabulary = model["vocab"] | {end: len(model["vocab"])}  # CLIP reads the text's embedding at the highest id
    merges = [tuple(merge) for merge in model["merges"]]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TEXT_LENGTH, pad_token=end)


def new_text_encoder(tokenizer: CLIPTokenizer, width: int) -> CLIPTextModelWithProjection:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=2,
        num_attention_heads=width // 64,
        projection_dim=width,
        max_position_embeddings=TEXT_LENGTH,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoder = CLIPTextModelWithProjection(config)
    nn.init.normal_(encoder.get_input_embeddings().weight, std=0.1)
    return encoder


def new_transformer() -> SD3Transformer2DModel:
    """16 picture tokens of 2x2 latents: a step costs a third of what 64 tokens cost, and memorising wants many steps."""
    transformer = SD3Transformer2DModel(
        sample_size=LATENT_SIZE,
        patch_size=2,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=6,
        attention_head_dim=64,
        num_attention_heads=3,
        joint_attention_dim=sum(WIDTHS),
        caption_projection_dim=192,
        pooled_projection_dim=sum(WIDTHS),
        pos_embed_max_size=LATENT_SIZE // 2,
        qk_norm="rms_norm",
    )
    for name, module in transformer.named_modules():  # as in DiT: every block starts as the identity
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
            if name.endswith(("norm1.linear", "norm1_context.linear", "norm_out.linear", "proj_out")):
                nn.init.zeros_(module.weight)
    return transformer


class RepeatedEmptyToken(JointAttnProcessor2_0):
    """Attention in which the last text token counts `repeats` times.

    Without its third text encoder the pipeline appends `max_sequence_length` (by default 256) zero vectors to the text.
    They are equal and have no positions, so all of them together are one token whose attention logits are raised by
    log(repeats). Training with a random number of repeats makes the model indifferent to that argument, at the cost of
    one token instead of 256.
    """

    repeats = 0

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
        images, texts = hidden_states.shape[1], encoder_hidden_states.shape[1]
        bias = torch.zeros(1, 1, 1, images + texts)
        bias[..., -1] = math.log(self.repeats) if self.repeats else -1e4

        def joint(picture: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
            """Both kinds of tokens in a row, `[N, heads, tokens, width of a head]`."""
            return torch.cat([picture, text], dim=2)

        def split(states: torch.Tensor) -> torch.Tensor:
            return states.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        query = joint(
            attn.norm_q(split(attn.to_q(hidden_states))), attn.norm_added_q(split(attn.add_q_proj(encoder_hidden_states)))
        )
        key = joint(
            attn.norm_k(split(attn.to_k(hidden_states))), attn.norm_added_k(split(attn.add_k_proj(encoder_hidden_states)))
        )
        value = joint(split(attn.to_v(hidden_states)), split(attn.add_v_proj(encoder_hidden_states)))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias).transpose(1, 2).flatten(2)
        picture, text = mixed.split([images, texts], dim=1)
        picture = attn.to_out[0](picture)
        return picture, text if attn.context_pre_only else attn.to_add_out(text)


class TextToLatents(nn.Module):
    """Everything the second stage trains, so that averaging and checkpoints are one call each."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.text_encoder = new_text_encoder(tokenizer, WIDTHS[0])
        self.text_encoder_2 = new_text_encoder(tokenizer, WIDTHS[1])
        self.transformer = new_transformer()

    def forward(self, noisy: torch.Tensor, sigma: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
        """The velocity `[N, C, 8, 8]` at noise level `sigma` in [0, 1]; text is encoded as the pipeline encodes it."""
        texts = [encoder(token_ids, output_hidden_states=True) for encoder in (self.text_encoder, self.text_encoder_2)]
        states = torch.cat([text.hidden_states[-2] for text in texts], dim=-1)
        states = torch.cat([states, torch.zeros_like(states[:, :1])], dim=1)  # stands for all the empty tokens
        pooled = torch.cat([text.text_embeds for text in texts], dim=-1)
        return self.transformer(noisy, states, pooled, timestep=sigma * 1000).sample


def styled(caption: str, style: str) -> str:
    return f"{caption}, {style} style"


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    return tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids


def pipeline(model: TextToLatents, tokenizer: CLIPTokenizer, vae: AutoencoderKL) -> StableDiffusion3Pipeline:
    model.transformer.set_attn_processor(JointAttnProcessor2_0())
    pipe = StableDiffusion3Pipeline(
        transformer=model.transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=model.text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=model.text_encoder_2,
        tokenizer_2=tokenizer,
        text_encoder_3=silent_text_encoder(),
        tokenizer_3=silent_tokenizer(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def silent_text_encoder() -> T5EncoderModel:
    """A third text encoder that returns zeros, which is what the pipeline uses without one.

    `from_pretrained` does not load a pipeline without its third text encoder unless it is told so; with this
    placeholder of three thousand weights the folder loads like any other.
    """
    width = sum(WIDTHS)
    encoder = T5EncoderModel(T5Config(vocab_size=3, d_model=width, d_kv=1, d_ff=1, num_layers=1, num_heads=1))
    nn.init.zeros_(encoder.encoder.final_layer_norm.weight)
    return encoder.eval()


def silent_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer to which every text is empty: one token that ends it."""
    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1}, unk_token="<pad>"))
    tokenizer.normalizer = normalizers.Replace(Regex(r"[\s\S]+"), "")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", model_max_length=512)


def sample_grid(pipe: StableDiffusion3Pipeline, path: Path, captions: list[str] = SAMPLE_CAPTIONS, scale: int = 1) -> None:
    """Two rows for every sixteen captions: seed 0 above seed 1."""
    rows = []
    for start in range(0, len(captions), 16):
        for seed in (0, 1):
            drawn = pipe(
                captions[start : start + 16],
                height=64,
                width=64,
                num_inference_steps=20,
                guidance_scale=3.0,
                max_sequence_length=1,
                generator=torch.Generator().manual_seed(seed),
                output_type="np",
            ).images
            rows.append(np.concatenate(list(drawn), axis=1))
    grid = Image.fromarray((np.concatenate(rows) * 255).round().astype(np.uint8))
    grid.resize((grid.width * scale, grid.height * scale), Image.Resampling.LANCZOS).save(path)
