"""The built-in rewards, declared. Light: no torch here."""

from __future__ import annotations

from polyalign.plugins.specs import RewardSpec

REWARDS: tuple[RewardSpec, ...] = ()
