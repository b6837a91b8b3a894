"""Captions of emoji pictures made wrong by rule: what `emoji_captions.py` puts beside the true ones.

A wrong value is that of another picture, drawn by key until it is false here: a value is about as common among the wrong
ones as among the true ones, so that none is wrong in itself.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from emoji_table import Emoji

from polyalign.randomness import keyed_seed
from polyalign.records.schema import MediaRef
from polyalign_image.emoji_captions import (
    ATTRIBUTES,
    MOST_TAGS,
    Attribute,
    Caption,
    Truth,
    false_attributes,
    missing_attributes,
    render,
)
from polyalign_image.foreground import main_colours

NOISE = (1,) * 5 + (2,) * 3 + (3,) * 2  # of ten noisy captions, so many have 1, 2 and 3 wrong attributes
NEAR_TRIES = 8  # draws among the neighbours before all others: some have none that differ
T = TypeVar("T")


@dataclass(frozen=True)
class Picture:
    """One emoji in one style, and what is true of it."""

    emoji: Emoji
    style: str
    media: MediaRef
    truth: Truth

    @property
    def name(self) -> str:
        return f"{self.emoji.hexcode.lower()}-{self.style}"


def pictures_of(table: Sequence[Emoji], references: dict[tuple[str, str], MediaRef]) -> list[Picture]:
    """Return every picture with its truth. Tags are ordered with the most common of the table first."""
    common = Counter(tag for emoji in table for tag in emoji.tags)
    pictures = []
    for emoji in table:
        tags = tuple(sorted(emoji.tags, key=lambda tag: (-common[tag], tag)))
        for style, pixels in emoji.pictures.items():
            truth = Truth(emoji.caption, emoji.subgroup.replace("-", " "), *main_colours(pixels), tags)
            pictures.append(Picture(emoji, style, references[emoji.hexcode, style], truth))
    return pictures


def pick(options: Sequence[T], *key: str | int) -> T:
    """Return one of the options: the same key, the same choice."""
    return options[keyed_seed("emoji-captions", *key) % len(options)]


class WrongValues:
    """Wrong values for the pictures of a pool, taken from the pool itself.

    Half of the wrong names come from the same Unicode subgroup and half of the wrong kinds from the same group, where it has
    others: these are the mistakes that a model makes.
    """

    def __init__(self, pool: Sequence[Picture]) -> None:
        self.pool = pool
        self._near: dict[tuple[str, str], list[Picture]] = defaultdict(list)
        for picture in pool:
            self._near["name", picture.emoji.subgroup].append(picture)
            self._near["kind", picture.emoji.group].append(picture)

    def draw(self, attribute: Attribute, picture: Picture, *key: str | int) -> str:
        """Return a value of the attribute that is false of the picture."""
        own = {"name": picture.emoji.subgroup, "kind": picture.emoji.group}.get(attribute)
        near = self._near[attribute, own] if own and pick((True, False), "near", attribute, picture.name, *key) else []
        for attempt in itertools.count():
            others = near if near and attempt < NEAR_TRIES else self.pool
            other = pick(others, "other", attribute, picture.name, *key, attempt).truth.caption
            values = {"name": (other.name,), "kind": (other.kind,), "colour": other.colours, "tag": other.tags}[attribute]
            if values and _is_false(attribute, value := pick(values, "value", attribute, picture.name, *key), picture.truth):
                return value
        raise AssertionError("count() does not end")


def _is_false(attribute: Attribute, value: str, truth: Truth) -> bool:
    """A word of the picture's own name or kind is no false tag, whether or not it is listed as a tag."""
    true = {
        "name": (truth.name,),
        "kind": (truth.kind,),
        "colour": (*truth.colours, *truth.other_colours),
        "tag": (*truth.tags, *re.findall(r"[a-z]+", f"{truth.name} {truth.kind}")),
    }
    return value not in true[attribute]


