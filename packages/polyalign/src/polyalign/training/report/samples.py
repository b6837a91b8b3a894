"""Responses generated before and after training on the same prompts and seeds, kept in the run directory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyalign.errors import TrainingError
from polyalign.plugins.registry import registry
from polyalign.plugins.specs import ModalitySpec
from polyalign.policies.base import Policy, Rollout
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
    """One generated response: its prompt, its decoded output, and the file (or text) that holds it; ``parts``: the same of each
    thing in a response of several."""

    prompt: tuple[Message, ...]
    output: Any
    text: str | None
    data: bytes | None
    mime: str | None
    modality: str = "text"
    parts: tuple[Response, ...] = ()

    @property
    def things(self) -> tuple[Response, ...]:
        """Return what the response is made of, in order: itself, where it is one thing."""
        return self.parts or (self,)

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


def codecs_of(policy: Policy) -> dict[str, tuple[Modality, str]]:
    """Return the codec of each medium that the policy writes, and the mime type to store it as."""
    specs = {name: registry().get("modalities", name) for name in sorted(policy.outputs - {"text"})}
    return {name: (spec.load()(), spec.mimes[0]) for name, spec in specs.items() if isinstance(spec, ModalitySpec)}


def codec_of(policy: Policy) -> tuple[Modality, str] | None:
    """Return the codec of the policy's output and the mime type to store it as; None for text."""
    codecs = codecs_of(policy)
    if len(codecs) > 1:
        raise TrainingError(f"records of own answers take one output modality; this policy makes {', '.join(codecs)}")
    return next(iter(codecs.values()), None)


def outputs_of(rollout: Rollout, policy: Policy) -> list[tuple[str, Any]]:
    """Return (modality, thing) of each thing that a rollout is made of."""
    if len(rollout.modalities) > 1:
        return list(zip(rollout.modalities, rollout.output, strict=True))
    return [(next(iter(rollout.modalities or policy.outputs - {"text"}), "text"), rollout.output)]


def generate(policy: Policy, prompts: Sequence[tuple[Message, ...]], config: ReportConfig, folder: Path) -> list[Response]:
    """Generate and store responses (skipped if ``folder`` already holds them), prompt-major."""
    if not (folder / INDEX).exists():
        codecs = codecs_of(policy)
        folder.mkdir(parents=True, exist_ok=True)
        rows: list[list[dict[str, str]]] = []
        policy.eval()
        for first in range(0, len(prompts), PROMPTS_AT_ONCE):
            rollouts = policy.generate(
                prompts[first : first + PROMPTS_AT_ONCE],
                samples_per_prompt=config.samples_per_prompt,
                seed=config.seed,
                **config.decoding,
            )
            for rollout in rollouts:
                rows.append([])
                for modality, thing in outputs_of(rollout, policy):
                    if modality == "text":
                        rows[-1].append({"text": str(thing)})
                        continue
                    name = f"{len(rows) - 1:04d}-{len(rows[-1])}"
                    codec, mime = codecs[modality]
                    (folder / name).write_bytes(codec.encode(thing, mime))
                    rows[-1].append({"file": name, "modality": modality})
        write_text(folder / INDEX, json.dumps(rows))  # last, so that a killed run starts this over
    return load(policy, prompts, config, folder)


def kept(run: Path) -> dict[str, list[list[dict[str, str]]]]:
    """Return what a run folder keeps of its report's responses, "before" and "after" training, in their order: the things that
    each is made of, with "text", or with "file" (its path) and "modality"."""
    found = {}
    for folder in sorted(path.parent for path in (run / "samples").glob(f"*/{INDEX}")):
        rows = json.loads((folder / INDEX).read_text())
        whole = [[one | {"file": str(folder / one["file"])} if "file" in one else one for one in row] for row in rows]
        found[folder.name.partition("-")[0]] = whole
    return found


def load(policy: Policy, prompts: Sequence[tuple[Message, ...]], config: ReportConfig, folder: Path) -> list[Response]:
    """Read back stored responses."""
    codecs = codecs_of(policy)
    rows = json.loads((folder / INDEX).read_text())
    expected = len(prompts) * config.samples_per_prompt
    if len(rows) != expected:
        raise TrainingError(f"{folder} holds {len(rows)} responses, expected {expected}; delete it to generate them again")
    responses = []
    for number, row in enumerate(rows):
        prompt = prompts[number // config.samples_per_prompt]
        things = [_read(prompt, one, folder, codecs) for one in row]
        whole = Response(prompt, tuple(one.output for one in things), None, None, None, "mixed", tuple(things))
        responses.append(things[0] if len(things) == 1 else whole)
    return responses


def _read(
    prompt: tuple[Message, ...], stored: dict[str, str], folder: Path, codecs: Mapping[str, tuple[Modality, str]]
) -> Response:
    if "text" in stored:
        return Response(prompt, stored["text"], stored["text"], None, None)
    codec, mime = codecs[stored["modality"]]
    data = (folder / stored["file"]).read_bytes()
    return Response(prompt, codec.decode(data), None, data, mime, stored["modality"])
