"""Who answers, criticises and refines: a policy, a chat endpoint, or a function of one's own. All look the same from here."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from polyalign.config import load_recipe
from polyalign.errors import RewardError
from polyalign.evaluation.run import load_weights
from polyalign.evaluation.self_samples import parts_of
from polyalign.policies.adapters import trainable
from polyalign.policies.base import Policy
from polyalign.policies.fingerprint import weights_fingerprint
from polyalign.randomness import keyed_seed
from polyalign.records.samples import Prompt
from polyalign.records.schema import MediaPart, Part, TextPart
from polyalign.records.store import MediaStore
from polyalign.rewards.functions import user_function
from polyalign.rewards.judge.client import ChatClient, Question
from polyalign.rewards.judge.conversation import chat_messages
from polyalign.synthesis.config import WriterConfig
from polyalign.synthesis.stages import Stages
from polyalign.training.report.samples import PROMPTS_AT_ONCE, codec_of

Parts = tuple[TextPart | MediaPart, ...]
_PARTS: TypeAdapter[Parts] = TypeAdapter(tuple[Part, ...])


@dataclass(frozen=True)
class Request:
    """What somebody is to write. ``messages`` are what a model is shown, ``material()`` what a function is given in their place;
    ``number`` tells repeated requests apart."""

    messages: Prompt
    material: Callable[[], Sequence[Any]]
    number: int = 0


class Writer(ABC):
    """``name`` goes into the records; ``key`` is JSON data that names everything an answer depends on besides the request."""

    name: str
    key: Any
    at_once = 1

    @abstractmethod
    def write(self, requests: Sequence[Request], store: MediaStore) -> list[Parts]:
        """Return what is written for each request; media go into the store."""

    def written(self, stage: str, requests: Sequence[Request], stages: Stages) -> list[Parts]:
        """Return the same, keeping each result among those of ``stage``."""
        found = stages.results(
            stage,
            requests,
            lambda request: [self.key, [message.model_dump(mode="json") for message in request.messages], request.number],
            lambda part: [_PARTS.dump_python(parts, mode="json") for parts in self.write(part, stages.media)],
            self.at_once,
        )
        return [_PARTS.validate_python(parts) for parts in found]


class PolicyWriter(Writer):
    """A model being aligned, or any other that a plugin adapts. Request k of a prompt is drawn from the seed's k-th stream."""

    at_once = PROMPTS_AT_ONCE

    def __init__(self, policy: Policy, name: str, config: WriterConfig, *, trained: bool) -> None:
        self.policy, self.name, self.config, self.codec = policy.eval(), name, config, codec_of(policy)
        weights = weights_fingerprint(trainable(policy).items()) if trained else ""
        self.key = [policy.fingerprint(), weights, config.decoding, config.seed]

    def write(self, requests: Sequence[Request], store: MediaStore) -> list[Parts]:
        written: dict[int, Parts] = {}
        order = sorted(range(len(requests)), key=lambda at: requests[at].number)
        for number, members in groupby(order, key=lambda at: requests[at].number):
            at = list(members)
            prompts, seed = [requests[one].messages for one in at], keyed_seed(self.config.seed, "synthesis", number)
            for one, rollout in zip(at, self.policy.generate(prompts, seed=seed, **self.config.decoding), strict=True):
                written[one] = parts_of(rollout, self.codec, store)
        return [written[at] for at in range(len(requests))]


class EndpointWriter(Writer):
    """A model behind a chat endpoint. Replies are cached one by one by the client too."""

    def __init__(self, config: WriterConfig) -> None:
        assert config.endpoint is not None
        endpoint = config.endpoint
        self.client, self.name, self.at_once = ChatClient(endpoint), endpoint.model, 8 * endpoint.concurrency
        asked = ("base_url", "model", "temperature", "max_reply_tokens", "extra")
        self.key = [{name: getattr(endpoint, name) for name in asked}, config.seed]
        self.seed = config.seed

    def write(self, requests: Sequence[Request], store: MediaStore) -> list[Parts]:
        asked = [Question(chat_messages(request.messages), self.seed + request.number) for request in requests]
        return [(TextPart(text=reply),) for reply in self.client.ask(asked)]


class FunctionWriter(Writer):
    """A rule. It is given the material and its options, and returns text."""

    def __init__(self, config: WriterConfig) -> None:
        assert config.function is not None
        self.function, self.options = user_function(config.function), config.options
        path, _, function = config.function.rpartition(":")
        self.name = f"{Path(path).name}:{function}"
        source = Path(inspect.getsourcefile(self.function) or path).read_text(encoding="utf-8")
        self.key = [function, source, config.options, config.seed]

    def write(self, requests: Sequence[Request], store: MediaStore) -> list[Parts]:
        return [(TextPart(text=self._text(request.material())),) for request in requests]

    def _text(self, material: Sequence[Any]) -> str:
        try:
            inspect.signature(self.function).bind(*material, **self.options)
        except TypeError as error:
            names = ("prompt", "output", "critique")[: len(material)]
            raise RewardError(f"{self.name!r} cannot be called with ({', '.join(names)}) and its options: {error}") from error
        text = self.function(*material, **self.options)
        if not isinstance(text, str):
            raise RewardError(f"{self.name!r} returned {text!r}; expected text")
        return text


class Writers:
    """Makes writers, each once however many roles it has."""

    def __init__(self) -> None:
        self._made: dict[str, Writer] = {}

    def get(self, config: WriterConfig) -> Writer:
        """Return the writer that the configuration describes."""
        key = config.model_dump_json()
        if key not in self._made:
            self._made[key] = writer_of(config)
        return self._made[key]


def writer_of(config: WriterConfig) -> Writer:
    """Return the writer that the configuration describes; a model's weights are loaded."""
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    if config.function is not None:
        return FunctionWriter(config)
    if config.endpoint is not None:
        return EndpointWriter(config)
    if config.policy is not None:
        return PolicyWriter(config.policy.load(device), config.policy.name, config, trained=False)
    assert config.run is not None
    folder = Path(config.run)
    resolved = load_recipe(config.run)
    policy: Policy = resolved.policy_spec.load()(resolved.policy_config, device=device, seed=resolved.recipe.training.seed)
    step = load_weights(policy, folder)
    return PolicyWriter(policy, f"{resolved.recipe.name} step {step}", config, trained=True)
