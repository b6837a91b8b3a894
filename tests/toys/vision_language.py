"""Tiny random models of transformers' image-text-to-text architectures, each with a processor of its own kind.

`ARCHITECTURES` maps a name to a builder of (model, processor). Weights are drawn wider than usual, so that a feature put in the
wrong place, a wrong position or a wrong mask changes log-probabilities by far more than rounding does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as t
from transformers.models.smolvlm import processing_smolvlm as smolvlm_processing

from polyalign.policies.tiny_language import byte_tokenizer

HIDDEN, PATCH = 32, 4
TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}PICTURE{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
VISION = {"hidden_size": HIDDEN, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1], "partial_rotary_factor": 1.0}


def tokenizer_of(picture: str = "<image>", more: tuple[str, ...] = (), **named: str) -> Any:
    """Return the byte tokenizer with special tokens; ``picture`` is what the chat template prints for a picture, and ``named``
    tokens are attributes as processors look them up (``image_token``, and ``image_token_id`` with it)."""
    tokens = dict.fromkeys((*named.values(), *more, "<image>"))
    tokenizer = byte_tokenizer(TEMPLATE.replace("PICTURE", picture), more=list(tokens))
    tokenizer._set_model_specific_special_tokens(named)
    return tokenizer


def text(kind: Any, tokenizer: Any, **more: Any) -> Any:
    """Return a configuration of the language model for the tokenizer's vocabulary."""
    return kind(
        **{
            "vocab_size": len(tokenizer), "hidden_size": HIDDEN, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024, "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, **more,
        }
    )  # fmt: skip


