"""The card of `datasets/emoji-captions`, written from what was built."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import PIL
from emoji_table import HELD_OUT_SHARE, PACKAGES, Emoji

from polyalign.records.schema import Record, text_of
from polyalign_image.foreground import SECOND_FROM, SHOWN_FROM


def card(table: Sequence[Emoji], made: Mapping[str, Sequence[Record]], target: Path) -> str:
    """Return the card as Markdown. ``made``: the records of each file, which lie in ``target``."""
    splits = Counter(emoji.split for emoji in table)
    media = sorted((target / "media").iterdir())
    listing = hashlib.sha256("\n".join(path.name for path in media).encode()).hexdigest()
    files = "\n".join(
        f"| `{name}` | {len(records):,} | `{hashlib.sha256((target / name).read_bytes()).hexdigest()}` |"
        for name, records in made.items()
    )
    sources = "\n".join(f"- npm `{name}` {version}, sha256 `{digest}`" for name, (version, digest) in PACKAGES.items())
    megabytes = sum(path.stat().st_size for path in media) / 1e6
    example = text_of(made["captions.test.jsonl"][0].candidates[0].parts)
    return f"""# emoji-captions

{len(table):,} real emoji, each drawn in two styles at 64x64 on white: captions whose every claim can be checked, questions,
and preferences for captions that claim nothing false and leave nothing out. Small enough to tune a vision-language model
on two CPU cores.

    {example}

**The labels are constructed, not human.** Names, kinds and tags come from emojibase, colours from the pixels. Wrong
captions are made by a rule, and the same rule says which of two is better (annotator `rule:attributes`). No person was
asked how good a caption is.

| file | records | sha256 |
|---|---|---|
{files}

`media/` holds {len(media):,} pictures, lossless WebP, {megabytes:.1f} MB, the same files as those of `emoji-styles`,
named by their sha256 (hash of the sorted names: `{listing}`; written with Pillow {PIL.__version__}).

## What is true of a picture
A caption reads `NAME, a kind of KIND, mostly COLOUR[ and COLOUR][; about TAG[ and TAG]]`; the module
`polyalign_image.emoji_captions` writes, reads and checks it.
- **Name**: the emoji's name in lower case. **Kind**: its Unicode subgroup.
- **Colours**: the palette colours (`polyalign_image.palette`) that cover most of the thing. The background, pure white that
  reaches the border, and the pixels next to it are left out: white is named where the thing itself is white. A second
  colour is named from a share of {SECOND_FROM:.0%}. Claiming any other colour with a share of {SHOWN_FROM:.0%} is no mistake.
- **Tags**: any of emojibase's tags is true. A caption gives the first two, the most common first, that have 4 to 12 letters
  and are no words of its name, kind or colours.

## Records
The prompt is one user message: the picture, and "Describe the picture." or a question. `group` is the Unicode subgroup, a
tag `group:` names the Unicode group, conditions hold `name` and `style`. Records are in hash order, so the first n of a
file are a fair sample.
- **Captions** (`captions.*`): the true caption of each picture. Conditions hold the whole truth (also `kind`, `colours`,
  `other_colours`, `tags`); the judge `attribute_hallucination` reads it from here, by the picture's sha256.
- **Preferences** (`train`, `test`): the true caption, and the same with one attribute changed; the whole truth as
  conditions. Candidate conditions `edit` and `attribute` say what was changed: in half of the records a wrong value for a
  true one (`swap`), in the others a tag or second colour left out (`drop`, aspect `completeness`) or a false one added
  (`add`; it and `swap`: aspect `hallucination`). The true caption is listed first in half of the records.
- **Questions** (`questions.*`): one per emoji. Half ask for the kind (as many yes as no), a quarter each for the name and
  for the colour.
- **Noisy captions** (`noisy.*`): three per picture, to stand for captions from the web: the true one, and two with 1, 2 or 3
  wrong attributes (5 : 3 : 2). Candidate condition `noise` counts them. Mixed with `captions.*`, 50% have none wrong, 25%
  one, 15% two, 10% three.

A wrong value is that of another picture of the same file, so it is about as common among the wrong as among the true ones; half
of the wrong names come from the same subgroup, half of the wrong kinds from the same group. It is wrong by the table: a
person may find "face affection" as good a kind as "face smiling". A wrong name, kind or tag also fits the rest of its
caption badly, so a model can tell it without the picture; a wrong colour it cannot.

{_preference_table(made)}

## Splits
Chosen and split by emoji as in `emoji-styles`: {splits["train"]:,} for training; {splits["test"]} held out,
{HELD_OUT_SHARE:.0%} of every subgroup. A wrong value always comes from a picture of the same split.

## Sources, licences, attribution
{sources}

- Noto Emoji pictures: copyright Google, Apache-2.0.
- Twemoji pictures: copyright 2020 Twitter, Inc and other contributors, CC-BY 4.0
  (<https://creativecommons.org/licenses/by/4.0/>); changed: composited on white and stored as WebP.
- Names, tags and taxonomy: emojibase, copyright Miles Johnson, MIT.
- Records (captions, questions and labels): Apache-2.0, as the rest of this repository.

Rebuild: `python3 tools/dev.py data emoji-captions`
"""


def _preference_table(made: Mapping[str, Sequence[Record]]) -> str:
    """How many preferences there are of each edit and attribute, per split."""
    counts = {
        split: Counter(
            (str(candidate.conditions["edit"]), str(candidate.conditions["attribute"]))
            for record in made[f"{split}.jsonl"]
            for candidate in record.candidates
            if candidate.conditions
        )
        for split in ("train", "test")
    }
    rows = [
        f"| {edit} | {what} | {number} | {counts['test'][edit, what]} |"
        for (edit, what), number in sorted(counts["train"].items())
    ]
    return "\n".join(["| edit | attribute | train | test |", "|---|---|---|---|", *rows])
