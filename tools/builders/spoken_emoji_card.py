"""The card of `datasets/spoken-emoji`, written from what was built."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import soundfile
from emoji_table import PACKAGES

from polyalign.records.schema import Record


def card(made: Mapping[str, Sequence[Record]], target: Path) -> str:
    """Return the card as Markdown. ``made``: the records of each file, which lie in ``target``."""
    media = sorted((target / "media").iterdir())
    listing = hashlib.sha256("\n".join(path.name for path in media).encode()).hexdigest()
    files = "\n".join(
        f"| `{name}` | {len(records):,} | `{hashlib.sha256((target / name).read_bytes()).hexdigest()}` |"
        for name, records in made.items()
    )
    seconds = [soundfile.info(path).duration for path in media]
    megabytes = sum(path.stat().st_size for path in media) / 1e6
    program = " ".join(subprocess.run(["espeak-ng", "--version"], check=True, capture_output=True, text=True).stdout.split()[:4])
    emoji = {split: len({r.conditions["hexcode"] for r in made[f"{split}.jsonl"]}) for split in ("train", "test")}
    version, digest = PACKAGES["emojibase-data"]
    total, shortest, longest = sum(emoji.values()), min(seconds), max(seconds)
    made_with = f"{program}, {soundfile.__libsndfile_version__}"
    return f"""# spoken-emoji

The names of {total} real emoji, spoken by espeak-ng in twelve voices: {len(media):,} clips of {shortest:.1f} to {longest:.1f} s.
For recognisers (clip to name), speakers (name to clip) and any-to-any models: each emoji is also one of `emoji-styles`, by
`hexcode`.

**The labels are constructed, not human.** How a clip was made says what it follows (annotator `rule:espeak-settings`); nobody
was asked how it sounds, and a formant synthesiser's accents are caricatures.

| file | records | sha256 |
|---|---|---|
{files}

`media/` holds Ogg Opus at 16 kHz, one channel, about 24 kbit/s, {megabytes:.1f} MB, {sum(seconds) / 60:.0f} minutes; the silence
around the speech is cut to 0.03 s and the peak is 0.5. Files are named by their sha256 (hash of the sorted names:
`{listing}`; made with {made_with}).

## Records
- **Preferences** (`train`, `test`): `Say "red apple" slowly.`, `... quickly.`, `... in a high voice.`, `... in a low voice.`,
  `... in a man's voice.`, `... in a woman's voice.` and `Say "red apple".`; the better clip does so, the worse one does the
  opposite: in the first four only that one setting differs, the next two have another speaker, and in the last the same
  voice names another emoji. A tag `aspect:` is `speed`, `pitch`, `voice` or `words`, and so is the comparison's aspect. Four
  records per emoji; the better clip comes first in half of them.
- **Speech** (`speech.*`): `Say "red apple".` and one clip. **Transcripts** (`transcripts.*`): the same clips,
  `What is said?`, and the name.

Conditions of records and of candidates hold `words`, `voice`, `who` (man or woman), `speed` (slow 90, normal 155, fast 270
words per minute) and `pitch` (low 10, normal 50, high 90 on espeak-ng's scale of 100); records also `answer` (the name) and
`hexcode`.

## Splits
Emoji: {emoji["train"]} of the training split of `emoji-styles`, {emoji["test"]} of its test split. Voices: eight for training,
four held out (two men, two women). `train` and `*.train` have training emoji in training voices; `test` has held-out emoji in
held-out voices; `speech.test` and `transcripts.test` have the rest of the square, by tags `emoji:train`, `emoji:test`,
`voice:train`, `voice:test`. The second of the two clips by men (and by women) of each emoji in training voices has any of
the three speeds.

## Sources and licences
- npm `emojibase-data` {version} (MIT), sha256 `{digest}`: names.
- espeak-ng (GPL-3.0) is a program that was run; what it says is not a part of it. The clips are given under MIT, as the
  names are.

Built by `python3 tools/dev.py data spoken-emoji`.
"""
