"""The `action-tokens` policy: a causal language model reads an instruction and observations and writes actions, token by token.

A response is an episode: ``[observed numbers | action | observed numbers | action ...]``, of which the action's tokens are
decisions. Sources: Gato (arXiv 2205.06175) for the layout, RT-2 and OpenVLA (`action_bins`) for the actions.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyalign.assets import resolve_model
from polyalign.errors import ConfigError
from polyalign.policies import generation
from polyalign.policies.adapters import add_lora
from polyalign.policies.base import Rollout, Rollouts, Tokens, in_batches
from polyalign.policies.completion_mask import Piece, PromptResponseEncoder
from polyalign.policies.pretrained import is_adapter, load, load_model, within_context
from polyalign.policies.tiny_language import byte_tokenizer, tiny_llama
from polyalign.policies.token_features import Lines
from polyalign.policies.tokens import TokenPolicy
from polyalign.randomness import keyed_generator, keyed_seed
from polyalign.records.samples import MediaSource
from polyalign.records.schema import MediaPart, Message, TextPart
from polyalign_action.action_bins import ActionBins, observation_bins
from polyalign_action.action_tokens_config import FRESH, ActionTokensConfig
from polyalign_action.environments import Spaces, open_environment, play, time_limit
from polyalign_action.policy import check_spaces
from polyalign_action.tasks import Task, task_of
from polyalign_action.trajectory import Trajectory, TrajectoryModality

WHAT = "a causal language model"


@dataclass(frozen=True)
class Decoding:
    """``temperature`` 0 takes the likeliest action. ``batch_size``: episodes played at once."""

    temperature: float = 1.0
    batch_size: int = 32


class EpisodeEncoder(PromptResponseEncoder):
    """Tasks to what they ask in words (their seed decides the scene and is not read), and trajectories to tokens."""

    def __init__(self, tokenizer: Any, spaces: Spaces, config: ActionTokensConfig) -> None:
        super().__init__(tokenizer, config.chat_template)
        self.spaces, self.observed = spaces, config.observation_bins
        self.bins = ActionBins(spaces, config.bins, config.low, config.high)
        self.action_ids = np.asarray(tokenizer.convert_tokens_to_ids(action_words(self.bins.count)))
        self.observation_ids = np.asarray(tokenizer.convert_tokens_to_ids(observation_words(self.observed)))
        self.media_ids = frozenset(self.observation_ids.tolist())  # read and not scored
        self.settings = f"{config.low} {config.high}"
        self.codec = TrajectoryModality()

    def prompt(self, prompt: tuple[Message, ...], media: MediaSource | None) -> Piece:
        task = task_of(prompt)
        words = task.instruction or task.environment
        return super().prompt((*prompt[:-1], Message(role="user", parts=(TextPart(text=words),))), media)

    def response(self, response: Sequence[TextPart | MediaPart], media: MediaSource | None) -> Piece:
        parts = [part.media for part in response if isinstance(part, MediaPart)]
        if len(parts) != 1 or media is None:
            return Piece(())  # a rollout's own ids are known
        return Piece(self.ids_of(self.codec.decode(media.read(parts[0]))))

    def ids_of(self, trajectory: Trajectory) -> tuple[int, ...]:
        """Return the episode as ids: each observation but the last, and after it the action. It ends with its last action."""
        check_spaces(trajectory.environment, trajectory, self.spaces)
        steps = [self.ids_of_observations(trajectory.observations[:-1]), self.action_ids[self.bins.of(trajectory.actions)]]
        return tuple(np.concatenate(steps, 1).reshape(-1).tolist())

    def ids_of_observations(self, observations: np.ndarray) -> np.ndarray:
        """Return ``[T, O]`` ids."""
        return self.observation_ids[observation_bins(observations, self.observed)]  # type: ignore[no-any-return]


def action_words(count: int) -> list[str]:
    return [f"<|action {number}|>" for number in range(count)]


def observation_words(count: int) -> list[str]:
    return [f"<|observed {number}|>" for number in range(count)]


class ActionTokensPolicy(TokenPolicy):
    """Tasks to trajectories. Log-probabilities of action tokens are over the whole vocabulary; what is drawn is an action.

    It learns from no teacher (`token_targets`): teachers write text.
    """

    outputs = frozenset({"trajectory"})
    encoder: EpisodeEncoder
    config: ActionTokensConfig

    def __init__(self, model: Any, encoder: EpisodeEncoder, config: ActionTokensConfig, *, value_head: bool = False) -> None:
        super().__init__(model, encoder, config, value_head=value_head)
        self.provides -= {"token_targets"}

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[tuple[Message, ...]], *, samples_per_prompt: int = 1, seed: int = 0, **decoding: Any
    ) -> Rollouts:
        """Return one episode per rollout, prompt-major; ``output`` is its `Trajectory`. ``decoding``: see `Decoding`.

        What a rollout does depends on (seed, prompt, sample number). A task's own seed resets the environment.
        """
        if unknown := sorted(set(decoding) - set(Decoding.__dataclass_fields__)):
            raise ConfigError(f"unknown decoding setting {unknown[0]!r} of action tokens; known: batch_size, temperature")
        settings = Decoding(**decoding)
        jobs = [(prompt, number) for prompt in prompts for number in range(samples_per_prompt)]
        return in_batches(
            self, jobs, settings.batch_size, lambda part: generation.scored(self, self._played(part, seed, settings))
        )

    def _played(self, jobs: Sequence[tuple[tuple[Message, ...], int]], seed: int, decoding: Decoding) -> list[Rollout]:
        tasks = [task_of(prompt) for prompt, _ in jobs]
        with ExitStack() as stack:
            environments = [stack.enter_context(closing(self._open(task))) for task in tasks]
            limit = min(time_limit(environments[0], self.config.max_steps), self.longest)
            starts = [
                keyed_seed(seed, "start", task.text, number) if task.seed is None else task.seed
                for task, (_, number) in zip(tasks, jobs)
            ]
            keys = [keyed_generator(seed, "act", task.text, number) for task, (_, number) in zip(tasks, jobs)]
            noise = torch.stack([torch.rand(limit, self.encoder.bins.per_step, generator=key).double() for key in keys])
            writer = EpisodeWriter(self, [prompt for prompt, _ in jobs], noise, decoding.temperature)
            episodes = play(environments, starts, [limit] * len(jobs), self.encoder.spaces, writer.act)
        recorded = {**asdict(decoding), "seed": seed, "max_new_tokens": self.collator.max_response}
        paid = (*(0,) * (self.encoder.bins.per_step - 1), 1)  # an action's last token gets what its step earned
        return [
            Rollout(
                prompt,
                replace(episode, paid=paid * len(episode)),
                (Tokens(torch.tensor(self.encoder.ids_of(episode))),),
                decoding=recorded,
            )
            for (prompt, _), episode in zip(jobs, episodes)
        ]

    def _lines(self, device: torch.device) -> Lines:
        """Every number of an action ends a step, for rewards of steps: vocabulary to (ends a step, is content), ``[V]``."""
        acts = torch.zeros(self.vocabulary_size, dtype=torch.bool)
        acts[torch.from_numpy(self.encoder.action_ids)] = True
        return acts.to(device), acts.to(device)

    @property
    def longest(self) -> int:
        """Return how many steps a response has room for."""
        return self.collator.max_response // (self.encoder.spaces.observation + self.encoder.bins.per_step)

    def _open(self, task: Task) -> Any:
        environment = open_environment(task.environment)
        if (found := Spaces.of(environment)) != self.encoder.spaces:
            raise ConfigError(
                f"a prompt names {task.environment!r} with {found}; the policy was built for {self.config.environment!r}: "
                f"{self.encoder.spaces}"
            )
        return environment


class EpisodeWriter:
    """Writes episodes of R prompts side by side, reading each token once. Rows whose episode has ended read on, unheeded.

    ``noise`` ``[R, steps, A]`` on [0, 1): draws that pick bins by inverting their cumulative distribution.
    """

    def __init__(self, policy: ActionTokensPolicy, prompts: Sequence[Any], noise: Tensor, temperature: float) -> None:
        from transformers import DynamicCache

        self.model, self.encoder = policy.model, policy.encoder
        rows = [policy.collator.generation_prompt(prompt, policy.collator.max_response) for prompt in prompts]
        self.unread, self.attended = generation.left_padded(rows, policy.collator.pad_id)
        self.noise, self.temperature, self.cache = noise, temperature, DynamicCache()

    def act(self, observations: Tensor, numbers: Sequence[int], step: int) -> Tensor:
        """Return the actions of these rows, having read their observations ``[n, O]``."""
        seen = torch.full((len(self.noise), observations.shape[1]), int(self.encoder.observation_ids[0]))
        seen[list(numbers)] = torch.from_numpy(self.encoder.ids_of_observations(observations.numpy()))
        self._append(seen)
        bins = []
        for dimension in range(self.encoder.bins.per_step):
            picked = self._picked(self._next_logits(), self.noise[:, step, dimension])
            self._append(torch.from_numpy(self.encoder.action_ids)[picked][:, None])
            bins.append(picked)
        return torch.from_numpy(self.encoder.bins.middle(torch.stack(bins, 1)[list(numbers)].numpy()))

    def _append(self, ids: Tensor) -> None:
        self.unread = torch.cat([self.unread, ids], 1)
        self.attended = torch.cat([self.attended, torch.ones_like(ids)], 1)

    def _next_logits(self) -> Tensor:
        """Read what is unread; return the logits ``[R, bins]`` of the action tokens that may follow."""
        device, new = self.model.device, self.unread.shape[1]
        places = (self.attended.cumsum(1) - 1).clamp(min=0)[:, -new:]
        logits = self.model(
            input_ids=self.unread.to(device),
            attention_mask=self.attended.to(device),
            position_ids=places.to(device),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        self.unread = self.unread[:, :0]
        return logits[:, torch.from_numpy(self.encoder.action_ids).to(device)].double().cpu()

    def _picked(self, logits: Tensor, draw: Tensor) -> Tensor:
        if self.temperature == 0:
            return logits.argmax(-1)
        cumulative = torch.softmax(logits / self.temperature, -1).cumsum(-1)
        return torch.searchsorted(cumulative, draw[:, None] * cumulative[:, -1:], right=True)[:, 0].clamp(max=logits.shape[1] - 1)


def build(config: ActionTokensConfig, *, device: str | torch.device = "cpu", seed: int = 0) -> ActionTokensPolicy:
    """Return the policy at its starting weights; ``seed`` keys fresh ones, LoRA and the embeddings of words new to the base."""
    with closing(open_environment(config.environment)) as environment:
        spaces = Spaces.of(environment)
    if not spaces.discrete and not config.low and not np.isfinite([*spaces.low, *spaces.high]).all():
        raise ConfigError(f"the actions of {config.environment!r} have no bounds; set policy.low and policy.high")
    words = action_words(ActionBins(spaces, config.bins).count) + observation_words(config.observation_bins)
    if config.base.startswith(FRESH):
        model, tokenizer = fresh(config.base, words, config.max_length, seed)
        model.to(device)
    else:
        model, tokenizer, config = _extended(config, words, device, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed_seed(seed, "value_head"))
        policy = ActionTokensPolicy(model, EpisodeEncoder(tokenizer, spaces, config), config, value_head=config.value_head)
    policy.merged_base = not config.base.startswith(FRESH) and is_adapter(resolve_model(config.base))
    return policy


def fresh(base: str, words: Sequence[str], longest: int, seed: int) -> tuple[Any, Any]:
    """Return (model, tokenizer) for ``fresh:LAYERSxWIDTH``: random weights over bytes and ``words``."""
    layers, times, width = base.removeprefix(FRESH).partition("x")
    if not (times and layers.isdecimal() and width.isdecimal() and int(width) % 8 == 0):
        raise ConfigError(f"policy.base {base!r} must be fresh:LAYERSxWIDTH with a width that 8 divides, such as fresh:2x64")
    tokenizer = byte_tokenizer(more=words)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = tiny_llama(len(tokenizer), layers=int(layers), hidden=int(width), seed=seed, **ends)
    model.config.max_position_embeddings = longest  # rotary: nothing is stored per position
    return model, tokenizer


def _extended(
    config: ActionTokensConfig, words: Sequence[str], device: str | torch.device, seed: int
) -> tuple[Any, Any, ActionTokensConfig]:
    """Return the recipe's base with ``words`` in its vocabulary, and the configuration within its context."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = resolve_model(config.base)
    tokenizer = load(AutoTokenizer, WHAT, folder, config)
    model = load_model(AutoModelForCausalLM, WHAT, folder, config, device)
    if tokenizer.add_special_tokens({"additional_special_tokens": list(words)}, replace_extra_special_tokens=False):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(keyed_seed(seed, "words"))
            model.resize_token_embeddings(max(len(tokenizer), model.get_input_embeddings().num_embeddings))
    if config.lora is not None:
        named = {id(module): name for name, module in model.named_modules()}
        ends = [named[id(module)] for module in (model.get_input_embeddings(), model.get_output_embeddings())]
        add_lora(model, config.lora, seed, in_full=ends)  # new words are learned by nothing else
    return model, tokenizer, within_context(config, model.config.get_text_config())
