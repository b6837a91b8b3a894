"""Build `datasets/emoji-styles`: preferences and contrast grids over real emoji in two drawing styles.

    python3 tools/dev.py data emoji-styles

The table of emoji comes from `emoji_table.py`. The labels are constructed by a rule, not given by people: the Twemoji
picture is preferred over the Noto picture of the same emoji. Running it again writes the same bytes (with the Pillow
named in CARD.md).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import PIL
from emoji_table import HELD_OUT_SHARE, LEAST_STYLE_DIFFERENCE, PACKAGES, Emoji, load_table
from PIL import Image

from polyalign.records.jsonl import write_jsonl
from polyalign.records.schema import Candidate, Comparison, MediaPart, MediaRef, Message, Provenance, Record
from polyalign.records.store import MediaStore

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "datasets/emoji-styles"
PREFERRED, OTHER = "twemoji", "noto"
ANNOTATOR = "rule:style-b"
LICENCE = "Apache-2.0 AND CC-BY-4.0 AND MIT"
SOURCE = Provenance(
    source=" ".join(f"npm:{name}@{version}" for name, (version, _) in PACKAGES.items()),
    method="rule",
    notes="constructed: the rule prefers one drawing style; no person was asked",
)
References = dict[tuple[str, str], MediaRef]  # (hexcode, style) -> picture


def store_pictures(table: list[Emoji], store: MediaStore) -> References:
    references = {}
    for emoji in table:
        for style, pixels in emoji.pictures.items():
            encoded = io.BytesIO()
            Image.fromarray(pixels).save(encoded, "WEBP", lossless=True)
            references[emoji.hexcode, style] = store.add(encoded.getvalue(), "image", "image/webp")
    return references


def preferences(table: list[Emoji], references: References) -> Iterator[Record]:
    """One record per emoji. Emoji are put in the order of their hash; every other one lists the preferred picture first."""
    by_hash = sorted(table, key=lambda emoji: hashlib.sha256(emoji.hexcode.encode()).hexdigest())
    preferred_first = {emoji.hexcode for emoji in by_hash[::2]}
    for emoji in table:
        styles = (PREFERRED, OTHER) if emoji.hexcode in preferred_first else (OTHER, PREFERRED)
        best = styles.index(PREFERRED)
        yield Record(
            id=f"style-{emoji.hexcode.lower()}",
            prompt=emoji.caption,
            candidates=tuple(candidate(references[emoji.hexcode, style], style) for style in styles),
            feedback=(Comparison(ranking=((best,), (1 - best,)), aspect="style", annotator=ANNOTATOR),),
            group=emoji.subgroup,
            tags=(*emoji.tags, f"group:{emoji.group}"),
            provenance=SOURCE,
            licence=LICENCE,
        )


def contrast_grids(table: list[Emoji], references: References) -> Iterator[Record]:
    """Aesthetics: one emoji, two styles asked for. Content: two neighbours of one subgroup, both in the preferred style."""
    for emoji in table:
        pictures = [(references[emoji.hexcode, style], style) for style in (PREFERRED, OTHER)]
        instructions = (emoji.caption, f"{emoji.caption}, {OTHER} style")
        yield grid(f"aesthetics-{emoji.hexcode.lower()}", "aesthetics", emoji, instructions, pictures)
    for _, members in itertools.groupby(table, key=lambda emoji: emoji.subgroup):
        for left, right in itertools.pairwise(members):
            pictures = [(references[emoji.hexcode, PREFERRED], PREFERRED) for emoji in (left, right)]
            name = f"content-{left.hexcode}-and-{right.hexcode}".lower()
            yield grid(name, "content", left, (left.caption, right.caption), pictures)


def grid(name: str, axis: str, emoji: Emoji, instructions: tuple[str, str], pictures: list[tuple[MediaRef, str]]) -> Record:
    """Two instructions x two pictures; candidates in the order (x1, y1), (x1, y2), (x2, y1), (x2, y2)."""
    cells = [candidate(*picture, instruction) for instruction in instructions for picture in pictures]
    return Record(
        id=name,
        candidates=tuple(cells),
        feedback=(
            Comparison(ranking=((0,), (1,)), aspect=axis, annotator=ANNOTATOR),
            Comparison(ranking=((3,), (2,)), aspect=axis, annotator=ANNOTATOR),
        ),
        group=emoji.subgroup,
        tags=(f"axis:{axis}", f"group:{emoji.group}"),
        conditions={"axis": axis},
        provenance=SOURCE,
        licence=LICENCE,
    )


def candidate(picture: MediaRef, style: str, instruction: str | None = None) -> Candidate:
    prompt = None if instruction is None else (Message(role="user", parts=instruction),)
    return Candidate(parts=(MediaPart(media=picture),), prompt=prompt, producer=style)


def card(table: list[Emoji], counts: dict[str, int], target: Path) -> str:
    splits = Counter(emoji.split for emoji in table)
    groups = Counter((emoji.group, emoji.split) for emoji in table)
    media = sorted((target / "media").iterdir())
    listing = hashlib.sha256("\n".join(path.name for path in media).encode()).hexdigest()
    files = "\n".join(
        f"| `{name}` | {count:,} | `{hashlib.sha256((target / name).read_bytes()).hexdigest()}` |"
        for name, count in counts.items()
    )
    sources = "\n".join(f"- npm `{name}` {version}, sha256 `{digest}`" for name, (version, digest) in PACKAGES.items())
    by_group = "\n".join(
        f"| {group} | {groups[group, 'train']} | {groups[group, 'test']} |" for group in dict.fromkeys(e.group for e in table)
    )
    return f"""# emoji-styles

