"""What this distribution offers to polyalign."""

from __future__ import annotations

from polyalign.plugins.hookspecs import hookimpl
from polyalign.plugins.specs import (
    TOKEN_POLICY_PROVIDES,
    DatasetSpec,
    EncoderSpec,
    ModalitySpec,
    PolicySpec,
    RecipeSpec,
    RewardSpec,
)


@hookimpl
def polyalign_modalities() -> list[ModalitySpec]:
    return [
        ModalitySpec(
            name="video",
            summary="Clips: animated WebP, MP4, WebM, Matroska, AVI, QuickTime, animated GIF",
            target="polyalign_video.modality:VideoModality",
            mimes=(
                "image/webp", "video/mp4", "video/webm", "video/x-matroska", "video/x-msvideo", "video/quicktime", "image/gif",
            ),
            media_kind="polyalign_video.clip_kind:ClipKind",
            requires=("av", "PIL"),
        )
    ]  # fmt: skip


@hookimpl
def polyalign_policies() -> list[PolicySpec]:
    return [
        PolicySpec(
            name="video-language",
            summary="a transformers model that reads clips, pictures and text (Qwen2.5-VL), parts frozen, in full or by LoRA",
            target="polyalign_video.video_language:build",
            config="polyalign_video.config:VideoLanguageConfig",
            requires=("torch", "transformers", "peft", "av"),
            family="tokens",
            inputs=("text", "image", "video"),
            outputs=("text",),
            provides=TOKEN_POLICY_PROVIDES,
            fixture="polyalign_video.fixture:fixture",
        ),
        PolicySpec(
            name="text-to-video",
            summary="diffusers text-to-video pipelines: Wan 2.1, CogVideoX and LTX, whole clips or a decision per latent frame",
            target="polyalign_video.text_to_video.policy:build",
            config="polyalign_video.text_to_video.config:TextToVideoConfig",
            requires=("diffusers", "av", "PIL"),
            family="denoising",
            inputs=("text",),
            outputs=("video",),
            provides=("log_probs", "predictions", "sample_grad"),
            switches={"decisions_in_time": "per_frame"},
            fixture="polyalign_video.text_to_video.fixture:fixtures",
        ),
    ]


@hookimpl
def polyalign_encoders() -> list[EncoderSpec]:
    return [
        EncoderSpec(
            name="motion-profile",
            summary="How a clip moves, 80 numbers: changes between frames 1 to 4 apart in 16 cells, and their bent in time",
            target="polyalign_video.motion_encoder:MotionProfile",
            config="polyalign_video.config:MotionProfileConfig",
            inputs=("video",),
        )
    ]


@hookimpl
def polyalign_rewards() -> list[RewardSpec]:
    return [
        RewardSpec(
            name="frames",
            summary="A reward for pictures, of evenly spread frames of a clip, with weights that fall off from the middle",
            target="polyalign_video.frame_reward:FrameReward",
            config="polyalign_video.config:FrameRewardConfig",
            inputs=("text", "video"),
        ),
        RewardSpec(
            name="temporal_consistency",
            summary="Likeness of neighbouring frames, by pixels or an encoder's embeddings",
            target="polyalign_video.temporal_consistency:TemporalConsistency",
            config="polyalign_video.config:TemporalConsistencyConfig",
            inputs=("video",),
        ),
        RewardSpec(
            name="motion",
            summary="How far the thing in a clip makes the move that the prompt names (or one given move)",
            target="polyalign_video.motion_rewards:Motion",
            config="polyalign_video.config:MotionConfig",
            inputs=("text", "video"),
            rule=True,
        ),
        RewardSpec(
            name="motion_amount",
            summary="How much a clip changes from frame to frame is within limits",
            target="polyalign_video.motion_rewards:MotionAmount",
            config="polyalign_video.config:MotionAmountConfig",
            inputs=("video",),
            rule=True,
        ),
    ]


@hookimpl
def polyalign_recipes() -> list[RecipeSpec]:
    recipes = {
        "nft-motion": "DiffusionNFT on a tiny CogVideoX: things move as the caption says, by a rule that follows them",
        "reward-order": "a reward model of how clips move: animations over the same frozen, shuffled or reversed",
    }
    return [
        RecipeSpec(name=f"video/{name}", summary=summary, target=f"polyalign_video:recipes/{name}.yaml")
        for name, summary in recipes.items()
    ]


@hookimpl
def polyalign_datasets() -> list[DatasetSpec]:
    return [
        DatasetSpec(
            name="moving-emoji",
            summary="clips of 8 frames, 32x32, of emoji moved by rule and as animated, with captions, questions and preferences",
            target="polyalign_video.shipped:moving_emoji",
            licence="Fluent Emoji MIT, names MIT",
        ),
        DatasetSpec(
            name="move-prompts",
            summary="captions to ask zoo:tiny-t2v for: a coloured shape and how it moves; no clips",
            target="polyalign_video.shipped:move_prompts",
            licence="CC0-1.0",
        ),
    ]
