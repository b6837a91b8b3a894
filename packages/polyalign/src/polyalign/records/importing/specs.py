"""The importers of core, declared. Light."""

from __future__ import annotations

from polyalign.plugins.specs import ImporterSpec

_MODULE = "polyalign.records.importing"

IMPORTERS: tuple[ImporterSpec, ...] = (
    ImporterSpec(
        name="trl",
        summary="TRL's columns, text and vision: pairs, implicit prompts, unpaired, fine-tuning",
        target=f"{_MODULE}.conversations:TRL",
        layout="prompt, chosen, rejected | chosen, rejected | prompt, completion[, label] | messages; image(s)",
        inputs=("text", "image"),
    ),
    ImporterSpec(
        name="llama-factory",
        summary="LLaMA-Factory's sharegpt: ranking, KTO and fine-tuning rows with media",
        target=f"{_MODULE}.conversations:LlamaFactory",
        layout="conversations of {from, value}[, chosen, rejected | kto_tag][, system][, images, videos, audios]",
        inputs=("text", "image", "video", "audio"),
    ),
    ImporterSpec(
        name="ms-swift",
        summary="ms-swift's messages: pairs, unpaired and fine-tuning rows with media",
        target=f"{_MODULE}.conversations:MsSwift",
        layout="messages of {role, content}[, rejected_response | rejected_messages | label][, images, videos, audios]",
        inputs=("text", "image", "video", "audio"),
    ),
    ImporterSpec(
        name="hh-rlhf",
        summary="HH-RLHF: pairs of whole dialogues",
        target=f"{_MODULE}.text_sets:HHRLHF",
        layout="chosen, rejected: text of turns that begin 'Human:' and 'Assistant:'",
        inputs=("text",),
    ),
    ImporterSpec(
        name="ultrafeedback",
        summary="UltraFeedback: four responses with aspect ratings and rationales",
        target=f"{_MODULE}.text_sets:UltraFeedback",
        layout="instruction, completions of {model, response, annotations{aspect: {Rating, Rationale}}, critique}",
        inputs=("text",),
    ),
    ImporterSpec(
        name="oasst",
        summary="OpenAssistant's conversation trees with ranked replies",
        target=f"{_MODULE}.text_sets:OpenAssistant",
        layout="message_tree_id, message_id, parent_id, text, role, rank | message_tree_id, prompt with replies in replies",
        inputs=("text",),
    ),
    ImporterSpec(
        name="align-anything",
        summary="align-anything-200k, every subset: preferences, ratings and rationales per aspect",
        target=f"{_MODULE}.align_anything:AlignAnything",
        layout="question | prompt; response_1/2 | image_1/2 | ...; overall_*, <aspect>_rate_1/2, <letter>_rationale_1/2",
        inputs=("text", "image", "audio", "video"),
        unverified="columns of text-to-video and text-image-to-text-image, and the letters of audio and video aspects",
    ),
)