@dataclass(frozen=True)
class Edit:
    """One attribute of a true caption changed: ``swap`` (a wrong value for a true one), ``drop`` or ``add``."""

    kind: str
    attribute: Attribute
    text: str


def swap(picture: Picture, wrong: WrongValues) -> Edit:
    """Return the true caption with one value replaced by a wrong one."""
    attribute = pick(_swappable(picture.truth.caption), "swapped", picture.name)
    changed = _swapped(picture.truth.caption, attribute, picture, wrong, "preference")
    return _checked(Edit("swap", attribute, render(changed)), picture.truth)


def drop_or_add(picture: Picture, wrong: WrongValues) -> Edit:
    """Return the true caption without a tag or its second colour, or with a false tag or colour where there is room.

    Where both are possible, three of four are added to: over all pictures, both are about as common.
    """
    caption = picture.truth.caption
    can_drop: list[Attribute] = [*["colour"] * (len(caption.colours) - 1), *["tag"] * bool(caption.tags)]
    can_add: list[Attribute] = [*["colour"] * (2 - len(caption.colours)), *["tag"] * (len(caption.tags) < MOST_TAGS)]
    if can_add and (not can_drop or pick((True, True, True, False), "add", picture.name)):
        attribute = pick(can_add, "added", picture.name)
        value = wrong.draw(attribute, picture, "added")
        field = "colours" if attribute == "colour" else "tags"
        changed = replace(caption, **{field: (*getattr(caption, field), value)})
        return _checked(Edit("add", attribute, render(changed)), picture.truth)
    attribute = pick(can_drop, "dropped", picture.name)
    if attribute == "colour":
        changed = replace(caption, colours=caption.colours[:1])
    else:
        out = pick(caption.tags, "dropped tag", picture.name)
        changed = replace(caption, tags=tuple(tag for tag in caption.tags if tag != out))
    return _checked(Edit("drop", attribute, render(changed)), picture.truth)


def noisy(picture: Picture, wrong: WrongValues, *key: str | int) -> tuple[int, str]:
    """Return a number of attributes by ``NOISE``, and the true caption with so many of them made wrong: by key."""
    noise = pick(NOISE, "noise", picture.name, *key)
    options = _swappable(picture.truth.caption)
    chosen = sorted(options, key=lambda attribute: keyed_seed("noise", picture.name, *key, attribute))[:noise]
    caption = picture.truth.caption
    for attribute in chosen:
        caption = _swapped(caption, attribute, picture, wrong, *key)
    text = render(caption)
    if set(false_attributes(text, picture.truth)) != set(chosen):
        raise ValueError(f"{picture.name}: {text!r} is wrong in {false_attributes(text, picture.truth)}, not in {chosen}")
    return noise, text


def _swappable(caption: Caption) -> list[Attribute]:
    return [attribute for attribute in ATTRIBUTES if attribute != "tag" or caption.tags]


def _swapped(caption: Caption, attribute: Attribute, picture: Picture, wrong: WrongValues, *key: str | int) -> Caption:
    value = wrong.draw(attribute, picture, "swapped", *key)
    if attribute in ("name", "kind"):
        return replace(caption, **{attribute: value})
    field = "colours" if attribute == "colour" else "tags"
    out = pick(getattr(caption, field), "swapped value", picture.name, *key)
    return replace(caption, **{field: tuple(value if old == out else old for old in getattr(caption, field))})


def _checked(edit: Edit, truth: Truth) -> Edit:
    """Return the edit if the grammar finds in its text the one thing that was changed, and nothing else."""
    found = false_attributes(edit.text, truth), missing_attributes(edit.text, truth)
    one = (edit.attribute,)
    expected = {"swap": (one, one), "drop": ((), one), "add": (one, ())}[edit.kind]
    if found != expected:
        raise ValueError(f"{edit}: false {found[0]}, missing {found[1]}; expected {expected}")
    return edit
