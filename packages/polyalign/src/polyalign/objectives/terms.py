"""Configuration of a weighted sum of objectives: its terms, looked up by name. Light: no torch here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic import Field, PrivateAttr, model_serializer, model_validator

from polyalign.errors import PluginError, nearest
from polyalign.plugins.registry import registry
from polyalign.plugins.specs import ObjectiveSpec
from polyalign.training.config import Config, Slot

_SCOPES = ("edge", "group", "batch")


class WeightedTerm(Slot):
    """One objective of a weighted sum: its name, its weight, and its own options beside them."""

    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False, description="factor on this objective's loss")
    _spec: ObjectiveSpec = PrivateAttr()
    _config: Config = PrivateAttr()

    @model_validator(mode="before")
    @classmethod
    def _bare_text_is_a_name(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _look_up(self) -> WeightedTerm:
        try:
            spec = registry().get("objectives", self.name)
            reader = spec.load_config() or Config
        except PluginError as error:
            raise ValueError(str(error)) from error
        if issubclass(reader, WeightedSumConfig):
            raise ValueError(f"{self.name!r} is a weighted sum itself; write its terms here, beside the others")
        if unknown := [key for key in self.options if key not in reader.model_fields]:
            known = f" Known keys: weight, {', '.join(reader.model_fields)}."
            raise ValueError(f"unknown key {unknown[0]!r} of {self.name!r}.{nearest(unknown[0], reader.model_fields) or known}")
        assert isinstance(spec, ObjectiveSpec)
        self._spec, self._config = spec, reader.model_validate(self.options)
        return self

    @model_serializer(mode="plain")
    def _written(self) -> dict[str, Any]:
        return {"name": self.name, "weight": self.weight, **self._config.model_dump(mode="json")}

    def __repr__(self) -> str:
        return f"{self.weight:g} * {self.name}"

    @property
    def spec(self) -> ObjectiveSpec:
        return self._spec

    @property
    def config(self) -> Config:
        """The term's own configuration, defaults filled in."""
        return self._config


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
        unsupported: dict[str, str] = {}
        for term in self.terms:
            unsupported |= {family: f"{term.name}: {why}" for family, why in term.spec.unsupported.items()}
        return replace(
            spec,
            source="; ".join([spec.source, *(f"{term.name}: {term.spec.source}" for term in self.terms)]),
            needs=self._needs(),
            scope=max((term.spec.scope for term in self.terms), key=_SCOPES.index),
            view=self.view,
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
