"""What a plugin's hooks return: light, declarative, lazy. Nothing heavy is imported until a spec's target is loaded."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from polyalign.errors import PluginError


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Names one thing a plugin offers.

    ``target`` and ``config`` are "module:attribute"; ``requires`` lists import names that the target needs.
    """

    name: str
    summary: str
    target: str
    config: str | None = None
    requires: tuple[str, ...] = ()

    def load(self) -> Any:
        """Import and return the target. Raises `PluginError` naming the missing package."""
        return load_attribute(self.target, self.name)

    def load_config(self) -> Any:
        """Import and return the pydantic configuration class, or None."""
        return load_attribute(self.config, self.name) if self.config else None


def load_attribute(path: str, owner: str) -> Any:
    """Import ``"module:attribute"`` for ``owner`` (a name to quote). Raises `PluginError` with what is missing."""
    module, _, attribute = path.partition(":")
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = (error.name or module).partition(".")[0]
        if package == module.partition(".")[0]:
            raise PluginError(f"{owner!r} points at {path!r}, but there is no module {error.name!r}") from error
        raise PluginError(f"{owner!r} needs the package {package!r}, which is not installed: pip install {package}") from error
    try:
        return getattr(loaded, attribute)
    except AttributeError as error:
        raise PluginError(f"{owner!r} points at {path!r}, but {module!r} has no {attribute!r}") from error


@dataclass(frozen=True, kw_only=True)
class ModalitySpec(Spec):
    """Codec and budget of one kind of media; target is a `polyalign.records.modality.Modality` subclass.

    ``media_kind``: "module:Class", a `polyalign.policies.media_kinds.MediaKind` made from (placeholder, media_id), by which
    other plugins' policies show this modality to transformers models.
    """

    mimes: tuple[str, ...] = ()
    media_kind: str | None = None


