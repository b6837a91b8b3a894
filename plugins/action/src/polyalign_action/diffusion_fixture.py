"""A tiny diffusion policy over Pendulum, with episodes played by scripts: what the cells test trains."""

from __future__ import annotations

from polyalign.policies.base import Policy
from polyalign.policies.fixture import PolicyFixture
from polyalign_action.diffusion_config import DiffusionPolicyConfig
from polyalign_action.diffusion_policy import build
from polyalign_action.fixture import InMemory, pendulums


def pendulum_chunks() -> Policy:
    """Return a fresh policy over Pendulum, the same each time."""
    return build(
        DiffusionPolicyConfig(
            environment="Pendulum-v1", goal=1, observations=2, horizon=4, execute=2, channels=16, blocks=1, max_steps=7
        )
    )


def fixture() -> PolicyFixture:
    """Return what the cells test needs. Rollouts are sampler steps, or whole episodes noised again."""
    media = InMemory()
    return PolicyFixture(
        pendulum_chunks,
        pendulums(media),
        media,
        3e-4,
        decoding={"sampler": {"kind": "cps", "steps": 3}},
        decoding_whole={"sampler": {"steps": 3}},
    )
