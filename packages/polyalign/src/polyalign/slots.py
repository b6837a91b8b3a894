"""Slots inside the options of other things: the terms of a sum, a reward within a reward. Light: no torch here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import PrivateAttr, model_serializer, model_validator

from polyalign.errors import PluginError, nearest
from polyalign.plugins.registry import registry
from polyalign.plugins.specs import Spec
from polyalign.training.config import Config, Slot


class PluginSlot(Slot):
    """A `Slot` that is looked up while it is read: ``name`` picks the spec of ``kind``, whose configuration class reads the
    other keys. Fields that a subclass declares are its own. Bare text is a name."""

    kind: ClassVar[str]
    _spec: Spec = PrivateAttr()
    _config: Config = PrivateAttr()

    @model_validator(mode="before")
    @classmethod
    def _bare_text_is_a_name(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _look_up(self) -> PluginSlot:
        try:
            spec = registry().get(self.kind, self.name)
            reader = spec.load_config() or Config
        except PluginError as error:
            raise ValueError(str(error)) from error
        self._accept(reader)
        if unknown := [key for key in self.options if key not in reader.model_fields]:
            keys = [*(field for field in type(self).model_fields if field != "name"), *reader.model_fields]
            known = f" Known keys: {', '.join(keys)}." if keys else " It takes no options."
            raise ValueError(f"unknown key {unknown[0]!r} of {self.name!r}.{nearest(unknown[0], keys) or known}")
        self._spec, self._config = spec, reader.model_validate(self.options)
        return self

    def _accept(self, reader: type[Config]) -> None:
        """Raise `ValueError` for a thing that may not stand in this slot, known by its configuration class."""

    @model_serializer(mode="plain")
    def _written(self) -> dict[str, Any]:
        own = {field: getattr(self, field) for field in type(self).model_fields}
        return own | self._config.model_dump(mode="json") | own  # own keys first in order, and above like-named options

    @property
    def config(self) -> Config:
        """The slot's configuration, defaults filled in."""
        return self._config

    def build(self) -> Any:
        """Import the target and return it, built from the slot's options."""
        return self._spec.load()(self._config)


class PolicySlot(PluginSlot):
    """A policy that is only read: its name and options, as in the recipe's own ``policy``."""

    kind: ClassVar[str] = "policies"

    def load(self, device: str) -> Any:
        """Import the policy's module and return the policy, without gradients."""
        return self._spec.load()(self.config, device=device, seed=0).requires_grad_(False).eval()


class EvaluatorSlot(PluginSlot):
    """An evaluator: its name, and its own options beside it."""

    kind: ClassVar[str] = "evaluators"


def numbered(names: Sequence[str]) -> list[str]:
    """Return the names as distinct labels: one that comes again is numbered, ``dpo`` and ``dpo 2``."""
    return [f"{name} {names[:at].count(name) + 1}" if name in names[:at] else name for at, name in enumerate(names)]