# What a policy provides that is a `polyalign.policies.tokens.TokenPolicy` and adds nothing.
TOKEN_POLICY_PROVIDES = (
    "log_probs", "entropy", "mean_logit", "log_sum_squares", "hidden", "prompt_hidden", "states", "token_targets",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PolicySpec(Spec):
    """A model adapter; target is ``build(config, *, device) -> Policy`` or a class with that classmethod-like call."""

    family: Literal["tokens", "denoising", "continuous", "features"]
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    provides: tuple[str, ...] = ("log_probs",)
    switches: dict[str, str] = field(default_factory=dict)  # what it provides only if its configuration says so: {name: key}
    fixture: str | None = None  # "module:callable" -> one PolicyFixture or a tuple (one per architecture), for the cells test


@dataclass(frozen=True, kw_only=True)
class EncoderSpec(Spec):
    """Media or text to embeddings."""

    inputs: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RewardSpec(Spec):
    """Samples to one number each; higher is better. ``rule``: a check on [0, 1] that needs no weights and no network and is
    safe on options that nobody has looked at, so that a record may name it among its constraints."""

    inputs: tuple[str, ...] = ()
    rule: bool = False


@dataclass(frozen=True, kw_only=True)
class FunctionSpec(RewardSpec):
    """A user's own function; ``name`` is ``file.py:function``."""

    def load(self) -> Any:
        return partial(super().load(), self.name)


def is_function(kind: str, name: str) -> bool:
    """Return whether a slot of this kind names a user's function instead of a plugin's thing."""
    return kind == "rewards" and ".py:" in name


def function_spec(name: str) -> FunctionSpec:
    """Return the spec of the reward ``file.py:function``."""
    return FunctionSpec(
        name=name,
        summary="a function of one's own",
        target="polyalign.rewards.functions:FunctionReward",
        config="polyalign.rewards.config:FunctionConfig",
    )


# What each view of records gives an objective. Ratings and segments come along in every view, where the data has them.
VIEW_GIVES = {
    "pairs": frozenset({"edges"}),
    "rankings": frozenset({"edges", "rankings"}),
    "unpaired": frozenset({"labels", "mismatch"}),
    "grids": frozenset({"edges", "grid"}),
    "sft": frozenset[str](),
    "self_samples": frozenset({"edges", "labels"}),
    "controlled": frozenset[str](),
    "rated": frozenset[str](),
    "prompts": frozenset({"rollouts", "edges", "rankings"}),  # the policy answers and a reward ranks, at every step
}
NEEDS_OF_VIEWS = frozenset[str]().union(*VIEW_GIVES.values())


@dataclass(frozen=True, kw_only=True)
class ObjectiveSpec(Spec):
    """A loss. ``source`` cites paper and equation; ``needs`` and ``scope`` repeat the class's for listing without torch.

    ``reads``: log-probabilities, or features alone, as reward models do, which need no model that generates.
    ``view`` is the view of records it trains on; ``unsupported`` maps a policy family to the reason it cannot. ``unless``: what
    a policy of such a family may provide, or have a switch for, so that it can.
    """

    source: str
    needs: tuple[str, ...] = ()
    scope: Literal["edge", "group", "batch"] = "edge"
    view: str = "pairs"
    reads: Literal["log_probs", "features"] = "log_probs"
    unsupported: dict[str, str] = field(default_factory=dict)
    unless: str | None = None

    def lacking_in(self, view: str) -> str:
        """Return what the objective needs and this view never gives, in words, or an empty string."""
        return ", ".join(sorted((set(self.needs) & NEEDS_OF_VIEWS) - VIEW_GIVES[view]))


@dataclass(frozen=True, kw_only=True)
class ImporterSpec(Spec):
    """Reads a foreign data set; target is a `polyalign.records.importing.base.Importer` subclass.

    ``layout`` says which files and columns it reads. ``unverified``: what of it no copy of the data set has confirmed.
    ``exporter``: "module:callable" that writes records in this layout: ``(source, target folder) -> {file: rows}``.
    """

    layout: str
    inputs: tuple[str, ...] = ()
    unverified: str = ""
    exporter: str | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluatorSpec(Spec):
    """Judges generated responses; target is a `polyalign.evaluation.base.Evaluator` subclass."""

    inputs: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SynthesizerSpec(Spec):
    """Makes new records of given ones; target is a `polyalign.synthesis.base.Synthesizer` subclass."""

    source: str = ""


@dataclass(frozen=True, kw_only=True)
class RecipeSpec(Spec):
    """One YAML file = one run; target is "package:path/inside/it.yaml"."""


@dataclass(frozen=True, kw_only=True)
class DatasetSpec(Spec):
    """A shipped data set, named in recipes as ``dataset:NAME``; target is a callable that returns its folder."""

    licence: str = ""


@dataclass(frozen=True, kw_only=True)
class ModelSpec(Spec):
    """Weights that a distribution ships, named in recipes as ``zoo:NAME``; target is a callable that returns their folder."""

    licence: str = ""


KINDS: dict[str, type[Spec]] = {
    "modalities": ModalitySpec,
    "policies": PolicySpec,
    "encoders": EncoderSpec,
    "rewards": RewardSpec,
    "objectives": ObjectiveSpec,
    "importers": ImporterSpec,
    "evaluators": EvaluatorSpec,
    "synthesizers": SynthesizerSpec,
    "recipes": RecipeSpec,
    "datasets": DatasetSpec,
    "models": ModelSpec,
}

_SINGULAR = {kind: kind.removesuffix("ies") + "y" if kind.endswith("ies") else kind.removesuffix("s") for kind in KINDS}


def singular(kind: str) -> str:
    """Return "policy" for "policies", and so on."""
    return _SINGULAR[kind]


def plural(kind: str) -> str:
    """Return the kind that a user means by its singular or plural; other text is returned as it is."""
    return {one: many for many, one in _SINGULAR.items()}.get(kind, kind)
