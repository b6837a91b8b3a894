"""The `uniact` policy: a shared extractor chooses a universal action, a head of each body carries it out.

Source: UniAct (Zheng et al. 2025, arXiv 2501.10105; 2toinf/UniAct). There the extractor is a vision-language model over a picture
and the heads see it through a ResNet; here both see the numbers that an environment gives, and words are hashed. Each action is
a decision (the paper's heads give four at once).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from polyalign.errors import ConfigError
from polyalign.policies.base import Batch, Kind, Policy, Rollouts, Scores
from polyalign.policies.continuous import ActionHead, CategoricalHead, network
from polyalign.policies.fingerprint import weights_fingerprint
from polyalign.policies.logprobs import scatter
from polyalign.randomness import keyed_generator
from polyalign.records.samples import Sample
from polyalign.records.schema import Message
from polyalign_action.codebook import GumbelCodebook, gumbel
from polyalign_action.environments import Spaces, open_environment
from polyalign_action.huber_head import HuberHead
from polyalign_action.modulated import ModulatedPerceptron
from polyalign_action.playing import Decoding, Outputs, played
from polyalign_action.policy import TrajectoryCollator, check_spaces
from polyalign_action.saved import restore, write_model
from polyalign_action.tasks import Task, task_of
from polyalign_action.trajectory import Trajectory
from polyalign_action.uniact_config import UniActConfig


class UniActCollator(TrajectoryCollator):
    """Trajectories of several bodies as padded tensors. With N samples, T steps in the longest, W word columns, and O observed
    numbers and A of an action in the body that has most: ``observations`` ``[N, T, O]``, ``actions`` ``[N, T, A]``, ``words``
    ``[N, W]``, ``body`` ``[N]``, and ``noise`` ``[N, T, K]`` on the K codes, keyed so that chosen, rejected and reference
    share it."""

    def __init__(self, spaces: Mapping[str, Spaces], config: UniActConfig) -> None:
        super().__init__(next(iter(spaces.values())), goal=0, instruction=config.words)
        self.bodies = dict(spaces)
        self.numbers = {name: number for number, name in enumerate(spaces)}
        self.widest = max(mine.observation for mine in spaces.values()), max(mine.actions for mine in spaces.values())
        self.codes = config.codes if config.noise and config.choice in ("soft", "straight_through") else 0

    def layout(self, samples: Sequence[Sample], trajectories: Sequence[Trajectory], cache: bool = True) -> Batch:
        tasks = [task_of(sample.prompt) for sample in samples]
        for sample, task, trajectory in zip(samples, tasks, trajectories):
            check_spaces(sample.id, trajectory, self.spaces_in(task.environment))
        lengths = torch.tensor([len(trajectory) for trajectory in trajectories])
        mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
        firsts = [self.bodies[task.environment].first for task in tasks]
        tensors = {
            "observations": _padded([trajectory.observations[:-1] for trajectory in trajectories], self.widest[0]),
            "actions": _padded([trajectory.actions - first for trajectory, first in zip(trajectories, firsts)], self.widest[1]),
            "words": torch.stack([self.asked(task) for task in tasks]),
            "body": torch.tensor([self.numbers[task.environment] for task in tasks]),
        }
        if self.codes and cache:  # data; what the policy did itself, it did without noise
            keys = [keyed_generator(sample.draw_key, sample.epoch, "codes") for sample in samples]
            drawn = [gumbel(len(trajectory), self.codes, key) for trajectory, key in zip(trajectories, keys)]
            tensors["noise"] = nn.utils.rnn.pad_sequence(drawn, batch_first=True)
        kind = torch.full(mask.shape, int(Kind.ACTION))
        return Batch(tuple(samples), tensors, mask[:, None], kind, self._cache_keys(samples) if cache else None)  # type: ignore[arg-type]

    def _cache_keys(self, samples: Sequence[Sample]) -> tuple[str, ...]:
        noise = [(sample.draw_key, sample.epoch) if self.codes else () for sample in samples]
        return tuple("-".join(map(str, (sample.content_key(), *drawn))) for sample, drawn in zip(samples, noise))

    def spaces_in(self, environment: str) -> Spaces:
        if environment not in self.bodies:
            known = ", ".join(self.bodies)
            raise ConfigError(f"a prompt names {environment!r}; the policy has heads for {known} (policy.embodiments)")
        return self.bodies[environment]


class Trunk(nn.Module):
    """One body's way from a universal action ``[P, D]`` and what it senses ``[P, S]`` to (its last hidden layer, the inputs of
    its action head)."""

    def __init__(self, config: UniActConfig, senses: int, size: int, generator: torch.Generator) -> None:
        super().__init__()
        self.hidden = ModulatedPerceptron(config.code_size, senses, config.head_hidden, generator)
        self.last = network((config.head_hidden[-1], size), nn.ReLU, generator, gain=0.5)

    def forward(self, universal: Tensor, senses: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.hidden(universal, senses)
        return hidden, self.last(hidden)


class UniActPolicy(Policy):
    """View and instruction to a universal action, and that with a body's whole observation to its next action.

    Extras of `forward`, with N samples and T steps in the longest trajectory (0 where there is no step):

    - ``entropy`` ``[N, T]``, nats, of the head's distribution given the universal action;
    - ``codes`` ``[N, T, K]``: log-probabilities of the codes, without noise and temperature;
    - ``values`` ``[N, T]``: the critic's view of the state before each action, if there is a critic;
    - ``states`` ``[N, T, F]``: the head's last hidden layer beside the action taken (padded), with ``step_ends`` ``[N, T]``;
      ``hidden`` ``[N, F]``: their mean.
    """

    family: ClassVar[str] = "continuous"
    inputs = frozenset({"text"})
    outputs = frozenset({"trajectory"})

    def __init__(self, config: UniActConfig, spaces: Mapping[str, Spaces], seed: int = 0) -> None:
        super().__init__()
        self.config, self.spaces = config, dict(spaces)
        self.collator: UniActCollator = UniActCollator(spaces, config)
        self.extractor = ModulatedPerceptron(config.view, config.words, config.hidden, keyed_generator(seed, "extractor"))
        self.codebook = GumbelCodebook(
            config.hidden[-1],
            config.codes,
            config.code_size,
            config.choice,
            config.temperature,
            keyed_generator(seed, "codebook"),
        )
        self.heads, self.trunks = nn.ModuleDict(), nn.ModuleDict()  # by body, so that a base may know other bodies
        for name, mine in spaces.items():
            head: ActionHead = CategoricalHead(mine.actions)
            if not mine.discrete:
                head = HuberHead(mine.half_widths(), config.delta, config.initial_std, config.learn_std)
            self.heads[_key(name)] = head
            self.trunks[_key(name)] = Trunk(
                config, mine.observation - self._unseen, head.size, keyed_generator(seed, "head", name)
            )
        critic = (config.view + config.words, *config.hidden, 1)
        self.critic = network(critic, nn.ReLU, keyed_generator(seed, "critic"), gain=0.0) if config.value_head else None
        if config.trains == "heads":
            self.extractor.requires_grad_(False)
            self.codebook.requires_grad_(False)
        self.provides = frozenset(
            {"log_probs", "entropy", "hidden", "states", "codes"} | ({"values"} if config.value_head else set())
        )

    @property
    def feature_sizes(self) -> dict[str, int]:
        size = self.config.head_hidden[-1] + self.collator.widest[1]
        return {"hidden": size, "states": size}

    @property
    def _unseen(self) -> int:
        """Return how many numbers of an observation, first in it, heads do not read."""
        return self.config.view if self.config.heads_see == "senses" else 0

    def anneal(self, done: float) -> None:
        self.codebook.anneal(done)

    # scoring

    def forward(self, batch: Batch, want: frozenset[str] = frozenset()) -> Scores:
        mask, tensors = batch.mask[:, 0], batch.tensors  # [N, T]
        row = mask.nonzero()[:, 0]  # [P]
        observations, actions = tensors["observations"][mask], tensors["actions"][mask]  # [P, O], [P, A]
        view, words = observations[:, : self.config.view], tensors["words"][row]
        noise = tensors["noise"][mask] if "noise" in tensors else None
        universal, codes = self.universal(view, words, noise)
        body = tensors["body"][row]
        log_probs = observations.new_zeros(len(row))
        entropy, steps = log_probs, observations.new_zeros(len(row), self.feature_sizes["states"])
        for number, mine, trunk, head in self._bodies():
            here = (body == number).nonzero()[:, 0]  # may be empty: its gradient is then 0 and not absent
            hidden, outputs = trunk(universal[here], self._sensed(mine, observations[here]))
            taken = actions[here, 0].long() if mine.discrete else actions[here, : mine.actions]
            with torch.autocast(outputs.device.type, enabled=False):
                log_probs = log_probs.index_add(0, here, head.log_probs(outputs.float(), taken))
                if "entropy" in want:
                    entropy = entropy.index_add(0, here, head.entropy(outputs.float()))
                if want & {"hidden", "states"}:
                    features = torch.cat([hidden.float(), self._as_features(mine, taken)], -1)
                    steps = steps.index_add(0, here, nn.functional.pad(features, (0, steps.shape[1] - features.shape[1])))
        extras: dict[str, Any] = {}
        if "entropy" in want:
            extras["entropy"] = scatter(entropy, mask)
        if "codes" in want:
            extras["codes"] = scatter(codes, mask)
        if want & {"hidden", "states"}:
            laid = scatter(steps, mask)
            extras |= {"states": laid, "step_ends": mask, "hidden": laid.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)}
        if self.critic is not None:  # always run, so that its gradient exists on every process
            extras["values"] = scatter(self.critic(torch.cat([view, words], -1))[:, 0].float(), mask)
        return Scores(scatter(log_probs, mask)[:, None], batch.mask, batch.kind, extras)

    def universal(self, view: Tensor, words: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return (universal actions ``[P, D]``, log-probabilities of the codes ``[P, K]``) for ``[P, V]`` and ``[P, W]``."""
        return self.codebook(self.extractor(view, words), noise)  # type: ignore[no-any-return]

    def _bodies(self) -> Iterator[tuple[int, Spaces, Any, Any]]:
        for number, (name, mine) in enumerate(self.spaces.items()):
            yield number, mine, self.trunks[_key(name)], self.heads[_key(name)]

    def _sensed(self, mine: Spaces, observations: Tensor) -> Tensor:
        return observations[:, self._unseen : mine.observation]

    def _as_features(self, mine: Spaces, taken: Tensor) -> Tensor:
        """Return actions as features: one-hot, or in half-widths of their range."""
        if mine.discrete:
            return nn.functional.one_hot(taken, mine.actions).float()
        return taken / torch.tensor(mine.half_widths(), device=taken.device)

    # acting

    def generate(
        self, prompts: Sequence[tuple[Message, ...]], *, samples_per_prompt: int = 1, seed: int = 0, **decoding: Any
    ) -> Rollouts:
        """Return one episode per rollout, as `playing.played` plays it; ``decoding`` as `playing.Decoding`. No Gumbel noise."""
        return played(self, prompts, samples_per_prompt, seed, Decoding.of(decoding))

    @property
    def device(self) -> torch.device:
        return self.codebook.codes.device

    @property
    def cut(self) -> int | None:
        return self.config.max_steps

    @property
    def home(self) -> str:
        return ", ".join(self.spaces)

    def spaces_in(self, environment: str) -> Spaces:
        return self.collator.spaces_in(environment)

    def head_in(self, environment: str) -> ActionHead:
        return self.heads[_key(environment)]  # type: ignore[return-value]

    def outputs_for(self, tasks: Sequence[Task]) -> Outputs:
        words, name = torch.stack([self.collator.asked(task) for task in tasks]).to(self.device), tasks[0].environment
        mine, trunk = self.spaces_in(name), self.trunks[_key(name)]

        def outputs(seen: Tensor, numbers: Sequence[int], step: int) -> Tensor:
            universal, _ = self.universal(seen[:, : self.config.view], words[numbers])
            return trunk(universal, self._sensed(mine, seen))[1]  # type: ignore[no-any-return]

        return outputs

    # saving

    def save(self, folder: Path) -> None:
        """Write ``model.safetensors`` and ``config.json``; ``policy.base`` takes the folder, for the same or other bodies."""
        write_model(folder, self.state_dict(), self.config)

    def fingerprint(self) -> str:
        return weights_fingerprint(self.state_dict().items(), repr(self.spaces), repr(self.config.choice))


def build(config: UniActConfig, *, device: str | torch.device = "cpu", seed: int = 0) -> UniActPolicy:
    """Return the policy at its starting weights: keyed by ``seed``, or, but for new bodies' heads, those of ``config.base``."""
    spaces = {}
    for name in config.embodiments:
        with closing(open_environment(name)) as environment:
            spaces[name] = Spaces.of(environment)
        if spaces[name].observation < config.view:
            raise ConfigError(f"{name!r} observes {spaces[name].observation} numbers, fewer than policy.view={config.view}")
    policy = UniActPolicy(config, spaces, seed)
    if config.base is not None:
        restore(policy, Path(config.base), fresh=("critic.", "heads.", "trunks."))
    return policy.to(device)


def _key(environment: str) -> str:
    """Return the id as a module's name may be written."""
    return environment.replace(".", "_")


def _padded(rows: Sequence[Any], width: int) -> Tensor:
    """Return arrays ``[T]`` or ``[T, A]`` of any T and of A up to ``width`` as one float tensor ``[N, T, width]``."""
    flat = [torch.from_numpy(row).float().view(len(row), -1) for row in rows]
    return nn.utils.rnn.pad_sequence([nn.functional.pad(row, (0, width - row.shape[1])) for row in flat], batch_first=True)
