"""Builds datasets/reach-episodes: one task, five bodies, an expert that goes where the mission says and one that goes elsewhere.

Deterministic: the same versions of gymnasium and numpy give the same bytes. ``adapt.*`` hold demonstrations of one
more body, eight to learn from, two from each side of the disc.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from pathlib import Path

from polyalign.records.parquet import write_parquet
from polyalign.records.store import MediaStore
from polyalign_action.reach_demonstrations import from_all_sides, records

KNOWN, NEW = ("Cursor", "Boat", "Arm", "Keys"), ("Wheels",)
HELD_OUT = range(5000, 5024)  # seeds
SPLITS = {  # body -> seeds
    "train": {body: range(1000 * number, 1000 * number + 200) for number, body in enumerate(KNOWN)},
    "test": dict.fromkeys(KNOWN, HELD_OUT),
    "adapt.train": {body: from_all_sides(body, range(4000, 4100)) for body in NEW},
    "adapt.test": dict.fromkeys(NEW, HELD_OUT),
}


def main() -> None:
    folder = Path(__file__).resolve().parents[2] / "datasets" / "reach-episodes"
    folder.mkdir(exist_ok=True)
    for split, seeds in SPLITS.items():
        path = folder / f"{split}.parquet"
        with tempfile.TemporaryDirectory() as place:
            store = MediaStore(place)
            found = [record for body in seeds for record in records([body], seeds[body], store.add, astray=(0, 1))]
            write_parquet(path, found, store)
        print(f"{split}: {len(found)} records, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}")


if __name__ == "__main__":
    sys.exit(main())
