"""Configuration of a weighted sum of objectives: its terms, looked up by name. Light: no torch here."""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field, model_validator

from polyalign.plugins.specs import ObjectiveSpec
from polyalign.slots import PluginSlot
from polyalign.training.config import Config

_SCOPES = ("edge", "group", "batch")


class WeightedTerm(PluginSlot):
    """One objective of a weighted sum: its name, its weight, and its own options beside them."""

    kind = "objectives"
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False, description="factor on this objective's loss")

    def _accept(self, reader: type[Config]) -> None:
        if issubclass(reader, WeightedSumConfig):
            raise ValueError(f"{self.name!r} is a weighted sum itself; write its terms here, beside the others")

    def __repr__(self) -> str:
        return f"{self.weight:g} * {self.name}"

    @property
    def spec(self) -> ObjectiveSpec:
        assert isinstance(self._spec, ObjectiveSpec)
        return self._spec


class WeightedSumConfig(Config):
    terms: tuple[WeightedTerm, ...] = Field(
        default_factory=lambda: (WeightedTerm(name="dpo"), WeightedTerm(name="sft")),
        min_length=1,
        description="objectives, each {name, weight, and its own options}; the loss is the sum of weight * loss",
    )

    @model_validator(mode="after")
    def _share_a_view(self) -> WeightedSumConfig:
        if self.view is None:
            read = ", ".join(f"{term.name} reads {term.spec.view!r}" for term in self.terms)
            raise ValueError(f"no one view of the records gives every term what it needs: {read}")
        return self

    @property
    def view(self) -> str | None:
        """The first of the terms' views that gives all of them what they need."""
        together = ObjectiveSpec(name="", summary="", target="", source="", needs=self._needs())
        views = [term.spec.view for term in self.terms]
        return next((view for view in views if not together.lacking_in(view)), None)

    def declared(self, spec: ObjectiveSpec) -> ObjectiveSpec:
        """Return the spec of the sum as these terms make it: what it needs, on which view, and which policies it cannot train."""
        assert self.view is not None
        unsupported = dict(spec.unsupported)
        for term in self.terms:
            unsupported |= {family: f"{term.name}: {why}" for family, why in term.spec.unsupported.items()}
        return replace(
            spec,
            source="; ".join([spec.source, *(f"{term.name}: {term.spec.source}" for term in self.terms)]),
            needs=self._needs(),
            scope=max((term.spec.scope for term in self.terms), key=_SCOPES.index),
            view=self.view,
            reads="features" if all(term.spec.reads == "features" for term in self.terms) else "log_probs",
            unsupported=unsupported,
        )

    def _needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(need for term in self.terms for need in term.spec.needs))


class MPOConfig(WeightedSumConfig):
    terms: tuple[WeightedTerm, ...] = Field(
        default_factory=lambda: (
            WeightedTerm(name="dpo", weight=0.8),
            WeightedTerm(name="bco_pair", weight=0.2),
            WeightedTerm(name="sft", weight=1.0),
        ),
        min_length=1,
        description="preference, quality and generation, each {name, weight, and its own options}; the loss is the weighted sum",
    )