{len(table):,} real emoji, each drawn in two styles at 64x64 on white, with preferences for one of the styles.
Small enough to align a text-to-image model on two CPU cores, real enough to look at.

**The labels are constructed, not human.** A rule prefers the Twemoji picture over the Noto picture of the same emoji
(annotator `{ANNOTATOR}`). It says nothing about which drawing people like better.

| file | records | sha256 |
|---|---|---|
{files}

`media/` holds {len(media):,} pictures, lossless WebP, {sum(path.stat().st_size for path in media) / 1e6:.1f} MB,
named by their sha256 (hash of the sorted names: `{listing}`; written with Pillow {PIL.__version__}).

## Records
- **Preferences** (`train.jsonl`, `test.jsonl`): the prompt is the emoji's name in lower case; the two candidates are its
  pictures; one comparison, aspect `style`. The preferred picture is listed first in half of the records.
- **Contrast grids** (`grids.*.jsonl`, for InstructEngine): two instructions x two pictures. The four candidates, in the
  order (x1, y1), (x1, y2), (x2, y1), (x2, y2), carry their own prompts, and two comparisons rank each instruction's own
  picture over the other's. Condition `axis`:
  - `aesthetics`: x1 is the name, y1 its Twemoji picture; x2 is the name and ", {OTHER} style", y2 the Noto picture.
  - `content`: two neighbouring emoji of one subgroup, both in Twemoji style.
- `group` is the Unicode subgroup, `tags` are emojibase's tags and the Unicode group, `producer` is the style.

## Selection and splits
All emoji of emojibase {PACKAGES["emojibase-data"][0]} but: flags, letters, arrows, plain shapes and traffic signs;
families, skin tones, hair styles and gendered variants (the neutral one stays); clock faces; any that lack a picture in
one style; and those whose two pictures differ by less than {LEAST_STYLE_DIFFERENCE} (mean absolute difference, pixels
in [0, 1]).
Split by emoji: {splits["train"]:,} for training; {splits["test"]} held out, {HELD_OUT_SHARE:.0%} of every subgroup by
hash of the code point.
"Held out" means from preferences: `zoo:tiny-sd` and `zoo:tiny-clip` saw all emoji in both styles.

| Unicode group | train | test |
|---|---|---|
{by_group}

## Sources, licences, attribution
{sources}

- Noto Emoji pictures: copyright Google, Apache-2.0.
- Twemoji pictures: copyright 2020 Twitter, Inc and other contributors, CC-BY 4.0
  (<https://creativecommons.org/licenses/by/4.0/>); changed: composited on white and stored as WebP.
- Names, tags and taxonomy: emojibase, copyright Miles Johnson, MIT.
- Records (the selection and the labels): Apache-2.0, as the rest of this repository.

Rebuild: `python3 tools/dev.py data emoji-styles`
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache-dir", type=Path, default=ROOT / ".cache/npm", help="where the npm tarballs are kept")
    parser.add_argument("--target", type=Path, default=TARGET)
    arguments = parser.parse_args()
    table = load_table(arguments.cache_dir)
    shutil.rmtree(arguments.target / "media", ignore_errors=True)
    references = store_pictures(table, MediaStore(arguments.target))
    counts = {}
    for split in ("train", "test"):
        members = [emoji for emoji in table if emoji.split == split]
        for prefix, make in (("", preferences), ("grids.", contrast_grids)):
            name = f"{prefix}{split}.jsonl"
            counts[name] = write_jsonl(arguments.target / name, make(members, references))
    (arguments.target / "CARD.md").write_text(card(table, counts, arguments.target), encoding="utf-8")
    print(f"{len(table)} emoji, {counts}")


if __name__ == "__main__":
    main()
