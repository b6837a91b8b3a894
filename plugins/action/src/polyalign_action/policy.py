"""The `action` policy: a network that acts in gymnasium environments, and scores trajectories it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from polyalign.errors import MediaError, RecordError
from polyalign.policies.base import Batch, Collator, Kind, Policy, Rollout, Rollouts, Scores
from polyalign.policies.continuous import ActionHead, CategoricalHead, GaussianHead, network
from polyalign.policies.encoder_features_config import HashedWordsConfig
from polyalign.policies.fingerprint import weights_fingerprint
from polyalign.policies.hashed_words import HashedWords
from polyalign.policies.logprobs import scatter
from polyalign.randomness import keyed_generator
from polyalign.records.samples import Sample
from polyalign.records.schema import MediaPart, Message
from polyalign_action.config import ActionConfig
from polyalign_action.environments import Spaces, open_environment
from polyalign_action.history import HistoryTransformer, Recent, windows_of
from polyalign_action.playing import Decoding, Outputs, played
from polyalign_action.saved import restore, write_model
from polyalign_action.tasks import Task, task_of
from polyalign_action.trajectory import Trajectory, TrajectoryModality

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU}


class TrajectoryCollator(Collator):
    """Trajectories as padded tensors: every action is a decision. With N samples, T steps in the longest, O observed numbers,
    G numbers that the task gives (its goal, then its instruction as hashed words): ``states`` ``[N, T, O + G]``, ``actions``
    ``[N, T]`` or ``[N, T, A]``."""

    def __init__(self, spaces: Spaces, goal: int, instruction: int = 0) -> None:
        self.spaces, self.goal = spaces, goal
        self.words = HashedWords(HashedWordsConfig(width=instruction, pairs=False)) if instruction else None
        self.codec = TrajectoryModality()

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        return self.layout(samples, [self.trajectory_of(sample) for sample in samples])

    def of_rollouts(self, rollouts: Sequence[Rollout]) -> Batch:
        """Return a batch that scores exactly the actions taken, in the states they were taken in."""
        samples = [Sample(f"rollout-{n}", rollout.prompt, rollout.parts, f"rollout-{n}") for n, rollout in enumerate(rollouts)]
        return self.layout(samples, [rollout.output for rollout in rollouts], cache=False)

    def layout(self, samples: Sequence[Sample], trajectories: Sequence[Trajectory], cache: bool = True) -> Batch:
        states = [self.states_of(sample.id, sample.prompt, trajectory) for sample, trajectory in zip(samples, trajectories)]
        first = self.spaces.first if self.spaces.discrete else 0
        actions = [torch.from_numpy(trajectory.actions) - first for trajectory in trajectories]
        lengths = torch.tensor([len(trajectory) for trajectory in trajectories])
        mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
        tensors = {
            "states": nn.utils.rnn.pad_sequence(states, batch_first=True),
            "actions": nn.utils.rnn.pad_sequence(actions, batch_first=True),
        }
        kind = torch.full(mask.shape, int(Kind.ACTION))
        keys = tuple(sample.content_key() for sample in samples) if cache else None
        return Batch(tuple(samples), tensors, mask[:, None], kind, keys)  # type: ignore[arg-type]

    def states_of(self, name: str, prompt: Sequence[Message], trajectory: Trajectory) -> Tensor:
        """Return what is seen before each action, and what is asked, ``[T, O + G]``. Raises `MediaError` naming the sample
        for a trajectory of other spaces."""
        check_spaces(name, trajectory, self.spaces)
        observations = torch.from_numpy(trajectory.observations[:-1])
        return torch.cat([observations, self.asked(task_of(prompt)).expand(len(trajectory), -1)], -1)

    def cost(self, sample: Sample) -> int:
        """Return the number of steps."""
        return self.codec.cost(_bytes_of(sample))

    def trajectory_of(self, sample: Sample) -> Trajectory:
        return self.codec.decode(_bytes_of(sample))

    def asked(self, task: Task) -> Tensor:
        """Return what the task gives in numbers, ``[G]``: they join every observation."""
        goal = torch.tensor(self.goal_of(task), dtype=torch.float32)
        if self.words is None:
            return goal
        if not task.instruction:
            raise RecordError(f"the prompt {task.text!r} has no instruction; the policy reads one (policy.instruction)")
        return torch.cat([goal, self.words.encode_text([task.instruction])[0]])

    def goal_of(self, task: Task) -> tuple[float, ...]:
        if len(task.goal) != self.goal:
            raise RecordError(
                f"the prompt {task.text!r} gives {len(task.goal)} goal numbers; the policy takes {self.goal} (policy.goal)"
            )
        return task.goal


class ActionPolicy(Policy):
    """State (observation and goal), or the last few of them, to the distribution of the next action.

    Extras of `forward`, with N samples and T steps in the longest trajectory (0 where there is no step):

    - ``entropy`` ``[N, T]``, nats;
    - ``values`` ``[N, T]``: the critic's view of the state before each action, if there is a critic;
    - ``states`` ``[N, T, F]``: what a head can read of each step, the actor's last hidden layer beside the action taken (one-hot,
      or in half-widths of its range); along with ``step_ends`` ``[N, T]``: every action ends a step;
    - ``hidden`` ``[N, F]``: the mean of ``states``, so that a linear head on it gives every step a reward of its own
      (Christiano et al. 2017, arXiv 1706.03741).
    """

    family: ClassVar[str] = "continuous"
    inputs = frozenset({"text"})
    outputs = frozenset({"trajectory"})

    def __init__(self, config: ActionConfig, spaces: Spaces, seed: int = 0) -> None:
        super().__init__()
        self.config, self.spaces = config, spaces
        self.collator: TrajectoryCollator = TrajectoryCollator(spaces, config.goal, config.instruction)
        self.head: ActionHead
        if spaces.discrete:
            self.head = CategoricalHead(spaces.actions)
        else:
            self.head = GaussianHead([config.initial_std * width for width in spaces.half_widths()])
        self.state_size = spaces.observation + config.goal + config.instruction
        self.actor = self._network(self.head.size, keyed_generator(seed, "actor"), gain=0.01)
        self.critic = self._network(1, keyed_generator(seed, "critic"), gain=0.0) if config.value_head else None
        self.provides = frozenset({"log_probs", "entropy", "hidden", "states"} | ({"values"} if config.value_head else set()))
        self.register_buffer("half_widths", torch.tensor(spaces.half_widths()), persistent=False)

    def _network(self, outputs: int, generator: torch.Generator, gain: float) -> nn.Sequential:
        """Return what reads `_read` states; its last layer, scaled by ``gain``, makes the outputs."""
        config, activation = self.config, ACTIVATIONS[self.config.activation]
        if config.network == "mlp":
            return network((self.state_size, *config.hidden, outputs), activation, generator, gain)
        width, layers = config.hidden[0], len(config.hidden)
        body = HistoryTransformer(self.state_size, width, layers, config.heads, config.history, activation, generator)
        return nn.Sequential(body, network((width, outputs), activation, generator, gain)[0])

    def _read(self, states: Tensor) -> Tensor:
        """Return states ``[N, T, O + G]`` as the networks read them: a transformer reads the last ones at each."""
        return states if self.config.network == "mlp" else windows_of(states, self.config.history)

    @property
    def feature_sizes(self) -> dict[str, int]:
        size = self.config.hidden[-1] + self.spaces.actions
        return {"hidden": size, "states": size}

    def forward(self, batch: Batch, want: frozenset[str] = frozenset()) -> Scores:
        mask = batch.mask[:, 0]  # [N, T]
        states, actions = self._read(batch.tensors["states"])[mask], batch.tensors["actions"][mask]  # [P, ...], [P] or [P, A]
        hidden = self.actor[:-1](states)  # type: ignore[index]
        outputs = self.actor[-1](hidden)  # type: ignore[index]
        with torch.autocast(outputs.device.type, enabled=False):
            log_probs = scatter(self.head.log_probs(outputs, actions), mask)
            extras: dict[str, Any] = {}
            if "entropy" in want:
                extras["entropy"] = scatter(self.head.entropy(outputs), mask)
            if want & {"hidden", "states"}:
                steps = scatter(torch.cat([hidden.float(), self._taken(actions)], -1), mask)
                extras |= {"states": steps, "step_ends": mask, "hidden": steps.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)}
        if self.critic is not None:  # always run, so that its gradient exists on every process
            extras["values"] = scatter(self.critic(states)[:, 0].float(), mask)
        return Scores(log_probs[:, None].float(), batch.mask, batch.kind, extras)

    def _taken(self, actions: Tensor) -> Tensor:
        """Return actions as features, ``[P, A]``."""
        if self.spaces.discrete:
            return nn.functional.one_hot(actions, self.spaces.actions).float()
        return actions / self.half_widths

    def generate(
        self, prompts: Sequence[tuple[Message, ...]], *, samples_per_prompt: int = 1, seed: int = 0, **decoding: Any
    ) -> Rollouts:
        """Return one episode per rollout, as `playing.played` plays it; ``decoding`` as `playing.Decoding`."""
        return played(self, prompts, samples_per_prompt, seed, Decoding.of(decoding))

    @property
    def device(self) -> torch.device:
        return self.half_widths.device

    @property
    def cut(self) -> int | None:
        return self.config.max_steps

    @property
    def home(self) -> str:
        return self.config.environment

    def spaces_in(self, environment: str) -> Spaces:
        return self.spaces

    def head_in(self, environment: str) -> ActionHead:
        return self.head

    def outputs_for(self, tasks: Sequence[Task]) -> Outputs:
        goals = torch.stack([self.collator.asked(task) for task in tasks]).to(self.device)
        if self.config.network == "mlp":
            return lambda seen, numbers, step: self.actor(torch.cat([seen, goals[numbers]], -1))
        recent = Recent(len(tasks), self.config.history, self.state_size, self.device)
        return lambda seen, numbers, step: self.actor(recent.push(torch.cat([seen, goals[numbers]], -1), numbers))

    def save(self, folder: Path) -> None:
        """Write ``model.safetensors`` and ``config.json``; ``policy.base`` takes the folder."""
        write_model(folder, self.state_dict(), self.config)

    def fingerprint(self) -> str:
        return weights_fingerprint(self.state_dict().items(), repr(self.spaces))


def build(config: ActionConfig, *, device: str | torch.device = "cpu", seed: int = 0) -> ActionPolicy:
    """Return the policy at its starting weights: keyed by ``seed``, or those of ``config.base``."""
    with closing(open_environment(config.environment)) as environment:
        policy = ActionPolicy(config, Spaces.of(environment), seed)
    if config.base is not None:
        restore(policy, Path(config.base), fresh=("critic.",))
    return policy.to(device)


def check_spaces(name: str, trajectory: Trajectory, spaces: Spaces) -> None:
    """Refuse trajectories of other spaces: their log-probabilities would mean nothing."""
    actions = trajectory.actions
    found = f"{trajectory.observations.shape[1]} observed numbers and actions {actions.shape} ({actions.dtype})"
    fits = trajectory.observations.shape[1] == spaces.observation and (actions.ndim == 1) == spaces.discrete
    if fits and spaces.discrete:
        last = spaces.first + spaces.actions - 1
        fits = bool((spaces.first <= actions).all() and (actions <= last).all())
        found += f" from {actions.min()} to {actions.max()}"
        expected = f"actions from {spaces.first} to {last}"
    else:
        fits = fits and actions.shape[-1] == spaces.actions
        expected = f"actions {'[T]' if spaces.discrete else f'[T, {spaces.actions}]'}"
    if not fits:
        raise MediaError(
            f"trajectory of {name!r} ({trajectory.environment}) has {found}; the policy has {spaces.observation} "
            f"observed numbers and {expected}: use trajectories of policy.environment"
        )


def _bytes_of(sample: Sample) -> bytes:
    media = [part.media for part in sample.response if isinstance(part, MediaPart)]
    if len(media) != 1 or sample.media is None:
        raise MediaError(f"the response of {sample.id!r} has {len(media)} media; expected one trajectory")
    return sample.media.read(media[0])
