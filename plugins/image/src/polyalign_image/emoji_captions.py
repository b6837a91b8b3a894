"""Captions whose every claim can be checked: written from a picture's true attributes, read back, and held against them.

    grinning face, a kind of face smiling, mostly yellow; about smile and happy

One grammar for the builder of `emoji-captions`, the judge of hallucination and the tests. Light: no numpy, no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from polyalign_image.palette import colours_named

Attribute = Literal["name", "kind", "colour", "tag"]
ATTRIBUTES: tuple[Attribute, ...] = ("name", "kind", "colour", "tag")
MOST_TAGS = 2
SHORT_TAG = re.compile(r"[a-z]{4,12}")
CAPTION = re.compile(r"(?P<name>.+?), an? kind of (?P<kind>[^,;]+), mostly (?P<colours>[^,;]+?)(?: ?; ?about (?P<tags>[^,;]+))?")


@dataclass(frozen=True)
class Caption:
    """What one caption claims. Written ones have one or two colours and up to two tags; one that was read may have more."""

    name: str
    kind: str
    colours: tuple[str, ...]
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Truth:
    """What is true of a picture: the colours that mostly cover it, the other colours that it shows, and all of its tags."""

    name: str
    kind: str
    colours: tuple[str, ...]
    other_colours: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()

    @property
    def caption(self) -> Caption:
        """The true caption: with the first short tags that are no words of what stands before them."""
        said = {*re.findall(r"[a-z]+", f"{self.name} {self.kind}"), *self.colours}
        fitting = [tag for tag in self.tags if SHORT_TAG.fullmatch(tag) and tag not in said]
        return Caption(self.name, self.kind, self.colours, tuple(fitting[:MOST_TAGS]))

    def conditions(self) -> dict[str, str]:
        """Return the truth as a record's conditions; `from_conditions` reads them back."""
        lists = {"colours": " ".join(self.colours), "other_colours": " ".join(self.other_colours), "tags": "|".join(self.tags)}
        return {"name": self.name, "kind": self.kind, **lists}

    @classmethod
    def from_conditions(cls, conditions: Mapping[str, object]) -> Truth:
        """Return the truth that a record's conditions state. Raises `KeyError` for one that is missing."""
        name, kind, colours, others, tags = (str(conditions[key]) for key in ("name", "kind", "colours", "other_colours", "tags"))
        return cls(name, kind, tuple(colours.split()), tuple(others.split()), tuple(filter(None, tags.split("|"))))


def render(caption: Caption) -> str:
    """Return the caption as text; `parse` reads it back."""
    about = f"; about {' and '.join(caption.tags)}" if caption.tags else ""
    return f"{caption.name}, a kind of {caption.kind}, mostly {' and '.join(caption.colours)}{about}"


def parse(text: str) -> Caption | None:
    """Return what a text claims, or None if it is no caption of this grammar.

    Case, spacing, curly apostrophes and a full stop or quotation marks around it do not matter, nor does a dash in the kind.
    Other words for a palette colour are read as that colour ("golden" -> yellow); an unknown one stays as it is.
    """
    plain = " ".join(text.lower().replace("’", "'").split()).strip(' ."')
    found = CAPTION.fullmatch(plain)
    if found is None:
        return None
    colours = [named for claim in found["colours"].split(" and ") for named in colours_named(claim) or (claim,)]
    tags = found["tags"].split(" and ") if found["tags"] else []
    kind = found["kind"].replace("-", " ")
    return Caption(found["name"], kind, tuple(dict.fromkeys(colours)), tuple(dict.fromkeys(tags)))


def false_attributes(text: str, truth: Truth) -> tuple[Attribute, ...]:
    """Return the attribute of each claim that is wrong, in the order of `ATTRIBUTES`; () if all are right.

    A colour is right if the picture shows it at all, a tag if the emoji has it. A text that cannot be read makes no claim
    that could be right: all four are returned, so that nothing is gained by answering something else.
    """
    claimed = parse(text)
    if claimed is None:
        return ATTRIBUTES
    return _repeated(
        name=claimed.name != truth.name,
        kind=claimed.kind != truth.kind,
        colour=len(set(claimed.colours) - {*truth.colours, *truth.other_colours}),
        tag=len(set(claimed.tags) - {*truth.tags}),
    )


def missing_attributes(text: str, truth: Truth) -> tuple[Attribute, ...]:
    """Return the attribute of each part of the true caption that the text does not give, in the order of `ATTRIBUTES`.

    Any true tag counts as much as those of the true caption. A text that cannot be read gives nothing.
    """
    claimed = parse(text) or Caption("", "", ())
    return _repeated(
        name=claimed.name != truth.name,
        kind=claimed.kind != truth.kind,
        colour=len(set(truth.colours) - {*claimed.colours}),
        tag=len(truth.caption.tags) - len(set(claimed.tags) & {*truth.tags}),
    )


def completeness(text: str, truth: Truth) -> float:
    """Return the share of the true caption's parts (name, kind, colours, tags) that the text gives, from 0 to 1."""
    parts = 2 + len(truth.colours) + len(truth.caption.tags)
    return 1 - len(missing_attributes(text, truth)) / parts


def _repeated(**counts: int) -> tuple[Attribute, ...]:
    return tuple(attribute for attribute in ATTRIBUTES for _ in range(counts[attribute]))
