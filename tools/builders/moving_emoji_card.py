"""The card of `datasets/moving-emoji`, written from what was built."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import PIL
from moving_emoji_clips import FPS, FRAMES, LARGE, LEAST_AMOUNT, LEAST_ASYMMETRY, LEAST_RISE, SIDE, SMALL, SPRITE, Emoji

from polyalign.records.schema import Record


def card(
    animated: Sequence[Emoji],
    sprites: Sequence[Emoji],
    made: Mapping[str, Sequence[Record]],
    packages: Mapping[str, tuple[str, str]],
    target: Path,
) -> str:
    """Return the card as Markdown. ``made``: the records of each file, which lie in ``target``."""
    media = sorted((target / "media").iterdir())
    listing = hashlib.sha256("\n".join(path.name for path in media).encode()).hexdigest()
    files = "\n".join(
        f"| `{name}` | {len(records):,} | `{hashlib.sha256((target / name).read_bytes()).hexdigest()}` |"
        for name, records in made.items()
    )
    sources = "\n".join(f"- npm `{name}` {version}, sha256 `{digest}`" for name, (version, digest) in packages.items())
    megabytes = sum(path.stat().st_size for path in media) / 1e6
    orders = Counter(tag for name in ("orders.train.jsonl", "orders.test.jsonl") for record in made[name] for tag in record.tags)
    moved, drawn = (Counter(emoji.split for emoji in chosen) for chosen in (sprites, animated))
    return f"""# moving-emoji

Clips of {FRAMES} frames, {SIDE}x{SIDE} pixels on white, of emoji that move: {len(animated)} animations as they were drawn, and
{len(sprites)} emoji moved by rule in six ways. Captions, questions, and preferences between clips and between answers.
Small enough to train a text-to-video model or a video language model on two CPU cores.

    cherry blossom moves left

**The labels are constructed, not human** (annotator `rule:motion`): what is worse was made worse, or shows another move.
No person was asked which clip is better.

| file | records | sha256 |
|---|---|---|
{files}

`media/` holds {len(media):,} clips, lossless animated WebP (modality `video`), {megabytes:.1f} MB, named by their
sha256 (hash of the sorted names: `{listing}`; written with Pillow {PIL.__version__}).

## Records
`group` is the Unicode subgroup, a tag `group:` names the Unicode group, condition `name` the emoji. Records are in hash order,
so the first n of a file are a fair sample. Where the better candidate stands is drawn by key.
- **Moves** (`train`, `test`): the prompt is a caption, `NAME moves left` (right, up, down), `NAME grows`, `NAME shrinks` or
  `NAME stays still`; the clip that does so is preferred to the one that does the opposite and to the one that stays still.
  Condition `move` of record and candidate. A sprite of {SPRITE} pixels goes {SIDE - SPRITE - 2} pixels, or grows from {SMALL} to
  {LARGE}, at {FPS:g} frames per second. The reversed clip is exactly the
  opposite move, so a model must look at the order of frames. `polyalign_video.motion` measures it.
- **Orders** (`orders.*`): the prompt is the emoji's name; its animation, {FRAMES} frames spread over the loop, is preferred to
  the same frozen at its middle frame, and to the same shuffled or reversed. Condition `order` of candidates;
  {orders["frozen"]} frozen, {orders["shuffled"]} shuffled, {orders["reversed"]} reversed.
  Taken only where it shows: a mean change of {LEAST_AMOUNT:g} between frames (pixels on [0, 1]); a shuffled clip changes
  {LEAST_RISE:g} times as much as the true one; a reversed one differs from every rotation of the true one by
  {LEAST_ASYMMETRY:g} of that change (a loop that swings looks the same backwards).
- **Questions** (`questions.*`): a moved clip and "What does it do?"; the true answer (condition `answer`) before a wrong one,
  which in about half of the records is the opposite.
- **Captions** (`captions.*`): an animation and "What is shown?"; its name (condition `answer`) before that of another, about half
  of the time of the same subgroup.

## Splits
By emoji, as in `emoji-captions`: a share of every subgroup by hash of the code point is held out. Of the moved emoji
{moved["train"]} are for training and {moved["test"]} held out, of the animated
{drawn["train"]} and {drawn["test"]}. A wrong name comes from the same split.

## Sources, licences, attribution
{sources}

- Fluent Emoji: copyright Microsoft Corporation, MIT; animated WebP files by LobeHub, MIT. Changed: composited on white, scaled,
  sampled, moved, stored as WebP.
- Names and taxonomy: emojibase, copyright Miles Johnson, MIT.
- Records (captions, questions and labels): Apache-2.0, as the rest of this repository.

Rebuild: `python3 tools/dev.py data moving-emoji`
"""
