"""Responses generated before and after training on the same prompts and seeds, kept in the run directory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyalign.errors import TrainingError
from polyalign.plugins.registry import registry
from polyalign.plugins.specs import ModalitySpec
from polyalign.policies.base import Policy
from polyalign.records.atomic import write_text
from polyalign.records.modality import Modality
from polyalign.records.samples import Prompt
from polyalign.records.schema import MediaPart, Message, text_of
from polyalign.rewards.base import Judged
from polyalign.training.config import ReportConfig

INDEX = "index.json"
PROMPTS_AT_ONCE = 32


@dataclass(frozen=True)
class Response:
    """One generated response: its prompt, its decoded output, and the file (or text) that holds it."""

    prompt: tuple[Message, ...]
    output: Any
    text: str | None
    data: bytes | None
    mime: str | None

    @property
    def prompt_text(self) -> str:
        return text_of(self.prompt[-1].parts)

    def prompt_media(self) -> list[tuple[str, bytes, str]]:
        """Return modality, bytes and mime type of each medium of the prompt, where the prompt carries its media source."""
        source = self.prompt.media if isinstance(self.prompt, Prompt) else None
        refs = [part.media for message in self.prompt for part in message.parts if isinstance(part, MediaPart)]
        return [(ref.modality, source.read(ref), ref.mime) for ref in refs] if source is not None else []

    def judged(self) -> Judged:
        return Judged.of(self.prompt, self.output)


def codec_of(policy: Policy) -> tuple[Modality, str] | None:
    """Return the codec of the policy's output and the mime type to store it as; None for text."""
    outputs = sorted(policy.outputs - {"text"})
    if not outputs:
        return None
    if len(outputs) > 1:
        raise TrainingError(f"reports show one output modality; this policy makes {outputs}")
    spec = registry().get("modalities", outputs[0])
    assert isinstance(spec, ModalitySpec)
    return spec.load()(), spec.mimes[0]


def generate(policy: Policy, prompts: Sequence[tuple[Message, ...]], config: ReportConfig, folder: Path) -> list[Response]:
    """Generate and store responses (skipped if ``folder`` already holds them), prompt-major."""
    codec = codec_of(policy)
    if not (folder / INDEX).exists():
        folder.mkdir(parents=True, exist_ok=True)
        rows = []
        policy.eval()
        for first in range(0, len(prompts), PROMPTS_AT_ONCE):
            rollouts = policy.generate(
                prompts[first : first + PROMPTS_AT_ONCE],
                samples_per_prompt=config.samples_per_prompt,
                seed=config.seed,
                **config.decoding,
            )
            for rollout in rollouts:
                if codec is None:
                    rows.append({"text": str(rollout.output)})
                else:
                    name = f"{len(rows):04d}"
                    (folder / name).write_bytes(codec[0].encode(rollout.output, codec[1]))
                    rows.append({"file": name})
        write_text(folder / INDEX, json.dumps(rows))  # last, so that a killed run starts this over
    return load(policy, prompts, config, folder)


def load(policy: Policy, prompts: Sequence[tuple[Message, ...]], config: ReportConfig, folder: Path) -> list[Response]:
    """Read back stored responses."""
    codec = codec_of(policy)
    rows = json.loads((folder / INDEX).read_text())
    expected = len(prompts) * config.samples_per_prompt
    if len(rows) != expected:
        raise TrainingError(f"{folder} holds {len(rows)} responses, expected {expected}; delete it to generate them again")
    responses = []
    for number, row in enumerate(rows):
        prompt = prompts[number // config.samples_per_prompt]
        if codec is None:
            responses.append(Response(prompt, row["text"], row["text"], None, None))
        else:
            data = (folder / row["file"]).read_bytes()
            responses.append(Response(prompt, codec[0].decode(data), None, data, codec[1]))
    return responses