def made(kind: Any, config: Any) -> Any:
    """Return the model with weights that depend on nothing but its architecture."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = kind(config)
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 or "newline" in name or "bias" in name:
                parameter.normal_(0, 0.2)
    return model.eval()


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def clip_vision() -> Any:
    return t.CLIPVisionConfig(**VISION, image_size=16, patch_size=PATCH)


def siglip_vision(**more: Any) -> Any:
    return t.SiglipVisionConfig(**VISION, **{"image_size": 16, "patch_size": PATCH, "vision_use_head": False, **more})


def llava() -> tuple[Any, Any]:
    tokenizer = tokenizer_of()
    pictures = t.CLIPImageProcessorPil(size=square(16), crop_size=square(16), do_center_crop=False)
    processor = t.LlavaProcessor(
        pictures, tokenizer, patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    config = t.LlavaConfig(
        vision_config=clip_vision(), text_config=text(t.LlamaConfig, tokenizer), image_token_index=processor.image_token_id
    )
    return made(t.LlavaForConditionalGeneration, config), processor


def vipllava() -> tuple[Any, Any]:
    _, processor = llava()
    config = t.VipLlavaConfig(
        vision_config=clip_vision(), text_config=text(t.LlamaConfig, processor.tokenizer), vision_feature_layer=[-1, -2],
        image_token_index=processor.image_token_id,
    )  # fmt: skip
    return made(t.VipLlavaForConditionalGeneration, config), processor


def llava_next() -> tuple[Any, Any]:
    tokenizer, grid = tokenizer_of(), [[16, 32], [32, 16], [32, 32]]
    pictures = t.LlavaNextImageProcessorPil(size={"shortest_edge": 16}, crop_size=square(16), image_grid_pinpoints=grid)
    processor = t.LlavaNextProcessor(
        pictures, tokenizer, patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    config = t.LlavaNextConfig(
        vision_config=clip_vision(), text_config=text(t.LlamaConfig, tokenizer), image_grid_pinpoints=grid,
        image_token_index=processor.image_token_id,
    )  # fmt: skip
    return made(t.LlavaNextForConditionalGeneration, config), processor


def llava_onevision() -> tuple[Any, Any]:
    tokenizer, grid = tokenizer_of(more=("<video>",)), [[16, 16], [16, 32], [32, 16], [32, 32]]
    pictures = t.LlavaOnevisionImageProcessorPil(size=square(16), image_grid_pinpoints=grid)
    processor = t.LlavaOnevisionProcessor(
        pictures, tokenizer, t.LlavaOnevisionVideoProcessor(size=square(16)), num_image_tokens=16,
        vision_feature_select_strategy="full",
    )  # fmt: skip
    config = t.LlavaOnevisionConfig(
        vision_config=siglip_vision(), text_config=text(t.Qwen2Config, tokenizer), image_grid_pinpoints=grid,
        image_token_index=processor.image_token_id, video_token_index=processor.video_token_id,
    )  # fmt: skip
    return made(t.LlavaOnevisionForConditionalGeneration, config), processor


QWEN = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
QWEN_PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"


def qwen(processor: Any, video: Any) -> tuple[Any, dict[str, int]]:
    """Return the processor and the ids of its special tokens, as the configurations of Qwen models name them."""
    tokenizer = tokenizer_of(QWEN_PICTURE, QWEN)
    sizes = {"patch_size": PATCH, "min_pixels": 64, "max_pixels": 1024}
    made = processor(t.Qwen2VLImageProcessorPil(**sizes), tokenizer, video(**sizes))
    names = ("vision_start", "vision_end", "image", "video")
    return made, {f"{name}_token_id": tokenizer.convert_tokens_to_ids(token) for name, token in zip(names, QWEN)}


def qwen2_vl() -> tuple[Any, Any]:
    processor, ids = qwen(t.Qwen2VLProcessor, t.Qwen2VLVideoProcessor)
    config = t.Qwen2VLConfig(
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": HIDDEN, "num_heads": 2, "patch_size": PATCH, "mlp_ratio": 2},
        text_config=text(t.Qwen2VLTextConfig, processor.tokenizer, rope_parameters=MROPE).to_dict(), **ids,
    )  # fmt: skip
    return made(t.Qwen2VLForConditionalGeneration, config), processor


def qwen2_5_vl() -> tuple[Any, Any]:
    processor, ids = qwen(t.Qwen2_5_VLProcessor, t.Qwen2VLVideoProcessor)
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": PATCH, "out_hidden_size": HIDDEN,
        "window_size": 16, "fullatt_block_indexes": [1],
    }  # fmt: skip
    language = text(t.Qwen2_5_VLTextConfig, processor.tokenizer, rope_parameters=MROPE)
    config = t.Qwen2_5_VLConfig(vision_config=vision, text_config=language.to_dict(), **ids)
    return made(t.Qwen2_5_VLForConditionalGeneration, config), processor


def qwen3_vl() -> tuple[Any, Any]:
    processor, ids = qwen(t.Qwen3VLProcessor, t.Qwen3VLVideoProcessor)
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": PATCH, "out_hidden_size": HIDDEN,
        "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip
    language = text(t.Qwen3VLTextConfig, processor.tokenizer, head_dim=8, num_hidden_layers=3, rope_parameters=MROPE)
    config = t.Qwen3VLConfig(vision_config=vision, text_config=language.to_dict(), **ids)
    return made(t.Qwen3VLForConditionalGeneration, config), processor


def glm4v() -> tuple[Any, Any]:
    tokens = ("<|image|>", "<|video|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>")
    tokenizer = tokenizer_of("<|begin_of_image|><|image|><|end_of_image|>", tokens)
    pictures, videos = (
        kind(patch_size=PATCH, size={"shortest_edge": 128, "longest_edge": 2048})
        for kind in (t.Glm4vImageProcessorPil, t.Glm4vVideoProcessor)
    )
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": PATCH, "out_hidden_size": HIDDEN,
        "image_size": 16,
    }  # fmt: skip
    names = ("image", "video", "image_start", "image_end", "video_start", "video_end")
    ids = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(token) for name, token in zip(names, tokens)}
    language = text(t.Glm4vTextConfig, tokenizer, rope_parameters=MROPE)
    config = t.Glm4vConfig(vision_config=vision, text_config=language.to_dict(), **ids)
    return made(t.Glm4vForConditionalGeneration, config), t.Glm4vProcessor(pictures, tokenizer, videos)


IDEFICS = ("<image>", "<fake_token_around_image>", "<end_of_utterance>")


def idefics3() -> tuple[Any, Any]:
    tiles = tuple(f"<row_{row}_col_{column}>" for row in (1, 2, 3) for column in (1, 2, 3))
    tokenizer = tokenizer_of(more=(*IDEFICS, "<global-img>", *tiles))
    pictures = t.Idefics3ImageProcessorPil(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
    config = t.Idefics3Config(
        vision_config=dict(VISION, image_size=16, patch_size=PATCH), scale_factor=2,
        text_config=text(t.LlamaConfig, tokenizer), image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    return made(t.Idefics3ForConditionalGeneration, config), t.Idefics3Processor(pictures, tokenizer, image_seq_len=4)


def smolvlm() -> tuple[Any, Any]:
    smolvlm_processing.num2words = smolvlm_processing.num2words or str  # an extra dependency, which only videos use
    tiles = tuple(f"<row_{row}_col_{column}>" for row in (1, 2, 3) for column in (1, 2, 3))
    tokenizer = tokenizer_of(
        more=tiles, image_token="<image>", fake_image_token="<fake_token_around_image>",
        end_of_utterance_token="<end_of_utterance>", global_image_token="<global-img>",
    )  # fmt: skip
    pictures = t.SmolVLMImageProcessorPil(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
    videos = t.SmolVLMVideoProcessor(size={"longest_edge": 16}, max_image_size={"longest_edge": 16})
    config = t.SmolVLMConfig(
        vision_config=dict(VISION, image_size=16, patch_size=PATCH), scale_factor=2,
        text_config=text(t.LlamaConfig, tokenizer), image_token_id=tokenizer.image_token_id,
    )  # fmt: skip
    return made(t.SmolVLMForConditionalGeneration, config), t.SmolVLMProcessor(pictures, tokenizer, videos, image_seq_len=4)


def idefics2() -> tuple[Any, Any]:
    tokenizer = tokenizer_of(more=IDEFICS)
    pictures = t.Idefics2ImageProcessorPil(size={"shortest_edge": 16, "longest_edge": 24}, do_image_splitting=False)
    config = t.Idefics2Config(
        vision_config=dict(VISION, image_size=24, patch_size=PATCH),
        perceiver_config={
            "hidden_size": HIDDEN, "resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 2,
            "resampler_head_dim": 8, "num_key_value_heads": 1,
        },
        text_config=text(t.MistralConfig, tokenizer, head_dim=8),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    return made(t.Idefics2ForConditionalGeneration, config), t.Idefics2Processor(pictures, tokenizer, image_seq_len=4)


def internvl() -> tuple[Any, Any]:
    tokenizer = tokenizer_of(
        "<IMG_CONTEXT>", start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )  # fmt: skip
    pictures = t.GotOcr2ImageProcessorPil(size=square(16), crop_to_patches=True, max_patches=4)
    processor = t.InternVLProcessor(pictures, tokenizer, t.InternVLVideoProcessor(size=square(16)), image_seq_length=4)
    config = t.InternVLConfig(
        vision_config=dict(VISION, image_size=[16, 16], patch_size=[PATCH, PATCH]), image_seq_length=4,
        text_config=text(t.Qwen2Config, tokenizer), image_token_id=processor.image_token_id,
    )  # fmt: skip
    return made(t.InternVLForConditionalGeneration, config), processor


def gemma3() -> tuple[Any, Any]:
    tokenizer = tokenizer_of(
        "<start_of_image>", boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>"
    )
    pictures = t.Gemma3ImageProcessorPil(size=square(16))
    language = text(
        t.Gemma3TextConfig, tokenizer, head_dim=8, query_pre_attn_scalar=8, sliding_window=24,
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    config = t.Gemma3Config(
        vision_config=siglip_vision(), text_config=language, mm_tokens_per_image=4, image_token_index=tokenizer.image_token_id,
        boi_token_index=tokenizer.boi_token_id, eoi_token_index=tokenizer.eoi_token_id,
    )  # fmt: skip
    return made(t.Gemma3ForConditionalGeneration, config), t.Gemma3Processor(pictures, tokenizer, image_seq_length=4)


def paligemma() -> tuple[Any, Any]:
    """Without a chat template, as published: pictures first, then the question, a newline and the answer."""
    tokenizer = tokenizer_of(more=("<bos>",), image_token="<image>")
    tokenizer.chat_template, tokenizer.bos_token = None, "<bos>"
    pictures = t.SiglipImageProcessorPil(size=square(16))
    pictures.image_seq_length = 16
    processor = t.PaliGemmaProcessor(pictures, tokenizer)
    language = text(t.GemmaConfig, tokenizer, head_dim=8)
    config = t.PaliGemmaConfig(
        vision_config=siglip_vision(projection_dim=HIDDEN), text_config=language, projection_dim=HIDDEN, hidden_size=HIDDEN,
        vocab_size=len(tokenizer), image_token_index=processor.image_token_id,
    )  # fmt: skip
    return made(t.PaliGemmaForConditionalGeneration, config), processor


def mistral3() -> tuple[Any, Any]:
    tokenizer = tokenizer_of("[IMG]", more=("[IMG]", "[IMG_BREAK]", "[IMG_END]"))
    pictures = t.PixtralImageProcessorPil(size={"longest_edge": 32}, patch_size=square(PATCH))
    processor = t.PixtralProcessor(pictures, tokenizer, patch_size=PATCH, spatial_merge_size=2)
    config = t.Mistral3Config(
        vision_config=t.PixtralVisionConfig(**VISION, image_size=32, patch_size=PATCH),
        text_config=text(t.MistralConfig, tokenizer, head_dim=8, sliding_window=None),
        image_token_index=processor.image_token_id,
    )
    return made(t.Mistral3ForConditionalGeneration, config), processor


def aya_vision() -> tuple[Any, Any]:
    tiles = ("<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>", "TILE", "TILE_GLOBAL")
    tokenizer = tokenizer_of(more=tiles)
    pictures = t.GotOcr2ImageProcessorPil(size=square(16), crop_to_patches=True, max_patches=4)
    processor = t.AyaVisionProcessor(pictures, tokenizer, patch_size=PATCH, img_size=16, downsample_factor=2)
    config = t.AyaVisionConfig(
        vision_config=siglip_vision(), text_config=text(t.Cohere2Config, tokenizer, sliding_window=24, logit_scale=0.25),
        image_token_index=processor.image_token_id,
    )  # fmt: skip
    return made(t.AyaVisionForConditionalGeneration, config), processor


def cohere2_vision() -> tuple[Any, Any]:
    tokenizer = tokenizer_of(
        "<|IMG_PATCH|>", boi_token="<|START_OF_IMG|>", eoi_token="<|END_OF_IMG|>", image_token="<|IMG_PATCH|>",
        img_line_break_token="<|IMG_LINE_BREAK|>",
    )  # fmt: skip
    pictures = t.Cohere2VisionImageProcessor(size=square(16), patch_size=2, max_patches=4)
    config = t.Cohere2VisionConfig(
        vision_config=siglip_vision(), text_config=text(t.Cohere2Config, tokenizer, sliding_window=24, logit_scale=0.25),
        image_token_id=tokenizer.image_token_id, alignment_intermediate_size=64,
    )  # fmt: skip
    return made(t.Cohere2VisionForConditionalGeneration, config), t.Cohere2VisionProcessor(pictures, tokenizer)


def ovis2() -> tuple[Any, Any]:
    marks = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
    tokenizer = tokenizer_of(more=("<IMG_ATOM>", *marks))
    pictures = t.Ovis2ImageProcessorPil(size=square(16), crop_to_patches=True, max_patches=4)
    config = t.Ovis2Config(
        vision_config=dict(VISION, image_size=16, patch_size=PATCH, hidden_stride=2, vocab_size=40),
        text_config=text(t.Qwen2Config, tokenizer), image_token_id=tokenizer.convert_tokens_to_ids("<IMG_ATOM>"),
        visual_indicator_token_ids=tokenizer.convert_tokens_to_ids(list(marks)), vocab_size=len(tokenizer), hidden_size=HIDDEN,
    )  # fmt: skip
    return made(t.Ovis2ForConditionalGeneration, config), t.Ovis2Processor(pictures, tokenizer, image_seq_length=4)


def lfm2_vl() -> tuple[Any, Any]:
    tokens = ("<|image_start|>", "<|image_end|>", "<|img_thumbnail|>")
    tokenizer = tokenizer_of(more=tokens, image_token="<image>")
    pictures = t.Lfm2VlImageProcessor(
        encoder_patch_size=PATCH, tile_size=16, min_image_tokens=2, max_image_tokens=16, max_tiles=4, do_image_splitting=False,
        max_num_patches=64,
    )  # fmt: skip
    config = t.Lfm2VlConfig(
        vision_config=t.Siglip2VisionConfig(**VISION, num_patches=16, patch_size=PATCH, vision_use_head=False),
        text_config=text(t.Lfm2Config, tokenizer, layer_types=["conv", "full_attention"]),
        image_token_id=tokenizer.image_token_id, projector_hidden_size=32,
    )  # fmt: skip
    return made(t.Lfm2VlForConditionalGeneration, config), t.Lfm2VlProcessor(pictures, tokenizer)


def perception_lm() -> tuple[Any, Any]:
    tokenizer = tokenizer_of(image_token="<image>", video_token="<video>")
    pictures = t.PerceptionLMImageProcessor(tile_size=16, max_num_tiles=4)
    videos = t.PerceptionLMVideoProcessor(size=square(16))
    processor = t.PerceptionLMProcessor(videos, pictures, tokenizer, patch_size=PATCH, pooling_ratio=2)
    vision = {
        "embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": (16, 16), "patch_size": PATCH, "ref_feat_shape": (4, 4),
        "global_pool": "", "use_post_transformer_norm": False,
    }  # fmt: skip
    config = t.PerceptionLMConfig(
        vision_config=t.TimmWrapperConfig(architecture="vit_pe_core_tiny_patch16_384", model_args=vision),
        text_config=text(t.LlamaConfig, tokenizer), projector_pooling_ratio=2, image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
    )  # fmt: skip
    return made(t.PerceptionLMForConditionalGeneration, config), processor


BUILDERS = (
    llava, vipllava, llava_next, llava_onevision, qwen2_vl, qwen2_5_vl, qwen3_vl, glm4v, idefics2, idefics3, smolvlm, internvl,
    gemma3, paligemma, mistral3, aya_vision, cohere2_vision, ovis2, lfm2_vl, perception_lm,
)  # fmt: skip
ARCHITECTURES: dict[str, Callable[[], tuple[Any, Any]]] = {builder.__name__: builder for builder in BUILDERS}
